package storetest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Bench runs the benchmarks of the hot operations on the engine that fresh
// makes databases of, each at 1, 16 and 64 goroutines. They report what users
// feel: operations a second, of which each is about one file.
func Bench(b *testing.B, fresh Fresh) {
	for _, c := range []struct {
		name  string
		bench func(e *env) func(i int64) error
	}{
		{"create_open+close", benchCreate},
		{"create_open+close overwrite=0", benchCreateNew},
		{"lookup", benchLookup},
		{"claim+finish", benchClaim},
		{"claim+finish moves", benchMoves},
		{"record a copy", benchAddLocation},
		{"sweep", benchSweep},
		{"reap", benchReap},
	} {
		for _, clients := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/clients=%d", c.name, clients), func(b *testing.B) {
				e := newEnv(b, fresh)
				spread(b, clients, c.bench(e))
			})
		}
	}
}

// spread has clients goroutines call f b.N times in all, with a number that
// rises.
func spread(b *testing.B, clients int, f func(i int64) error) {
	turns := make(chan struct{}, clients)
	done := make(chan struct{})
	var next atomic.Int64
	go func() {
		defer close(done)
		parallel(clients, func(int) {
			for range turns {
				if err := f(next.Add(1)); err != nil {
					b.Error(err)
				}
			}
		})
	}()
	for b.Loop() {
		turns <- struct{}{}
	}
	close(turns)
	<-done
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func benchCreate(e *env) func(i int64) error {
	return func(i int64) error {
		key := fmt.Sprintf("bench/%08d", i)
		fid, err := e.CreateTempfile(e.ctx, e.upload(key))
		if err != nil {
			return err
		}
		return e.CloseFile(e.ctx, e.closing(fid, key))
	}
}

func benchCreateNew(e *env) func(i int64) error {
	return func(i int64) error {
		key := fmt.Sprintf("bench/%08d", i)
		fid, err := e.CreateTempfile(e.ctx, e.upload(key))
		if err != nil {
			return err
		}
		c := e.closing(fid, key)
		c.NoOverwrite = true
		return e.CloseFile(e.ctx, c)
	}
}

func benchLookup(e *env) func(i int64) error {
	const files = 2000
	create := benchCreate(e)
	parallel(32, func(g int) {
		for i := g; i < files; i += 32 {
			if err := create(int64(i)); err != nil {
				e.Error(err)
			}
		}
	})
	return func(i int64) error {
		_, _, err := e.FileByKey(e.ctx, e.dmid, fmt.Sprintf("bench/%08d", i*7919%files))
		return err
	}
}

// benchClaim keeps the queue filled; an operation is one fid queued, claimed in
// a batch, and finished.
func benchClaim(e *env) func(i int64) error {
	const batch = 20
	return func(i int64) error {
		if i%batch != 0 {
			return nil
		}
		fids := make([]protocol.FID, batch)
		for j := range fids {
			fids[j] = protocol.FID(i + int64(j))
		}
		if err := e.QueueReplication(e.ctx, fids, 0, 0); err != nil {
			return err
		}
		jobs, err := e.Claim(e.ctx, schema.QueueReplicate, batch, time.Hour)
		if err != nil {
			return err
		}
		_, err = e.Finish(e.ctx, jobs)
		return err
	}
}

// benchMoves does the same with the queue of rebalance.
func benchMoves(e *env) func(i int64) error {
	const batch = 20
	return func(i int64) error {
		if i%batch != 0 {
			return nil
		}
		moves := make([]schema.Move, batch)
		for j := range moves {
			moves[j] = schema.Move{FID: protocol.FID(i + int64(j)), From: 1, To: devs(2, 3)}
		}
		if err := e.QueueMoves(e.ctx, moves, schema.SettingsChange{}); err != nil {
			return err
		}
		jobs, err := e.Claim(e.ctx, schema.QueueRebalance, batch, time.Hour)
		if err != nil {
			return err
		}
		_, err = e.Finish(e.ctx, jobs)
		return err
	}
}

// benchFiles is how many files those benchmarks work on that need some.
const benchFiles = 100_000

// fillFiles makes benchFiles files on device 1.
func (e *env) fillFiles() {
	const chunk = 20_000
	for first := 1; first <= benchFiles; first += chunk {
		e.files(first, 1, chunk)
	}
}

// benchAddLocation has an operation record a second copy, or drop it again.
func benchAddLocation(e *env) func(i int64) error {
	e.fillFiles()
	return func(i int64) error {
		fid := protocol.FID(1 + i%benchFiles)
		if i/benchFiles%2 == 0 {
			return e.AddLocation(e.ctx, fid, 2, devs(1))
		}
		return e.DropLocation(e.ctx, fid, 2, devs(1, 2))
	}
}

// benchSweep claims, reads and finishes ranges of 500 files.
func benchSweep(e *env) func(i int64) error {
	const batch = 500
	e.fillFiles()
	e.sweep(schema.SweepFsck, benchFiles)
	return func(i int64) error {
		if i%batch != 0 {
			return nil
		}
		r, ok, err := e.ClaimRange(e.ctx, schema.SweepFsck, batch, time.Hour)
		if err != nil {
			return err
		}
		if !ok {
			zero := "0"
			return e.SetSetting(e.ctx, schema.SweepFsck.Position(), &zero)
		}
		files, err := e.FilesIn(e.ctx, r.First, r.Last, batch)
		if err != nil {
			return err
		}
		_, err = e.FinishRange(e.ctx, r, schema.Tally{Files: int64(len(files))})
		return err
	}
}

// benchReap takes files off a dead device, 500 at a time, and puts them back.
func benchReap(e *env) func(i int64) error {
	const batch = 500
	e.fillFiles()
	e.device(1, schema.DeviceDead)
	var mu sync.Mutex
	return func(i int64) error {
		if i%batch != 0 {
			return nil
		}
		n, err := e.Reap(e.ctx, 1, batch)
		if err != nil || n > 0 {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		e.db.Exec(e, "INSERT INTO file_on (fid, devid) SELECT fid, 1 FROM file ON CONFLICT DO NOTHING")
		return nil
	}
}
