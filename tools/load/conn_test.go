package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// answering is a tracker that answers each line with what say returns for it.
func answering(t *testing.T, say func(line string) string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				in := bufio.NewReader(nc)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					answer := say(strings.TrimSuffix(line, "\r\n"))
					if _, err := io.WriteString(nc, answer); err != nil || !strings.HasSuffix(answer, "\n") {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestTracker(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	answers := map[string]string{
		"fields domain=a+b&n=-3&key=k%260000000042&path=%3A": "OK fid=12&path=http://h/a&paths=2&nothing=\r\n",
		"empty ": "OK \r\n",
		"bare ":  "OK\n",
		"no ":    "ERR unknown_key no+such%21\r\n",
		"long ":  "OK k=" + long + "\r\n",
		"bad ":   "HELLO\r\n",
		"two ":   "OK a=1\r\nOK a=2\r\n",
		"cut ":   "OK a=",
	}
	addr := answering(t, func(line string) string {
		answer, ok := answers[line]
		if !ok {
			t.Errorf("asked %q", line)
		}
		return answer
	})
	k := NewTracker(addr, 30*time.Second)
	defer k.Close()
	k.Begin("fields")
	k.Text("domain", "a b")
	k.Int("n", -3)
	k.Numbered("key", "k&", 42)
	k.Raw("path", []byte("%3A"))
	reply, err := k.Do()
	if err != nil || reply.Int("fid") != 12 {
		t.Errorf("%q, %v", reply, err)
	}
	do := func(command string) (Reply, error) {
		k.Begin(command)
		return k.Do()
	}
	for _, c := range []struct {
		command string
		want    string
		code    string
		bad     bool
	}{
		{command: "empty"}, {command: "bare"}, {command: "long", want: "k=" + long},
		{command: "no", code: "unknown_key"}, {command: "bad", bad: true}, {command: "two", bad: true},
		{command: "cut", bad: true}, {command: "empty"},
	} {
		got, err := do(c.command)
		refusal, _ := errors.AsType[*protocol.Error](err)
		if string(got) != c.want || (err != nil) != (c.bad || c.code != "") || c.code != "" && refusal.Code != c.code {
			t.Errorf("%s: %.50q, %v", c.command, got, err)
		}
	}
}

func TestReply(t *testing.T) {
	r := Reply("fid=12&path=http://h/a&xfid=3&none=&n=1x")
	for name, want := range map[string]string{"fid": "12", "path": "http://h/a", "xfid": "3", "none": "", "id": "", "pat": "", "missing": ""} {
		if got := string(r.Raw(name)); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	if r.Int("fid") != 12 || r.Int("n") != 0 || r.Int("missing") != 0 {
		t.Error("numbers")
	}
	name, value, rest := r.Cut()
	if string(name) != "fid" || string(value) != "12" || !strings.HasPrefix(string(rest), "path=") {
		t.Errorf("cut into %q, %q and %q", name, value, rest)
	}
	for n, want := range map[int64]string{0: "0000000000", 7: "0000000007", 10: "0000000010", 1e9: "1000000000", 12345678901: "12345678901"} {
		if got := string(AppendPadded(nil, n)); got != want {
			t.Errorf("%d is %q, not %q", n, got, want)
		}
	}
}

// TestWeb: what is put is got, whatever its size; anything else is noticed.
func TestWeb(t *testing.T) {
	var mu sync.Mutex
	files := make(map[string][]byte)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.Method == http.MethodPut:
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			files[r.URL.Path] = b
			w.WriteHeader(http.StatusCreated)
		case files[r.URL.Path] == nil:
			http.NotFound(w, r)
		default:
			w.Header().Set("Content-Length", fmt.Sprint(len(files[r.URL.Path])))
			_, _ = w.Write(files[r.URL.Path]) // a client that sees other bytes hangs up
		}
	}))
	defer srv.Close()
	w := NewWeb(30 * time.Second)
	defer w.Close()
	for i, size := range []int64{0, 1, 7, 8, 9, 4096, small, small + contentHead, small + contentHead + 1, 3 << 20} {
		c, path := NewContent(size), fmt.Appendf(nil, "%s/%d", srv.URL, i)
		if err := w.Put(path, c, int64(i)); err != nil {
			t.Fatal(err)
		}
		if err := w.Get(path, c, int64(i)); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if size == 0 {
			continue
		}
		if err := w.Get(path, c, int64(i+1)); !errors.Is(err, errBytes) {
			t.Errorf("%d bytes of another file: %v", size, err)
		}
		if err := w.Get(path, NewContent(size+1), int64(i)); err == nil {
			t.Errorf("%d bytes are %d", size, size+1)
		}
		if size > contentHead {
			mu.Lock()
			files["/"+fmt.Sprint(i)][size-1] ^= 1
			mu.Unlock()
			if err := w.Get(path, c, int64(i)); !errors.Is(err, errBytes) {
				t.Errorf("%d bytes, of which the last is another: %v", size, err)
			}
		}
		srv.CloseClientConnections() // as a daemon does with one that was idle
	}
	status := new(protocol.StatusError)
	if err := w.Get([]byte(srv.URL+"/none"), NewContent(1), 0); !errors.As(err, &status) || status.Code != http.StatusNotFound {
		t.Errorf("what is not there: %v", err)
	}
	for _, path := range []string{"", "http://", "http://h", "ftp://h/a"} {
		if err := w.Get([]byte(path), NewContent(1), 0); !errors.Is(err, errPath) {
			t.Errorf("path %q: %v", path, err)
		}
	}
}

// TestNoGarbage: the generator shares the machine with what it measures.
func TestNoGarbage(t *testing.T) {
	addr := answering(t, func(string) string { return "OK paths=1&path1=http://h/dev1/0/000/000/0000000001.fid\r\n" })
	k := NewTracker(addr, 30*time.Second)
	defer k.Close()
	ask := func() {
		k.Begin("get_paths")
		k.Text("domain", "photos")
		k.Numbered("key", "some/", 123456)
		reply, err := k.Do()
		if err != nil || !bytes.HasSuffix(reply.Raw("path1"), []byte("0000000001.fid")) {
			t.Fatalf("%q, %v", reply, err)
		}
	}
	ask()
	before := testing.AllocsPerRun(1000, func() {
		k.Begin("get_paths")
		k.Text("domain", "photos")
		k.Numbered("key", "some/", 123456)
	})
	if before != 0 {
		t.Errorf("making a request allocates %v times", before)
	}
}
