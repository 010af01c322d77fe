package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// TestScrubFindsEveryBadCopy damages copies as bad disks do, and has one scrub
// find and repair them all; a second finds nothing. 1,000 copies with
// MOGILE_TEST_SCALE=20.
func TestScrubFindsEveryBadCopy(t *testing.T) {
	scenario(t)
	t.Parallel()
	f := startFleet(t, Spec{Hosts: 4, Devices: 2, Trackers: 2, Key: true}, scale(150))
	rng := newRand(t)
	where := f.locations()
	spoilt, n := 0, scale(50)
	for _, i := range rng.Perm(len(f.files)) {
		file := f.files[i]
		devs := where[file.fid]
		for _, j := range rng.Perm(len(devs))[:1+rng.IntN(len(devs)-1)] { // never all
			if file.size < 2 || spoilt == n {
				break
			}
			f.damage(spoilt, file, devs[j])
			spoilt++
		}
	}
	if spoilt < n {
		t.Fatalf("%d copies damaged of %d", spoilt, n)
	}
	began := time.Now()
	mogtool(t, f.Cluster, "fsck", "scrub", "--wait")
	scrubbed := time.Since(began)
	f.waitIdle(5 * time.Minute)
	t.Logf("%d damaged copies: scrub %.1f s, at policy after %.1f s", spoilt, scrubbed.Seconds(), time.Since(began).Seconds())
	events := f.events()
	if got := events["BSUM"] + events["BLEN"] + events["MISS"]; got != spoilt || events["BSUM"] != (n+3)/4+(n+2)/4 || events["BLEN"] != (n+1)/4+n/4 {
		t.Errorf("%d copies damaged, half of them in length: %v", spoilt, events)
	}
	f.check()
	// The bad copies are in the trash of their devices.
	within(t, time.Minute, "all bad copies are in the trash", func() error {
		if n := len(f.trash()); n != spoilt {
			return fmt.Errorf("%d of %d", n, spoilt)
		}
		return nil
	})
	before := fmt.Sprint(events)
	mogtool(t, f.Cluster, "fsck", "scrub", "--wait")
	if after := fmt.Sprint(f.events()); after != before {
		t.Errorf("a second scrub found %s, the first %s", after, before)
	}
	f.check()
}

// TestStraysAreExact puts many files on devices that the database does not
// know, has exactly these listed, and moves them into the trash.
func TestStraysAreExact(t *testing.T) {
	scenario(t)
	t.Parallel()
	f := startFleet(t, Spec{Hosts: 3, Devices: 2, Key: true}, scale(60))
	rng := newRand(t)
	_, issued, err := f.store.HighestFID(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	where := f.locations()
	lengths := map[protocol.FID]int{}
	for _, file := range f.files {
		lengths[file.fid] = file.size
	}
	var want []string
	planted := map[string]bool{}
	for range scale(40) {
		// Some are copies of files that are recorded elsewhere, the others of files
		// that are gone.
		fid, dev := protocol.FID(1+rng.Uint64N(uint64(issued))), protocol.DevID(1+rng.IntN(6))
		if slices.Contains(where[fid], dev) || planted[fid.Path(dev)] {
			continue
		}
		planted[fid.Path(dev)] = true
		kind := "gone"
		if _, known := lengths[fid]; known {
			kind = "copy"
		}
		want = append(want, fmt.Sprintf("%s %s 5", f.plant(dev, fid, "stray", 48*time.Hour), kind))
	}
	slices.Sort(want)
	list, words, code := f.strays()
	if !slices.Equal(list, want) || code != 0 {
		t.Errorf("exit code %d, %d strays of %d: %s\n%q\n%q", code, len(list), len(want), words, list, want)
	}
	if _, words, code := f.strays("--delete", "--yes", "--up-to", "100"); code != 0 {
		t.Errorf("exit code %d: %s", code, words)
	}
	if n := len(f.trash()); n != len(want) {
		t.Errorf("%d files in the trash of %d", n, len(want))
	}
	if list, words, code := f.strays("--age", "0s"); len(list) > 0 || code != 0 {
		t.Errorf("exit code %d, left: %q: %s", code, list, words)
	}
	f.check()
}
