package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/storage/storagetest"
)

// sideOf is the MgmtPort for a daemon.
func sideOf(d *storagetest.Daemon) int {
	if d.SidePort == 0 {
		return -1
	}
	return d.SidePort
}

// TestMakes: what every make of storage daemon does is understood, and files
// are copied from each to each.
func TestMakes(t *testing.T) {
	t.Parallel()
	for _, m := range storagetest.Makes() {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			d := storagetest.Start(t, m, storagetest.Options{Devices: []protocol.DevID{1, 2}})
			c := client(t, Options{MgmtPort: sideOf(d)})
			file, empty := d.URL(path1), d.URL("/dev1/0/000/000/0000000043.fid")
			for url, body := range map[string][]byte{file: hello, empty: {}} {
				if err := c.MakeDirs(ctx, url); err != nil {
					t.Fatalf("MakeDirs: %v", err)
				}
				for range 2 { // stored, then replaced
					if err := c.Put(ctx, url, body, nil); err != nil {
						t.Fatalf("Put: %v", err)
					}
				}
				if n, err := c.Size(ctx, url); err != nil || n != int64(len(body)) {
					t.Errorf("Size: %d, %v; want %d", n, err, len(body))
				}
				for _, h := range []protocol.HashType{protocol.HashMD5, protocol.HashSHA1} {
					if got, err := c.Digest(ctx, url, int64(len(body)), h, "fsck"); err != nil || !got.Equal(sumOf(h, body)) {
						t.Errorf("Digest: %v, %v", got, err)
					}
				}
				if got, _, err := c.Get(ctx, url, 100); err != nil || !bytes.Equal(got, body) {
					t.Errorf("Get: %q, %v", got, err)
				}
			}
			err := c.Put(ctx, d.URL("/dev1/0/000/000/0000000044.fid"), hello, http.Header{"Content-Md5": {"AAAAAAAAAAAAAAAAAAAAAA=="}})
			if refused := err != nil; refused != m.ChecksMD5 {
				t.Errorf("a wrong Content-MD5: %v", err)
			}
			missing := d.URL("/dev1/0/000/000/0000000099.fid")
			_, sizeErr := c.Size(ctx, missing)
			_, digestErr := c.Digest(ctx, missing, 11, protocol.HashMD5, "")
			for what, err := range map[string]error{"Size": sizeErr, "Digest": digestErr, "Delete": c.Delete(ctx, missing)} {
				if !errors.Is(err, ErrMissing) {
					t.Errorf("%s of a missing file: %v", what, err)
				}
			}
			for _, other := range storagetest.Makes() {
				dst := storagetest.Start(t, other, storagetest.Options{Devices: []protocol.DevID{2}})
				for url, body := range map[string][]byte{file: hello, empty: {}} {
					to := path2
					if len(body) == 0 {
						to = "/dev2/0/000/000/0000000043.fid"
					}
					if _, err := c.Copy(ctx, Copy{From: url, To: dst.URL(to), Length: int64(len(body)), HashType: protocol.HashSHA1}); err != nil {
						t.Errorf("Copy to %s: %v", other.Name, err)
					}
					if got, ok := dst.File(to); !ok || !bytes.Equal(got, body) {
						t.Errorf("Copy to %s: got %q", other.Name, got)
					}
				}
			}
			if err := c.Delete(ctx, file); err != nil {
				t.Errorf("Delete: %v", err)
			}
			if _, there := d.File(path1); there {
				t.Error("Delete: the file is still there")
			}
		})
	}
}

// TestMisbehaviour plays every trick on every request: within bounded time
// comes the truth, or an error; no copy is called good that is not; and when
// the daemon behaves again, so does everything else.
func TestMisbehaviour(t *testing.T) {
	t.Parallel()
	const patience = 300 * time.Millisecond
	body := pattern(20 << 10)
	md5 := sumOf(protocol.HashMD5, body)
	fid := func(n int) string { return fmt.Sprintf("/dev1/0/000/000/%010d.fid", n) }
	type run struct {
		ctx  context.Context
		c    *Client
		d    *storagetest.Daemon // that misbehaves
		well *storagetest.Daemon
		n    int // of the file that is there
	}
	ops := []struct {
		name string
		// do returns an error, or else what is true: nil where the outcome is right.
		do func(r run) (wrong, err error)
	}{
		{"Get", func(r run) (error, error) {
			ctx, cancel := context.WithTimeout(r.ctx, patience) // as the monitor does
			defer cancel()
			got, _, err := r.c.Get(ctx, r.d.URL("/dev1/usage"), 64<<10)
			if err == nil && string(got) != storagetest.Usage(1, 100_000, 10_000) {
				return fmt.Errorf("got %.100q", got), nil
			}
			return nil, err
		}},
		{"Put", func(r run) (error, error) {
			url := r.d.URL("/dev1/test-write/test-write-1")
			_ = r.c.MakeDirs(r.ctx, url) // as the monitor does
			err := r.c.Put(r.ctx, url, hello, nil)
			if got, _ := r.d.File("/dev1/test-write/test-write-1"); err == nil && !bytes.Equal(got, hello) {
				return fmt.Errorf("stored %q", got), nil
			}
			return nil, err
		}},
		{"Size", func(r run) (error, error) {
			n, err := r.c.Size(r.ctx, r.d.URL(fid(r.n)))
			if err == nil && n != int64(len(body)) {
				return fmt.Errorf("size %d", n), nil
			}
			return nil, err
		}},
		{"Digest", func(r run) (error, error) {
			got, err := r.c.Digest(r.ctx, r.d.URL(fid(r.n)), int64(len(body)), protocol.HashMD5, "")
			if err == nil && !got.Equal(md5) {
				return fmt.Errorf("digest %v", got), nil
			}
			return nil, err
		}},
		{"MakeDirs", func(r run) (error, error) { return nil, r.c.MakeDirs(r.ctx, r.d.URL(fid(r.n))) }},
		{"Copy from", func(r run) (error, error) {
			_, err := r.c.Copy(r.ctx, Copy{From: r.d.URL(fid(r.n)), To: r.well.URL(fid(r.n)), Length: int64(len(body)), Want: md5})
			if got, _ := r.well.File(fid(r.n)); err == nil && !bytes.Equal(got, body) {
				return fmt.Errorf("copied %d bytes", len(got)), nil
			} else if err != nil && got != nil && !bytes.Equal(got, body) {
				return errors.New("something else was stored"), nil
			}
			return nil, err
		}},
		{"Copy to", func(r run) (error, error) {
			_, err := r.c.Copy(r.ctx, Copy{From: r.well.URL(fid(1)), To: r.d.URL(fid(1)), Length: int64(len(body)), Want: md5})
			if got, _ := r.d.File(fid(1)); err == nil && !bytes.Equal(got, body) {
				return fmt.Errorf("copied %d bytes", len(got)), nil
			}
			return nil, err
		}},
		{"Delete", func(r run) (error, error) {
			err := r.c.Delete(r.ctx, r.d.URL(fid(r.n)))
			if _, there := r.d.File(fid(r.n)); err == nil && there {
				return errors.New("the file is there"), nil
			}
			if errors.Is(err, ErrMissing) {
				err = nil
			}
			return nil, err
		}},
	}
	makes := []storagetest.Make{storagetest.Mogstored(), storagetest.Nginx()}
	for i, trick := range storagetest.Tricks(patience / 2) {
		for _, m := range makes[i%2 : i%2+1] {
			t.Run(m.Name+": "+trick.Name, func(t *testing.T) {
				t.Parallel()
				var all sync.WaitGroup
				for i, op := range ops {
					r := run{
						ctx: t.Context(), n: 100 + i,
						d:    storagetest.Start(t, m, storagetest.Options{Devices: []protocol.DevID{1}}),
						well: storagetest.Start(t, storagetest.Cmogstored(), storagetest.Options{Devices: []protocol.DevID{1}}),
						c:    client(t, Options{NodeTimeout: patience, ConnTimeout: patience, CopyTimeout: patience}),
					}
					r.d.Put(fid(r.n), body)
					r.well.Put(fid(1), body)
					all.Go(func() {
						// A first exchange that is as it should be leaves a connection.
						_, err := r.c.Size(r.ctx, r.d.URL(fid(r.n)))
						for tries := 0; err != nil && tries < 10; tries++ { // a busy machine may take its time
							_, err = r.c.Size(r.ctx, r.d.URL(fid(r.n)))
						}
						if err != nil {
							t.Errorf("%s: before: %v", op.name, err)
						}
						r.d.Play(trick.Play)
						began := time.Now()
						wrong, err := op.do(r)
						if took := time.Since(began); took > 20*patience {
							t.Errorf("%s: took %v: %v", op.name, took, err)
						}
						if wrong != nil && (!trick.Lies || strings.HasPrefix(op.name, "Copy")) {
							t.Errorf("%s: %v", op.name, wrong)
						}
						if err != nil && !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrTooLong) && !errors.Is(err, ErrMissing) &&
							!strings.HasPrefix(op.name, "Copy") {
							t.Errorf("%s: blames nobody: %v", op.name, err)
						}
						r.d.Play(nil)
						r.d.Put(fid(r.n), body)
						tries := 0
						for wrong, err = op.do(r); (wrong != nil || err != nil) && tries < 10; tries++ {
							wrong, err = op.do(r)
						}
						if wrong != nil || err != nil {
							t.Errorf("%s: afterwards: %v, %v", op.name, wrong, err)
						}
						if tries > 0 {
							t.Logf("%s: %d tries afterwards", op.name, tries+1)
						}
					})
				}
				all.Wait()
			})
		}
	}
}

// TestSideChannelMisbehaves: whatever is said there, the size and the digest
// are those of the file, or there is an error; and the host is not waited for
// longer than it takes HTTP to answer.
func TestSideChannelMisbehaves(t *testing.T) {
	t.Parallel()
	const patience = 300 * time.Millisecond
	for name, trick := range map[string]func(d *storagetest.Daemon, say func(string), line string) bool{
		"closes": func(*storagetest.Daemon, func(string), string) bool { return false },
		"silent": func(*storagetest.Daemon, func(string), string) bool { return true },
		"old server": func(_ *storagetest.Daemon, say func(string), _ string) bool {
			say("ERROR unknown command\r\n")
			return true
		},
		"refuses": func(_ *storagetest.Daemon, say func(string), _ string) bool {
			say("ERROR: unknown command: x\r\n")
			return true
		},
		"half a line": func(d *storagetest.Daemon, say func(string), l string) bool {
			s := d.SideReply(l)
			say(s[:len(s)/2])
			return false
		},
		"half a line, silence": func(d *storagetest.Daemon, say func(string), l string) bool {
			s := d.SideReply(l)
			say(s[:len(s)/2])
			return true
		},
		"another file": func(_ *storagetest.Daemon, say func(string), _ string) bool {
			say("/dev9/0/000/000/0000000001.fid 5\r\n")
			return true
		},
		"missing": func(_ *storagetest.Daemon, say func(string), l string) bool {
			say(strings.Fields(l)[1] + " -1\r\n")
			return true
		},
		"no number": func(_ *storagetest.Daemon, say func(string), l string) bool {
			say(strings.Fields(l)[1] + " \r\n")
			return true
		},
		"negative": func(_ *storagetest.Daemon, say func(string), l string) bool {
			say(strings.Fields(l)[1] + " -5\r\n")
			return true
		},
		"overflow": func(_ *storagetest.Daemon, say func(string), l string) bool {
			say(strings.Fields(l)[1] + " 99999999999999999999\r\n")
			return true
		},
		"upper case digest": func(d *storagetest.Daemon, say func(string), l string) bool {
			say(strings.ToUpper(d.SideReply(l)) + "\r\n")
			return true
		},
		"endless line": func(_ *storagetest.Daemon, say func(string), _ string) bool {
			for range 100 {
				say(strings.Repeat("x", 1<<10))
			}
			return true
		},
		"binary": func(_ *storagetest.Daemon, say func(string), _ string) bool { say("\x00\xff\x00\n"); return true },
		"read error": func(_ *storagetest.Daemon, say func(string), l string) bool {
			say("ERR read " + strings.Fields(l)[1] + " at 0 failed\r\n")
			return true
		},
		"one line too many": func(d *storagetest.Daemon, say func(string), l string) bool {
			s := d.SideReply(l) + "\r\n"
			say(s + strings.Fields(l)[1] + " 7\r\n")
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := storagetest.Start(t, storagetest.Cmogstored(), storagetest.Options{Devices: []protocol.DevID{1}})
			d.Put(path1, hello)
			d.PlaySide(func(w io.Writer, line string) bool {
				return trick(d, func(s string) { _, _ = w.Write([]byte(s)) }, line)
			})
			c := client(t, Options{MgmtPort: d.SidePort, NodeTimeout: patience})
			for range 3 {
				began := time.Now()
				if n, err := c.Size(t.Context(), d.URL(path1)); err != nil || n != 11 {
					t.Errorf("Size: %d, %v", n, err)
				}
				if got, err := c.Digest(t.Context(), d.URL(path1), 11, protocol.HashMD5, ""); err != nil || !got.Equal(sumOf(protocol.HashMD5, hello)) {
					t.Errorf("Digest: %v, %v", got, err)
				}
				if took := time.Since(began); took > 10*patience {
					t.Errorf("took %v", took)
				}
			}
		})
	}
}

// TestCopyDoesNotBelieveTheSideChannel: what a reader would get over HTTP
// decides about a copy.
func TestCopyDoesNotBelieveTheSideChannel(t *testing.T) {
	t.Parallel()
	src := storagetest.Start(t, storagetest.Nginx(), storagetest.Options{Devices: []protocol.DevID{1}})
	src.Put(path1, hello)
	dst := storagetest.Start(t, storagetest.Mogstored(), storagetest.Options{Devices: []protocol.DevID{2}})
	dst.Play(func(x *storagetest.Exchange) bool {
		if x.Method == http.MethodPut {
			x.Body()
			dst.Put(x.URL.Path, hello[:5])
			x.Send(storagetest.Answer{Status: 200})
			return true
		}
		return false
	})
	dst.PlaySide(func(w io.Writer, line string) bool {
		_, err := fmt.Fprintf(w, "%s 11\r\n", strings.Fields(line)[1])
		return err == nil
	})
	c := client(t, Options{MgmtPort: dst.SidePort})
	_, err := c.Copy(t.Context(), Copy{From: src.URL(path1), To: dst.URL(path2), Length: 11})
	if e, ok := errors.AsType[*CopyError](err); !ok || e.Side != DestError {
		t.Errorf("half a copy: %v", err)
	}
}

// TestDirectoriesThatWentAreMadeAgain: a disk that was replaced has none of
// those that are remembered.
func TestDirectoriesThatWentAreMadeAgain(t *testing.T) {
	t.Parallel()
	d := storagetest.Start(t, storagetest.Nginx(), storagetest.Options{Devices: []protocol.DevID{1, 2}})
	c := client(t, Options{})
	ctx := t.Context()
	d.Put(path1, hello)
	cp := Copy{From: d.URL(path1), To: d.URL(path2), Length: 11}
	test := d.URL("/dev2/test-write/test-write-1")
	for range 2 {
		if _, err := c.Copy(ctx, cp); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.MakeDirs(ctx, test), c.Put(ctx, test, hello, nil)); err != nil {
			t.Fatal(err)
		}
	}
	d.Wipe()
	d.Put(path1, hello)
	var status *StatusError
	if err := errors.Join(c.MakeDirs(ctx, test), c.Put(ctx, test, hello, nil)); !errors.As(err, &status) || status.Status != 500 {
		t.Errorf("the first PUT: %v", err)
	}
	if err := errors.Join(c.MakeDirs(ctx, test), c.Put(ctx, test, hello, nil)); err != nil {
		t.Errorf("the next PUT: %v", err)
	}
	if _, err := c.Copy(ctx, cp); err != nil {
		t.Errorf("a copy: %v", err)
	}
	d.Wipe()
	d.Put(path1, hello)
	if _, err := c.Copy(ctx, cp); err == nil {
		t.Error("a copy without directories") // nobody could know
	}
	if _, err := c.Copy(ctx, cp); err != nil {
		t.Errorf("the next copy: %v", err)
	}
}

// TestDigestPatience: the time a daemon is given grows with the file, however
// large.
func TestDigestPatience(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		size   int64
		reason string
		want   time.Duration
	}{
		{-1, "", 2 * time.Second},
		{0, "", 2 * time.Second},
		{2 << 20, "", 3 * time.Second},
		{3 << 20, "replicate", 3500 * time.Millisecond},
		{3 << 20, "fsck", 3600*time.Second + 3500*time.Millisecond},
		{1 << 40, "", (1<<19 + 2) * time.Second},
		{1 << 62, "fsck", maxPatience},
	} {
		if got := digestPatience(v.size, v.reason, 2*time.Second); got != v.want {
			t.Errorf("%d bytes %q: %v, want %v", v.size, v.reason, got, v.want)
		}
	}
}

// TestCopyOfATrickle: a source that sends a byte now and then does not keep a
// worker for ever.
func TestCopyOfATrickle(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]string{"source": "body dribbles", "destination": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := storagetest.Start(t, storagetest.Nginx(), storagetest.Options{Devices: []protocol.DevID{1}})
			src.Put(path1, pattern(1000))
			dst := storagetest.Start(t, storagetest.Nginx(), storagetest.Options{Devices: []protocol.DevID{2}})
			tricks := storagetest.Tricks(20 * time.Millisecond)
			if i := slices.IndexFunc(tricks, func(k storagetest.Trick) bool { return k.Name == play }); i >= 0 {
				src.Play(tricks[i].Play)
			} else {
				dst.Play(func(x *storagetest.Exchange) bool { return x.Method == http.MethodPut && storagetest.Silence(x) })
			}
			c := client(t, Options{CopyTimeout: 300 * time.Millisecond})
			began := time.Now()
			_, err := c.Copy(t.Context(), Copy{From: src.URL(path1), To: dst.URL(path2), Length: 1000})
			if e, ok := errors.AsType[*CopyError](err); !ok || time.Since(began) > 8*time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			} else if want := map[string]Side{"source": SourceError, "destination": DestError}[name]; e.Side != want {
				t.Errorf("blames %v: %v", e.Side, err)
			}
		})
	}
}
