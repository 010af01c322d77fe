package mogile

import (
	"bytes"
	"crypto/md5"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
)

// shardsOf makes shards of a file, and writes each below a docroot.
func shardsOf(t *testing.T, dir string, encoding uint64, content []byte) (names []string) {
	t.Helper()
	sum := md5.Sum(content)
	h := erasure.Header{
		ShardSet: protocol.ShardSet{FID: 1234567, Encoding: encoding, K: 3, M: 2, Block: 1000, Length: int64(len(content))},
		Modified: time.Unix(1700000000, 0), CRC32C: crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli)),
		Digest: protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]},
	}
	shards := make([]bytes.Buffer, h.Shards())
	err := erasure.New(erasure.Options{}).Encode(t.Context(), h, erasure.From(bytes.NewReader(content)), func(parts [][]byte, done func(bool)) error {
		for i, p := range parts {
			shards[i].Write(p)
		}
		done(true)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range shards {
		name := filepath.Join(dir, "host"+strconv.Itoa(i%2), h.FID.ShardPath(protocol.DevID(i+1)))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, shards[i].Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// TestRecoverShards puts a file together, of what there is.
func TestRecoverShards(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("all that is left of it. "), 1000)
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string, shards []string) (places []string)
		code  int
		says  string
	}{
		"all": {func(_ *testing.T, dir string, _ []string) []string {
			return []string{filepath.Join(dir, "host0"), filepath.Join(dir, "host1")}
		}, ExitDone, "24000 bytes from 5 of 3+2 shards"},
		"devices": {func(_ *testing.T, dir string, shards []string) []string {
			return []string{filepath.Join(dir, "host0/dev1"), filepath.Join(dir, "host0/dev5"), shards[3]}
		}, ExitDone, "from 3 of 3+2 shards"},
		"rot": {func(t *testing.T, dir string, shards []string) []string {
			for i, off := range []int64{4100, 7000} {
				f, err := os.OpenFile(shards[i], os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt([]byte("!"), off); err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			return []string{filepath.Join(dir, "host0"), filepath.Join(dir, "host1")}
		}, ExitDone, "shard 1 is damaged"},
		"a copy of a shard": {func(t *testing.T, dir string, shards []string) []string {
			b, err := os.ReadFile(shards[0])
			if err != nil {
				t.Fatal(err)
			}
			b[5000]++
			flat := filepath.Join(dir, "flat")
			if err := os.MkdirAll(flat, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(flat, filepath.Base(shards[0])), b, 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{flat, filepath.Join(dir, "host0")}
		}, ExitDone, "from 3 of 3+2 shards"},
		"two encodings": {func(t *testing.T, dir string, shards []string) []string {
			other := shardsOf(t, t.TempDir(), 99, content)
			return []string{other[0], other[1], shards[0], shards[1], shards[2]}
		}, ExitDone, "encoding 0000000000000063"},
		"too few": {func(_ *testing.T, dir string, _ []string) []string { return []string{filepath.Join(dir, "host1")} }, ExitFailed, "2 shards of 3+2: too few shards can be read"},
		"none":    {func(t *testing.T, dir string, _ []string) []string { return []string{t.TempDir()} }, ExitFailed, "no shard was found"},
		"nowhere": {func(t *testing.T, dir string, _ []string) []string { return []string{filepath.Join(dir, "x")} }, ExitFailed, "no such file"},
		"no DIR":  {func(t *testing.T, dir string, _ []string) []string { return nil }, ExitUsage, "name the directories"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			places := c.spoil(t, dir, shardsOf(t, dir, 7, content))
			out := filepath.Join(dir, "out")
			run := func() (int, string) {
				code, said, errs := mogileRun(t, append([]string{"storaged", "recover-shards", "--fid", "1234567", "--out", out}, places...)...)
				return code, said + errs
			}
			code, said := run()
			if code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("exit code %d, want %d and %q:\n%s", code, c.code, c.says, said)
			}
			got, err := os.ReadFile(out)
			if c.code != ExitDone {
				if err == nil {
					t.Error("there is a file")
				}
				return
			}
			info, statErr := os.Stat(out)
			if err != nil || statErr != nil || !bytes.Equal(got, content) || !info.ModTime().Equal(time.Unix(1700000000, 0)) {
				t.Errorf("error %v, same %v", err, bytes.Equal(got, content))
			}
			if code, said := run(); code != ExitFailed || !strings.Contains(said, "is there already") {
				t.Errorf("again: exit code %d: %s", code, said)
			}
			if left, _ := filepath.Glob(out + ".part*"); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}
