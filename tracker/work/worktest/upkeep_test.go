package worktest

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// TestSweep: ranges in memory keep the contracts of the stores.
func TestSweep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const w = schema.SweepScrub
		s, ctx := NewStore(), t.Context()
		for fid := protocol.FID(1); fid <= 10; fid++ {
			s.Put(schema.File{FID: fid}, 1)
		}
		claim := func(limit int, want bool) schema.Range {
			t.Helper()
			r, ok, err := s.ClaimRange(ctx, w, limit, time.Minute)
			if err != nil || ok != want {
				t.Fatalf("claimed %+v, %t, %v; want %t", r, ok, err, want)
			}
			return r
		}
		finish := func(r schema.Range, want bool) {
			t.Helper()
			ok, err := s.FinishRange(ctx, r, schema.Tally{Files: int64(r.Files), Events: map[string]int64{"MISS": 1}})
			if err != nil || ok != want {
				t.Fatalf("finished %+v: %t, %v; want %t", r, ok, err, want)
			}
		}
		claim(4, false)
		host, end := "t", "12"
		if err := s.ChangeSettings(ctx, schema.SettingsChange{Set: map[string]*string{w.Host(): &host, w.End(): &end}}); err != nil {
			t.Fatal(err)
		}
		a := claim(4, true)
		time.Sleep(time.Minute)
		again := claim(4, true)
		if again.First != 1 || again.Last != 4 || again.Until <= a.Until {
			t.Errorf("claimed %+v after %+v", again, a)
		}
		finish(a, false)
		finish(again, true)
		b := claim(4, true)
		if err := s.ReleaseRange(ctx, b); err != nil {
			t.Fatal(err)
		}
		finish(b, false)
		finish(claim(4, true), true)
		last := claim(4, true)
		if last.First != 9 || last.Last != 12 || last.Files != 2 {
			t.Errorf("the last range is %+v", last)
		}
		finish(last, true)
		claim(4, false)
		settings, err := s.Settings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{w.Host(): "t", w.End(): "12", w.Position(): "12", w.Checked(): "10", w.Events("MISS"): "3"}
		if diff := cmp.Diff(want, settings); diff != "" {
			t.Errorf("settings (-want +got):\n%s", diff)
		}
	})
}

// TestReapAndMoves: so do the reaper's and the mover's part.
func TestReapAndMoves(t *testing.T) {
	t.Parallel()
	s, ctx := NewStore(), t.Context()
	s.Put(schema.File{FID: 1}, 1, 5)
	s.Put(schema.File{FID: 2}, 5)
	if _, err := s.Finish(ctx, []schema.Job{{Queue: schema.QueueReplicate, FID: 2}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reap(ctx, 5, 10); !errors.Is(err, schema.ErrStale) {
		t.Errorf("a device that is alive was reaped: %v", err)
	}
	s.SetStatus(5, schema.DeviceDead)
	if n, err := s.Reap(ctx, 5, 10); n != 2 || err != nil {
		t.Errorf("reaped %d, %v", n, err)
	}
	if f, ok := s.File(1); !ok || f.DevCount != 1 || !cmp.Equal(f.Devices, []protocol.DevID{1}) {
		t.Errorf("file is %+v, %t", f, ok)
	}
	if r := s.Row(Key{Queue: schema.QueueReplicate, FID: 2}); r == nil || r.NextTry == 0 {
		t.Errorf("row is %+v", r)
	}
	if err := s.DropBadLocation(ctx, 1, 1, []protocol.DevID{1}); !errors.Is(err, schema.ErrLastCopy) {
		t.Errorf("the last copy was dropped: %v", err)
	}
	state := "x"
	change := schema.SettingsChange{Expect: map[string]*string{"rebal_state": nil}, Set: map[string]*string{"rebal_state": &state}}
	moves := []schema.Move{{FID: 1, From: 1, To: []protocol.DevID{3, 2}}}
	if err := s.QueueMoves(ctx, moves, change); err != nil {
		t.Fatal(err)
	}
	if err := s.QueueMoves(ctx, moves, change); !errors.Is(err, schema.ErrStale) {
		t.Errorf("queued twice: %v", err)
	}
	jobs, err := s.Claim(ctx, schema.QueueRebalance, 10, time.Minute)
	if err != nil || len(jobs) != 1 || jobs[0].DevID != 1 || jobs[0].Arg != "3,2" {
		t.Fatalf("claimed %+v, %v", jobs, err)
	}
	if n, err := s.Finish(ctx, jobs); n != 1 || err != nil {
		t.Errorf("finished %d, %v", n, err)
	}
}
