package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestShardsAreChecked has a file's shards missing, rotten, too few and back again,
// and copies and shards lie where they should not: fsck, scrub and strays find
// each, and in the end all is well.
func TestShardsAreChecked(t *testing.T) {
	scenario(t)
	t.Parallel()
	dir := t.TempDir()
	ports := freePorts(t, 2, "127.0.0.1", "127.0.0.2", "127.0.0.3")
	addr := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 2, "127.0.0.1"))
	p := start(t, "dev", "dev", "--listen", addr, "--storage-port", fmt.Sprint(ports), "--dir", filepath.Join(dir, "cluster"))
	waitReady(t, p, 1)
	mogtool := binary + " mogtool --trackers " + addr + " --domain test "
	film := filepath.Join(dir, "film")
	if err := os.WriteFile(film, bytes.Repeat([]byte("the quick brown fox\n"), 100_000), 0o666); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	shell(t, mogtool+"put --class ec --wait 30s "+film+" film")
	whole := func() {
		t.Helper()
		shell(t, mogtool+"get film - | cmp - "+film)
	}
	picture := func() shardPicture {
		var f shardPicture
		must(json.Unmarshal([]byte(shell(t, mogtool+"--json info film")), &f))
		return f
	}
	healed := func() {
		t.Helper()
		within(t, 60*time.Second, "all shards again", func() error {
			if f := picture(); f.Shards.Readable != 6 || f.Shards.Devices != 2 {
				return fmt.Errorf("%+v", f)
			}
			return nil
		})
		whole()
	}
	path := func(shard int, ext string) string {
		s := picture().Shards.List[shard]
		found, err := filepath.Glob(filepath.Join(dir, "cluster", s.Host, fmt.Sprintf("dev%d", s.Device), "0/000/000", "*.ec"))
		if err != nil || len(found) != 1 {
			t.Fatalf("shard %d on dev%d: %v, %v", shard, s.Device, found, err)
		}
		return strings.TrimSuffix(found[0], ".ec") + ext
	}
	// check runs fsck or scrub over all, and has found these.
	check := func(run string, codes ...string) {
		t.Helper()
		shell(t, mogtool+"fsck clearlog")
		out := shell(t, mogtool+"fsck "+run+" --all --wait")
		log := shell(t, mogtool+"fsck log")
		for _, code := range []string{"MISS", "BSUM", "BLEN", "FOND", "GONE", "SRCH", "REPL", "POVI"} {
			wanted := false
			for _, c := range codes {
				wanted = wanted || c == code
			}
			if code == "POVI" && slices.Contains(codes, "MISS") {
				continue // a check for a read that noticed may have been quicker
			}
			if strings.Contains(log, " "+code+" ") != wanted {
				t.Errorf("%s finds %v, want %v:\n%s%s", run, code, codes, out, log)
			}
		}
	}
	spoil := func(name string) {
		b, err := os.ReadFile(name)
		must(err)
		b[len(b)/2] ^= 1
		must(os.WriteFile(name, b, 0o666))
	}

	if f := picture(); len(f.Shards.List) != 6 || f.Shards.Hosts != 1 {
		t.Fatalf("%+v", f)
	}
	check("start")
	check("scrub")

	// One is missing, and one has a bad block.
	must(os.Remove(path(1, ".ec")))
	check("start", "MISS", "REPL")
	healed()
	spoil(path(4, ".ec"))
	whole()
	check("scrub", "BSUM", "REPL")
	healed()
	check("scrub")

	// Three are away: nothing goes, and the file is back with the first of them.
	names := []string{path(0, ".ec"), path(2, ".ec"), path(5, ".ec")}
	for _, name := range names {
		must(os.Rename(name, name+".away"))
	}
	check("start", "MISS", "SRCH", "GONE")
	if f := picture(); f.Shards.Readable != 6 {
		t.Errorf("shards were forgotten: %+v", f)
	}
	must(os.Rename(names[1]+".away", names[1]))
	whole()
	check("start", "MISS", "REPL")
	healed()

	// Two have changed places.
	a, b := path(0, ".ec"), path(3, ".ec")
	must(os.Rename(a, a+".moved"))
	must(os.Rename(b, a))
	must(os.Rename(a+".moved", b))
	check("start", "FOND")
	whole()
	check("scrub")

	// A copy beside a shard, and a shard of no file.
	body, err := os.ReadFile(film)
	must(err)
	must(os.WriteFile(path(2, ".fid"), body, 0o666))
	out := shell(t, mogtool+"fsck strays --age 0s --delete --yes --up-to 100")
	if n := strings.Count(out, ".fid  trashed"); n != 1 || strings.Contains(out, ".ec ") {
		t.Errorf("strays:\n%s", out)
	}
	check("scrub")
	whole()

	// What it occupies.
	if out := shell(t, mogtool+"stats"); !strings.Contains(out, "52 %") && !strings.Contains(out, "51 %") {
		t.Errorf("stats:\n%s", out)
	}
}
