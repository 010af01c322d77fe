package placement

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

func TestNewFileDevices(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, c := range []struct {
		name   string
		layout string
		n      int
		size   int64
		want   string // the set of devices
	}{
		{"one", "h1: d1", 1, -1, "1"},
		{"three hosts", "h1: d1; h2: d2; h3: d3", 3, -1, "1 2 3"},
		{"fewer than asked for", "h1: d1; h2: d2", 3, -1, "1 2"},
		{"second device of a host where there are no more hosts", "h1: d1 d2; h2: d3", 3, -1, "1 2 3"},
		{"none", "h1: d1=readonly d2=drain d3=down d4=dead d5=away d6=full; h2 (down): d7; h3 (readonly): d8", 3, -1, ""},
		{"unknown size is never chosen", "h1: d1=unknown; h2: d2", 3, -1, "2"},
		{"fits", "h1: d1; h2: d2=half", 3, 600 * mib, "1"},
		{"fits exactly is not more than", "h1: d1; h2: d2=half", 3, 500 * mib, "1"},
		{"one byte less fits", "h1: d1; h2: d2=half", 3, 500*mib - 1, "1 2"},
		{"fits nowhere", "h1: d1; h2: d2=half", 3, 5000 * mib, ""},
		{"fits nowhere, unknown has weight 0", "h1: d1; h2: d2=unknown", 3, 5000 * mib, ""},
		{"size 0 is not known", "h1: d1; h2: d2=half", 3, 0, "1 2"},
		{"none asked for", "h1: d1", 0, -1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			devs, _ := layout(t, c.layout)
			if got := ids(NewFileDevices(devs, c.n, c.size, 100, seeded(7))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestNewFileDevicesMinFree(t *testing.T) {
	t.Parallel()
	devs, _ := layout(t, "h1: d1; h2: d2=half")
	if got := ids(NewFileDevices(devs, 3, -1, 600, seeded(1))); got != "1" {
		t.Errorf("above 600 MiB free: %q, want 1", got)
	}
}

func TestNewFileDevicesTopTwenty(t *testing.T) {
	t.Parallel()
	var devs []*cluster.Device
	for i := 1; i <= 40; i++ {
		d := device(i, host(i))
		*d.UsedMB = int64(10 * i) // the higher the number, the fuller
		devs = append(devs, d)
	}
	rng := seeded(3)
	seen := make(map[int]bool)
	for range 500 {
		d := NewFileDevices(devs, 1, -1, 100, rng)[0]
		if d.ID > 20 {
			t.Fatalf("dev%d is not among the 20 emptiest", d.ID)
		}
		seen[int(d.ID)] = true
	}
	if len(seen) != 20 {
		t.Errorf("%d devices chosen in 500 rounds, want 20", len(seen))
	}
}

// TestFreeSpaceIsTheWeight wants the emptier of two devices chosen as often as
// it is emptier.
func TestFreeSpaceIsTheWeight(t *testing.T) {
	t.Parallel()
	devs, _ := layout(t, "h1: d1; h2: d2")
	*devs[0].UsedMB = 200 // 80 % free
	*devs[1].UsedMB = 800 // 20 % free
	rng := seeded(5)
	const rounds = 20000
	first := 0
	for range rounds {
		if NewFileDevices(devs, 2, -1, 100, rng)[0].ID == 1 {
			first++
		}
	}
	if share := float64(first) / rounds; share < 0.78 || share > 0.82 {
		t.Errorf("dev1 came first in %.3f of the rounds, want about 0.8", share)
	}
}

// TestDistinctHostsFirst wants no second device of a host before the first of
// another, whatever the cluster.
func TestDistinctHostsFirst(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := aCluster(t)
		n := rapid.IntRange(0, 4).Draw(t, "n")
		got := NewFileDevices(q.Devices, n, -1, q.MinFreeMB, q.Rand)
		able := make(map[schema.HostID]bool)
		disks := 0
		for _, d := range q.Devices {
			if d.TakesFiles(q.MinFreeMB) && d.FreeFraction() > 0 {
				able[d.HostID] = true
				disks++
			}
		}
		if want := min(n, disks); len(got) != want {
			t.Fatalf("%d devices, want %d", len(got), want)
		}
		hosts := make(map[schema.HostID]bool)
		for i, d := range got {
			if hosts[d.HostID] && len(hosts) < len(able) {
				t.Fatalf("device %d of %s shares a host while others have none", i, inOrder(got))
			}
			hosts[d.HostID] = true
			if slices.Contains(got[:i], d) {
				t.Fatalf("%s names a device twice", inOrder(got))
			}
		}
	})
}

func TestReadOrder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		weight int
		util   string
		share  float64 // of being read before a device of weight 100
	}{
		{"equal", 100, "", 0.5},
		{"weight", 300, "", 0.75},
		{"weight 0 counts as 100", 0, "", 0.5},
		{"utilisation wins over weight", 1, "2", 0.5},
		{"busy", 100, "77", 0.2},
		{"fully used", 100, "102", 0.5},
		{"decimals do not count", 100, "12.30", 0.5},
		{"unknown utilisation", 100, "-", 0.5},
		{"negative weight drops out", -1, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			devs, _ := layout(t, "h1: d1; h2: d2")
			devs[0].Weight, devs[0].Utilization = c.weight, c.util
			rng := seeded(9)
			const rounds = 10000
			first := 0
			for range rounds {
				if ReadOrder(devs, rng)[0].ID == 1 {
					first++
				}
			}
			if share := float64(first) / rounds; share < c.share-0.02 || share > c.share+0.02 {
				t.Errorf("first in %.3f of the rounds, want about %.2f", share, c.share)
			}
		})
	}
}

func TestSplitReaders(t *testing.T) {
	t.Parallel()
	devs, _ := layout(t, "h1: d1 d2=drain d3=readonly; h2 (down): d4 d5=dead; h3: d6=away")
	orphan := device(7, host(9))
	orphan.Host = nil
	r := SplitReaders(append(devs, nil, orphan))
	if inOrder(r.First) != "1 3" || inOrder(r.Drain) != "2" || r.Backup == nil || r.Backup.ID != 6 {
		t.Errorf("first %q, drain %q, backup %v", inOrder(r.First), inOrder(r.Drain), r.Backup)
	}
	if r := SplitReaders(devs[:1]); r.Backup != nil {
		t.Errorf("a backup where every copy can be read: dev%d", r.Backup.ID)
	}
}

func BenchmarkNewFileDevices(b *testing.B) {
	var devs []*cluster.Device
	for h := range 50 {
		hst := host(h + 1)
		for d := range 20 {
			devs = append(devs, device(h*20+d+1, hst))
		}
	}
	rng := seeded(1)
	for b.Loop() {
		if len(NewFileDevices(devs, 3, -1, 100, rng)) != 3 {
			b.Fatal("not three devices")
		}
	}
}
