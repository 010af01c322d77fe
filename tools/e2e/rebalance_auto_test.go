package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

type levelJSON struct {
	Spread       float64
	Bytes, Files int64
	Devices      []struct{ Device, Bytes int64 }
}

// TestRebalanceAuto levels a cluster to which empty devices were added: its
// files were stored while they could not be used. Trackers are killed meanwhile.
// Half of the files have a checksum, of a type that only sealed databases have;
// they keep it, and the content that it is of.
func TestRebalanceAuto(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			if engine == "postgres" {
				scenario(t)
			}
			t.Parallel()
			spec := Spec{Engine: engine, Key: true, Sealed: true}
			if engine == "postgres" {
				spec.Trackers = 2
			}
			c := StartCluster(t, spec)
			c.Do("create_class", "domain="+domain, "class=hashed", "mindevcount=2", "hashtype=BLAKE3")
			for i, dev := range []string{"2", "4", "6"} {
				c.Do("set_state", fmt.Sprintf("host=host%d", i+1), "device="+dev, "state=readonly")
			}
			const files = 60
			body := randomBytes(50_000)
			sum := protocol.Checksum{Type: protocol.HashBLAKE3, Sum: digest(protocol.HashBLAKE3, body)}.String()
			eachParallel(files, 8, func(i int) {
				if err := c.Put(fmt.Sprintf("f%d", i), []string{"", "hashed"}[i%2], body); err != nil {
					t.Error(err)
				}
			})
			for i := range files {
				c.WaitPolicy(fmt.Sprintf("f%d", i), 2)
			}
			c.calm()
			where := make(map[string]string)
			for i := 1; i < files; i += 2 {
				info := c.Do("file_info", "domain="+domain, fmt.Sprintf("key=f%d", i), "devices=1")
				if got := info.Get("checksum"); got != sum {
					t.Fatalf("f%d has the checksum %s; want %s", i, got, sum)
				}
				where[info.Get("key")] = info.Get("devids")
			}
			for i, dev := range []string{"2", "4", "6"} {
				c.Do("set_state", fmt.Sprintf("host=host%d", i+1), "device="+dev, "state=alive")
			}
			c.waitTakeFiles(2, 4, 6)

			// The devices share a filesystem that is large: a part of the spread
			// there is.
			before := mogtoolJSON[levelJSON](t, c, "rebalance", "auto", "--dry-run", "--spread", "0.00000001")
			stored := 2 * files * int64(len(body))
			if before.Spread <= 0 || before.Bytes < stored/3 || before.Bytes > stored || before.Files < files/3 || before.Files > 2*files || len(before.Devices) != 6 {
				t.Fatalf("plan: %+v", before)
			}
			spread := fmt.Sprintf("%.9f", before.Spread/2)
			mogtool(t, c, "rebalance", "auto", "--spread", spread, "--yes", "--no-wait")
			for _, p := range c.Trackers {
				p.Kill()
				p.Start()
			}
			c.waitAnswers()
			within(t, 2*time.Minute, "the run has ended", func() error {
				if p := c.Do("rebalance_progress"); p.True("running") || p.Number("queued_moves") > 0 {
					return fmt.Errorf("%s", p)
				}
				return nil
			})
			code, out, words, err := tool(c, "rebalance", "auto", "--spread", spread, "--yes")
			if err != nil || code != 0 {
				t.Fatalf("exit code %d, %v: %s%s", code, err, out, words)
			}
			if after := mogtoolJSON[levelJSON](t, c, "rebalance", "auto", "--dry-run", "--spread", spread); after.Spread > before.Spread/2 {
				t.Errorf("fills differed by %g points, and by %g at the end", before.Spread, after.Spread)
			}
			if on := c.on(files); len(on) != 6 {
				t.Errorf("copies on devices: %v", on)
			}
			for i := range files {
				key := fmt.Sprintf("f%d", i)
				c.CheckFile(key, c.WaitPolicy(key, 2), body)
			}
			moved := 0
			for key, devs := range where {
				info := c.Do("file_info", "domain="+domain, "key="+key, "devices=1")
				if info.Get("devids") != devs {
					moved++
				}
				if got := info.Get("checksum"); got != sum {
					t.Errorf("%s has the checksum %s after moves; want %s", key, got, sum)
				}
			}
			if moved < 3 {
				t.Errorf("%d files with a checksum were moved", moved)
			}
			if p := mogtoolJSON[progressJSON](t, c, "fsck", "start", "--all", "--wait"); p.Files != files || len(p.Events) != 0 {
				t.Errorf("fsck, by checksums: %+v", p)
			}
			c.waitTakeFiles(1, 2, 3, 4, 5, 6)
		})
	}
}

// digest is the digest of body.
func digest(t protocol.HashType, body []byte) []byte {
	h := t.New()
	_, _ = h.Write(body) // a hash never fails
	return h.Sum(nil)
}
