package peers

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

var now = time.UnixMilli(1_700_000_000_000)

func open(t *testing.T, dir string) *volume.Docroot {
	t.Helper()
	d, err := volume.OpenDocroot(dir, volume.Options{Log: zerolog.New(zerolog.NewTestWriter(t))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func load(t *testing.T, d *volume.Docroot) *Peers {
	t.Helper()
	return Load(t.Context(), d, func() time.Time { return now }, zerolog.New(zerolog.NewTestWriter(t)))
}

func order(version int64, of map[protocol.DevID]string) protocol.PeersOrder {
	return protocol.PeersOrder{Version: version, Peers: of}
}

// TestPeersAreKept: the map with the highest version counts, and is known after a
// restart.
func TestPeersAreKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := open(t, dir)
	p := load(t, d)
	if url, ok := p.URL(1); ok {
		t.Fatalf("dev1 is at %s before anybody said so", url)
	}
	ms := now.UnixMilli()
	for _, step := range []struct {
		version, want int64
		url           string
		skew          bool
	}{
		{version: ms, want: ms, url: "http://127.0.0.1:1"},
		{version: ms - 1, want: ms, url: "http://127.0.0.1:1"},
		{version: ms, want: ms, url: "http://127.0.0.1:1"},
		{version: ms + 1, want: ms + 1, url: fmt.Sprintf("http://127.0.0.1:%d", ms+1)},
		{version: ms + protocol.MaxClockSkew.Milliseconds() + 1, url: fmt.Sprintf("http://127.0.0.1:%d", ms+1), skew: true},
	} {
		url := fmt.Sprintf("http://127.0.0.1:%d", step.version)
		if step.version == ms {
			url = "http://127.0.0.1:1"
		}
		got, err := p.Set(t.Context(), order(step.version, map[protocol.DevID]string{1: url, 32767: "http://[::1]:7500"}))
		if errors.Is(err, protocol.ErrClockSkew) != step.skew || !step.skew && (err != nil || got != step.want) {
			t.Errorf("version %d: %d, %v, want %d", step.version, got, err, step.want)
		}
		if url, _ := p.URL(1); url != step.url {
			t.Errorf("after version %d dev1 is at %s, want %s", step.version, url, step.url)
		}
	}
	again := load(t, d)
	for dev, want := range map[protocol.DevID]string{1: fmt.Sprintf("http://127.0.0.1:%d", ms+1), 32767: "http://[::1]:7500"} {
		if url, ok := again.URL(dev); !ok || url != want {
			t.Errorf("after a restart dev%d is at %q, want %q", dev, url, want)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, ".mogile"))
	if err != nil || len(left) != 1 {
		t.Errorf("%v in the docroot, %v", left, err)
	}
	if vols := d.Volumes(); len(vols) != 0 {
		t.Errorf("the daemon's folder is taken for devices: %v", vols)
	}
}

// A map that a daemon with a wrong clock took does not count for ever.
func TestPeersOfTheFuture(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	at := now.AddDate(1, 0, 0)
	p := Load(t.Context(), d, func() time.Time { return at }, zerolog.Nop())
	if _, err := p.Set(t.Context(), order(at.UnixMilli(), map[protocol.DevID]string{1: "http://127.0.0.1:1"})); err != nil {
		t.Fatal(err)
	}
	at = now
	if got, err := p.Set(t.Context(), order(now.UnixMilli(), map[protocol.DevID]string{1: "http://127.0.0.1:2"})); err != nil || got != now.UnixMilli() {
		t.Errorf("%d, %v", got, err)
	}
	if url, _ := load(t, d).URL(1); url != "http://127.0.0.1:2" {
		t.Errorf("dev1 is at %s", url)
	}
}

// A file that is damaged is as none, and is replaced; a docroot that cannot be
// written to does not keep the map from counting.
func TestPeersOnBadDisks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	own := filepath.Join(dir, ".mogile")
	if err := os.Mkdir(own, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "x", fileForm + "\n1\nhttp://127.0.0.1:1,1", fileForm + "\n1\nhttp://127.0.0.1:1,1,1\n", fileForm + "\n0\n", strings.Repeat("x", maxFile+1)} {
		if err := os.WriteFile(filepath.Join(own, fileName), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(own, fileName+"~left"), nil, 0o666); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		d := open(t, dir)
		p := Load(t.Context(), d, func() time.Time { return now }, zerolog.New(&log))
		if _, ok := p.URL(1); ok || !strings.Contains(log.String(), "warn") {
			t.Errorf("%.40q is believed, or nothing is said: %s", text, log.String())
		}
		if _, err := p.Set(t.Context(), order(now.UnixMilli(), map[protocol.DevID]string{1: "http://127.0.0.1:9"})); err != nil {
			t.Error(err)
		}
		if url, _ := load(t, d).URL(1); url != "http://127.0.0.1:9" {
			t.Errorf("after %.40q dev1 is at %q", text, url)
		}
		if names, _ := os.ReadDir(own); len(names) != 1 {
			t.Errorf("left behind: %v", names)
		}
	}

	file := filepath.Join(t.TempDir(), "docroot")
	if err := os.Mkdir(file, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(file, ".mogile"), nil, 0o666); err != nil { // where the folder should be
		t.Fatal(err)
	}
	var log bytes.Buffer
	d := open(t, file)
	p := Load(t.Context(), d, func() time.Time { return now }, zerolog.New(&log))
	for i := range int64(3) {
		if v, err := p.Set(t.Context(), order(now.UnixMilli()+i, map[protocol.DevID]string{1: "http://127.0.0.1:9"})); err != nil || v != now.UnixMilli()+i {
			t.Errorf("%d, %v", v, err)
		}
	}
	if url, _ := p.URL(1); url != "http://127.0.0.1:9" || strings.Count(log.String(), "cannot be kept") != 1 {
		t.Errorf("dev1 is at %q; %s", url, log.String())
	}
	if err := os.Remove(filepath.Join(file, ".mogile")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Set(t.Context(), order(now.UnixMilli()+9, map[protocol.DevID]string{1: "http://127.0.0.1:9"})); err != nil || !strings.Contains(log.String(), "again") {
		t.Errorf("%v; %s", err, log.String())
	}
	if url, _ := load(t, d).URL(1); url != "http://127.0.0.1:9" {
		t.Errorf("dev1 is at %q", url)
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add(formatFile(order(1, map[protocol.DevID]string{1: "http://10.0.0.1:7500", 2: "http://10.0.0.1:7500", 3: "http://[fe80::1]:7500"})))
	f.Add(fileForm + "\n7\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		o, err := parseFile(text)
		if err == nil && formatFile(o) != text {
			t.Errorf("%q is read as %+v", text, o)
		}
	})
}
