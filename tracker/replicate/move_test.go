package replicate_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func moveKey(fid protocol.FID) worktest.Key {
	return worktest.Key{Queue: schema.QueueRebalance, FID: fid}
}

// settled stores a file that nothing is asked for but a move.
func (r *rig) settled(fid protocol.FID, class schema.ClassID, devs ...protocol.DevID) {
	r.put(fid, class, devs...)
	jobs, err := r.store.Claim(r.t.Context(), schema.QueueReplicate, 1000, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.store.Finish(r.t.Context(), jobs); err != nil {
		r.t.Fatal(err)
	}
}

// move queues a move and works until it is done with.
func (r *rig) move(fid protocol.FID, from protocol.DevID, arg string) {
	r.t.Helper()
	r.store.SetRow(moveKey(fid), worktest.Row{From: from, Arg: arg})
	defer r.start()()
	worktest.Eventually(r.t, "move worked on", func() bool { return r.store.Row(moveKey(fid)) == nil })
}

func TestMoves(t *testing.T) {
	drain := func(r *rig) {
		r.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDrain })
	}
	away := func(dev protocol.DevID) func(*rig) {
		return func(r *rig) {
			r.cluster.Change(dev, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable })
		}
	}
	for _, c := range []struct {
		name    string
		class   schema.ClassID
		devs    []protocol.DevID
		from    protocol.DevID
		arg     string
		setup   func(*rig)
		want    []protocol.DevID
		outcome string
		note    string
	}{
		// Hosts have the devices 1 and 2, 3 and 4, 5 and 6.
		{name: "to the only permitted device", devs: []protocol.DevID{1, 3}, from: 1, arg: "2", want: []protocol.DevID{2, 3}, outcome: "moved"},
		{name: "never beside the other copy while it can be elsewhere", devs: []protocol.DevID{1, 3}, from: 1, arg: "4",
			want: []protocol.DevID{1, 3}, outcome: "would_worsen", note: "Rebalance for 1 (from dev1) failed: no suitable destination devices available"},
		{name: "among several permitted", devs: []protocol.DevID{1, 3}, from: 1, arg: "4,6", want: []protocol.DevID{3, 6}, outcome: "moved"},
		{name: "off a device in drain", devs: []protocol.DevID{1, 3}, from: 1, arg: "2", setup: drain, want: []protocol.DevID{2, 3}, outcome: "moved"},
		{name: "a single copy", class: 1, devs: []protocol.DevID{1}, from: 1, arg: "5", want: []protocol.DevID{5}, outcome: "moved"},
		{name: "spare copy", devs: []protocol.DevID{1, 3, 5}, from: 1, arg: "2", want: []protocol.DevID{3, 5}, outcome: "moved"},
		{name: "short of copies", devs: []protocol.DevID{1}, from: 1, arg: "3,5", want: []protocol.DevID{3, 5}, outcome: "moved"},
		{name: "no such copy", devs: []protocol.DevID{1, 3}, from: 5, arg: "2", want: []protocol.DevID{1, 3}, outcome: "lost_race"},
		{name: "full destination", devs: []protocol.DevID{1, 3}, from: 1, arg: "2", setup: func(r *rig) {
			r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { used := *d.TotalMB; d.UsedMB = &used })
		}, want: []protocol.DevID{1, 3}, outcome: "would_worsen"},
		{name: "device that lets nothing be deleted", devs: []protocol.DevID{1, 3}, from: 1, arg: "2", setup: func(r *rig) {
			r.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceReadonly })
		}, want: []protocol.DevID{1, 3}, outcome: "kept"},
		{name: "dead device", devs: []protocol.DevID{1, 3}, from: 1, arg: "2", setup: func(r *rig) {
			r.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDead })
		}, want: []protocol.DevID{1, 3}, outcome: "kept"},
		// Nothing is copied while the other copy cannot be read.
		{name: "other copy away", devs: []protocol.DevID{1, 3}, from: 1, arg: "2", setup: away(3), want: []protocol.DevID{1, 3}, outcome: "would_worsen"},
		{name: "other copy broken", devs: []protocol.DevID{1, 3}, from: 1, arg: "2", setup: func(r *rig) { r.disks.Put(3, 1, "nine") },
			want: []protocol.DevID{1, 2, 3}, outcome: "kept", note: "Rebalance for 1 (from dev1) failed: kept"},
		{name: "copy to move is lost", devs: []protocol.DevID{1, 3}, from: 1, arg: "2", setup: func(r *rig) { r.disks.Put(1, 1, "") },
			want: []protocol.DevID{2, 3}, outcome: "moved"},
		{name: "not a list", devs: []protocol.DevID{1, 3}, from: 1, arg: "2;4", want: []protocol.DevID{1, 3}, outcome: "error", note: "not a list of devices"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 3, 2)
				r.settled(1, c.class, c.devs...)
				if c.setup != nil {
					c.setup(r)
				}
				r.move(1, c.from, c.arg)
				if got := r.store.Locations(1); !slices.Equal(got, c.want) {
					t.Errorf("locations %v, want %v", got, c.want)
				}
				if n := r.count("mogile_replicate_moves_total", c.outcome); n != 1 {
					t.Errorf("the outcome is not %s:\n%s%s", c.outcome, r.log, r.notes)
				}
				if !strings.Contains(r.notes.String(), c.note) {
					t.Errorf("watchers were told %q, want %q", r.notes, c.note)
				}
				for _, dev := range r.disks.On(1) {
					if !slices.Contains(c.want, dev) && !slices.Contains(r.pending(1), dev) {
						t.Errorf("bytes on dev%d are neither recorded nor to be deleted", dev)
					}
				}
			})
		})
	}
}

// TestMoveAnywhere is a move without destinations: anywhere that is right.
func TestMoveAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 2)
		r.settled(1, 0, 1, 3)
		r.move(1, 1, "")
		devs := r.store.Locations(1)
		if len(devs) != 2 || slices.Contains(devs, 1) || r.hostsOf(devs) != 2 {
			t.Errorf("locations %v", devs)
		}
	})
}

// TestClientsGoBeforeMoves has one worker, moves, and files that clients have
// stored: these are copied first.
func TestClientsGoBeforeMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 2)
		r.options.Jobs, r.options.SmallFile = 1, -1
		var order []protocol.FID
		r.disks.OnCopy = func(_ context.Context, _, _ protocol.DevID, fid protocol.FID) error {
			order = append(order, fid)
			return nil
		}
		for fid := protocol.FID(1); fid <= 20; fid++ {
			r.settled(fid, 0, 1, 3)
			r.store.SetRow(moveKey(fid), worktest.Row{From: 1})
		}
		for fid := protocol.FID(101); fid <= 120; fid++ {
			r.put(fid, 0, 1)
		}
		stop := r.start()
		worktest.Eventually(t, "all done", func() bool { return r.store.Rows(schema.QueueRebalance) == 0 })
		stop()
		if len(order) != 40 || slices.Max(order[20:]) > 20 {
			t.Errorf("the order was %v", order)
		}
	})
}

// TestDeletedDuringMove has a client delete the file while its copy is moved.
func TestDeletedDuringMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.disks.OnCopy = func(_ context.Context, _, _ protocol.DevID, fid protocol.FID) error {
			r.store.Delete(fid)
			return nil
		}
		r.settled(1, 0, 1, 2)
		r.move(1, 1, "")
		if got := r.pending(1); !slices.Equal(got, []protocol.DevID{3}) {
			t.Errorf("the copy that landed must go: pending %v", got)
		}
		if got := r.store.Locations(1); !slices.Equal(got, []protocol.DevID{1, 2}) {
			t.Errorf("locations %v", got)
		}
		if n := r.count("mogile_replicate_moves_total", "nofid"); n != 1 {
			t.Errorf("outcome:\n%s%s", r.log, r.notes)
		}
	})
}

// TestTwoRemovers has two trackers, whose locks are gone, drop one of three
// copies each at the same moment: one does, the other looks again.
func TestTwoRemovers(t *testing.T) {
	for _, c := range []struct {
		name  string
		other func(r *rig)
	}{
		{"surplus and move", func(r *rig) { r.store.SetRow(moveKey(1), worktest.Row{From: 2}) }},
		{"another tracker", func(r *rig) {
			// It has found dev2 to be one too many.
			if err := r.store.DropLocation(r.t.Context(), 1, 2, []protocol.DevID{1, 2, 3}); err != nil && !errors.Is(err, schema.ErrStale) {
				r.t.Error(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 3, 1)
				r.put(1, 0, 1, 2, 3)
				var once atomic.Bool
				r.store.Before = func(method string) error {
					if method == "DropLocation" && once.CompareAndSwap(false, true) {
						r.store.LoseSession()
						c.other(r)
					}
					return nil
				}
				other := *r
				other.options.Fids = work.NewFIDLocks(r.store)
				other.options.Rand = rand.New(rand.NewPCG(2, 2))
				defer other.start()()
				defer r.start()()
				work.Pause(t.Context(), time.Minute)
				if devs := r.store.Locations(1); len(devs) != 2 {
					t.Errorf("locations %v, two are wanted", devs)
				}
				if r.row(1) != nil || r.store.Row(moveKey(1)) != nil {
					t.Errorf("rows %+v, %+v are left", r.row(1), r.store.Row(moveKey(1)))
				}
			})
		})
	}
}

// TestMoveOfALockedFile gives a move up whose fid is locked for ever, as by a
// worker that hangs.
func TestMoveOfALockedFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.settled(1, 0, 1, 2)
		held, err := r.options.Fids.TryLock(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		r.store.SetRow(moveKey(1), worktest.Row{From: 1})
		defer r.start()()
		work.Pause(t.Context(), time.Minute)
		if r.store.Row(moveKey(1)) == nil {
			t.Error("given up within a minute")
		}
		work.Pause(t.Context(), 9*time.Minute)
		if r.store.Row(moveKey(1)) != nil {
			t.Error("still tried after ten minutes")
		}
		if err := held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFailedMoveIsTriedOnce has every destination fail.
func TestFailedMoveIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 2)
		r.settled(1, 0, 1, 3)
		var tried atomic.Int32
		r.disks.OnCopy = func(context.Context, protocol.DevID, protocol.DevID, protocol.FID) error {
			tried.Add(1)
			return &storage.CopyError{Side: storage.DestError, Err: errors.New("no space")}
		}
		r.move(1, 1, "")
		if got := r.store.Locations(1); !slices.Equal(got, []protocol.DevID{1, 3}) {
			t.Errorf("locations %v", got)
		}
		if n := tried.Load(); n != 3 { // 2, 5 and 6: on dev4 it would be beside dev3
			t.Errorf("tried %d destinations", n)
		}
	})
}
