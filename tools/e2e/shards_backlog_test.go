package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// busy is how long this machine's processors have worked, and been there, in ticks.
func busy(t testing.TB) (worked, all int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Skip(err) // not Linux
	}
	var name string
	var n [8]int64 // user, nice, system, idle, iowait, irq, softirq, steal
	if _, err := fmt.Sscan(string(text), &name, &n[0], &n[1], &n[2], &n[3], &n[4], &n[5], &n[6], &n[7]); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	for _, ticks := range n {
		all += ticks
	}
	return all - n[3] - n[4] - n[7], all - n[7]
}

// drainQueue has trackers work at what was queued for replication while they had no
// workers for it, and reports MB/s of n bytes, files a second, and how busy this
// machine was.
func (c *Cluster) drainQueue(b *testing.B, what string, files int, n int64) {
	b.Helper()
	db := c.database() // one session: to make one costs more than many files
	defer db.Close()
	db.SetMaxOpenConns(1)
	worked, all := busy(b)
	began := time.Now()
	c.want(16, "replicate")
	within(b, 10*time.Minute, "nothing is queued for replication", func() error {
		var n int
		if err := db.QueryRow("SELECT count(*) FROM file_to_replicate").Scan(&n); err != nil || n > 0 {
			return fmt.Errorf("%d rows, %w", n, err)
		}
		return nil
	})
	took := time.Since(began).Seconds()
	worked2, all2 := busy(b)
	b.ReportMetric(float64(n)/1e6/took, what+"-MB/s")
	b.ReportMetric(float64(files)/took, what+"-files/s")
	b.ReportMetric(100*float64(worked2-worked)/float64(all2-all), what+"-%busy")
}

// BenchmarkShardsBacklog has trackers' workers encode files, and make the shards of a
// device that was lost anew, in 6+3 shards on twelve devices of six hosts, without
// flushes.
func BenchmarkShardsBacklog(b *testing.B) {
	for _, s := range []struct{ files, size int }{{192, 16 << 20}, {3000, 256 << 10}} {
		b.Run(fmt.Sprintf("%dx%dKiB", s.files, s.size>>10), func(b *testing.B) {
			for range b.N {
				shardsBacklog(b, s.files, s.size)
			}
		})
	}
}

func shardsBacklog(b *testing.B, files, size int) {
	b.Helper()
	c := StartCluster(b, Spec{Engine: "postgres", Hosts: 6, Devices: 2, Key: true, HostArgs: []string{"--durability=none"}})
	c.Do("create_class", "domain="+domain, "class=ec", "mindevcount=2", "replpolicy=ErasureCode(6,3,min=1K)")
	c.want(0, "replicate")
	body := randomBytes(size)
	eachParallel(files, 8, func(i int) {
		if err := c.Put(fmt.Sprint(i), "ec", body); err != nil {
			b.Error(err)
		}
	})
	if b.Failed() {
		b.FailNow()
	}
	c.drainQueue(b, "encode", files, int64(files)*int64(size))

	c.want(0, "replicate")
	const lost = protocol.DevID(1)
	n := c.wipe(lost)
	shards := c.count("SELECT count(*) FROM file_on WHERE devid = 1")
	c.Do("set_state", "host="+c.hostOf(lost).Name, "device="+lost.String(), "state=dead")
	within(b, 5*time.Minute, "what was on the device is queued", func() error {
		if n := c.count("SELECT count(*) FROM file_on WHERE devid = 1"); n > 0 {
			return fmt.Errorf("%d shards are recorded there", n)
		}
		return nil
	})
	c.drainQueue(b, "rebuild", shards, n)
	if n := c.count("SELECT count(*) FROM file_on"); n != 9*files {
		b.Errorf("%d shards of %d files", n, files)
	}
}
