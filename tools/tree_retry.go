package tools

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"time"

	"github.com/mogile/mogile/protocol"
)

const (
	firstPause = 250 * time.Millisecond
	longPause  = 8 * time.Second
)

// pause is the time before the nth repetition, from 1. chance, from 0 to 1,
// takes up to a quarter off it, so that many do not come back at once.
func pause(n int, chance float64) time.Duration {
	d := longPause
	if n < 6 {
		d = min(longPause, firstPause<<(n-1))
	}
	return d - time.Duration(chance*float64(d)/4)
}

// passing reports whether an error may go away by itself: a daemon that is down
// or restarts, a device that fails. Refusals of the request, and faults of
// files here, do not.
func passing(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*os.LinkError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*refusal](err); ok {
		return false
	}
	if e, ok := errors.AsType[*protocol.Error](err); ok {
		switch e.Code {
		case "failure", "db", "no_devices", "size_verify_error", "size_mismatch", "checksum_mismatch", "no_temp_file":
			return true
		}
		return false
	}
	return true
}

// clusterWide reports whether an error is hardly that of one file.
func clusterWide(err error) bool {
	if _, ok := errors.AsType[*protocol.TrackerError](err); ok {
		return true
	}
	return errors.Is(err, protocol.ErrFailure) || errors.Is(err, protocol.Err("no_devices")) || errors.Is(err, protocol.Err("db"))
}

// persist does something until it succeeds, fails for good, or has been
// repeated so many times.
func persist(ctx context.Context, retries int, do func() error) error {
	for n := 1; ; n++ {
		err := do()
		if err == nil || n > retries || ctx.Err() != nil || !passing(err) {
			return err
		}
		if _, ok := errors.AsType[*damage](err); ok && n > damageRetries {
			return err
		}
		t := time.NewTimer(pause(n, rand.Float64()))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// refusal is an error of a file that no repetition mends.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// damage is content that is not what it should be. Another copy may be good.
type damage struct{ error }

// damageRetries is how often other copies are hoped for.
const damageRetries = 2

func damaged(format string, args ...any) error { return &damage{fmt.Errorf(format, args...)} }
