//go:build unix

package volume_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// TestOwnCrashes: whenever the power goes, a file of the docroot's own has the old
// or the new content, and what was acknowledged lasts.
func TestOwnCrashes(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			disk := simulate(t, simdisk.Options{}, false)
			d, _ := openSim(t, disk, volume.Options{})
			first, second := bytes.Repeat([]byte("a"), 10_000), bytes.Repeat([]byte("b"), 20_000)
			if err := d.WriteOwn(t.Context(), "peers", first); err != nil {
				t.Fatal(err)
			}
			disk.Inject(simdisk.Fault{Hang: true, Skip: rng.IntN(12)})
			written := make(chan error, 1)
			go func() { written <- d.WriteOwn(context.Background(), "peers", second) }()
			synctest.Wait()
			acknowledged := false
			select {
			case err := <-written:
				acknowledged = err == nil
			default:
			}
			next := disk.Crash(rng)
			if !acknowledged {
				<-written
			}
			if err := d.Close(); err != nil && !errors.Is(err, simdisk.ErrGone) {
				t.Log(err) // its disk is gone
			}
			d, _ = openSim(t, next, volume.Options{})
			defer d.Close()
			got, err := d.ReadOwn(t.Context(), "peers", 1<<20)
			if err != nil || !bytes.Equal(got, second) && (acknowledged || !bytes.Equal(got, first)) {
				t.Errorf("seed %d: %d bytes, %v, acknowledged: %v", seed, len(got), err, acknowledged)
			}
			if err := d.WriteOwn(t.Context(), "peers", first); err != nil {
				t.Error(err)
			}
			for _, p := range next.Files("/docroot") {
				if strings.Contains(p, "/.mogile/peers~") {
					t.Errorf("seed %d: left behind: %s", seed, p)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
}

// A disk that hangs is not waited for beyond the context; a file that is too long
// or missing is an error.
func TestOwnTroubles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := simulate(t, simdisk.Options{}, false)
		d, _ := openSim(t, disk, volume.Options{})
		defer d.Close()
		if _, err := d.ReadOwn(t.Context(), "peers", 10); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a missing file: %v", err)
		}
		if err := d.WriteOwn(t.Context(), "peers", []byte("0123456789")); err != nil {
			t.Fatal(err)
		}
		if got, err := d.ReadOwn(t.Context(), "peers", 10); err != nil || string(got) != "0123456789" {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := d.ReadOwn(t.Context(), "peers", 9); err == nil {
			t.Error("a file that is too long was read")
		}
		clear := disk.Inject(simdisk.Fault{Path: "/docroot/.mogile", Hang: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.WriteOwn(ctx, "peers", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a disk that hangs: %v", err)
		}
		clear()
	})
}
