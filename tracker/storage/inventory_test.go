package storage

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

// contentSum is the sum that a storage daemon of ours keeps.
func contentSum(body []byte) protocol.ContentSum {
	return protocol.ContentSum{Length: int64(len(body)), CRC32C: crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))}
}

// TestVerify: a daemon of ours tells by its side channel, others are read from.
func TestVerify(t *testing.T) {
	t.Parallel()
	found := contentSum(hello)
	other := contentSum(hello[1:])
	md5 := sumOf(protocol.HashMD5, hello)
	say := func(answer string) func(io.Writer, string) bool {
		return func(w io.Writer, line string) bool {
			fmt.Fprintf(w, "%s\r\n", strings.ReplaceAll(answer, "URI", strings.Fields(line)[1]))
			return true
		}
	}
	whole := protocol.Content{Found: found, Digest: md5}
	for _, tt := range []struct {
		name   string
		reply  func(io.Writer, string) bool // nil: as mogstored does
		none   bool                         // there is no side channel
		header string                       // Mogile-Sum
		typ    protocol.HashType
		size   int64
		want   Verified
		err    error
		gets   int
	}{
		{name: "ours", reply: say("URI found=" + found.String() + " stored=" + found.String() + " MD5=" + md5.Hex()), typ: protocol.HashMD5, size: 11,
			want: Verified{Content: protocol.Content{Found: found, Stored: &found, Digest: md5}}},
		{name: "ours, no digest", reply: say("URI found=" + found.String() + " stored=-"), size: 11, want: Verified{Content: protocol.Content{Found: found}}},
		{name: "ours, another length", reply: say("URI found=" + other.String() + " stored=" + found.String()), size: 11,
			want: Verified{Content: protocol.Content{Found: other, Stored: &found}}},
		{name: "ours, unreadable", reply: say("URI unreadable=" + other.String()), size: 11,
			want: Verified{Content: protocol.Content{Unreadable: true, Found: other}}},
		{name: "ours, cannot tell", reply: say("ERR verify URI failed"), size: 11, err: ErrUnreachable},
		{name: "ours, missing, but not over HTTP", reply: say("URI missing"), size: 11, err: ErrUnreachable},
		{name: "ours, another digest", reply: say("URI found=" + found.String() + " stored=- SHA-1=" + sumOf(protocol.HashSHA1, hello).Hex()), typ: protocol.HashMD5, size: 11,
			want: Verified{Content: whole}, gets: 1},
		{name: "ours, nonsense", reply: say("URI found=1 stored=-"), size: 11, want: Verified{Content: protocol.Content{Found: found}}, gets: 1},
		{name: "ours, its side channel away", none: true, header: "11 " + found.String()[3:], size: 11,
			want: Verified{Content: protocol.Content{Found: found, Stored: &found}}, gets: 1},
		{name: "mogstored", typ: protocol.HashMD5, size: 11, want: Verified{Content: protocol.Content{Digest: md5}, DigestOnly: true}},
		{name: "mogstored, no digest", size: 11, want: Verified{Content: protocol.Content{Found: found}}, gets: 1},
		{name: "nginx", none: true, typ: protocol.HashMD5, size: 11, want: Verified{Content: whole}, gets: 1},
		{name: "nginx, size not known", none: true, size: -1, want: Verified{Content: protocol.Content{Found: found}}, gets: 1},
		{name: "nginx, another length", none: true, size: 12, err: ErrUnreachable, gets: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t)
			url := d.put(path1, hello)
			if tt.header != "" {
				d.answer(func(w http.ResponseWriter, r *http.Request) bool {
					if r.Header.Get("Mogile-Want") == "sum" {
						w.Header().Set("Mogile-Sum", tt.header)
					}
					return false
				})
			}
			o := Options{}
			if !tt.none {
				reply := tt.reply
				if reply == nil {
					reply = d.speak
				}
				o.MgmtPort = startSide(t, reply).port
			}
			got, err := client(t, o).Verify(t.Context(), url, tt.size, tt.typ, "scrub")
			if diff := cmp.Diff(tt.want, got); diff != "" || !errors.Is(err, tt.err) {
				t.Errorf("%v\n%s", err, diff)
			}
			if n := d.count("GET"); n != tt.gets {
				t.Errorf("%d GET, want %d", n, tt.gets)
			}
		})
	}
	// Missing is what HTTP says is missing.
	d := startDaemon(t)
	for _, o := range []Options{{}, {MgmtPort: startSide(t, say("URI missing")).port}, {MgmtPort: startSide(t, d.speak).port}} {
		if got, err := client(t, o).Verify(t.Context(), d.URL+path1, 11, protocol.HashMD5, ""); !errors.Is(err, ErrMissing) {
			t.Errorf("missing: %v, %v", got, err)
		}
	}
}

func FuzzParseVerifyReply(f *testing.F) {
	for _, s := range []string{path1 + " missing", path1 + " found=9:e3069283 stored=-", "ERR verify " + path1 + " failed", "ERROR: unknown command: verify",
		path1 + " found=0:00000000 stored=9:e3069283 MD5=d41d8cd98f00b204e9800998ecf8427e"} {
		f.Add(s, int16(1))
	}
	f.Fuzz(func(t *testing.T, line string, typ int16) {
		content, err := parseVerifyReply(path1, protocol.HashType(typ), line)
		if err == nil && path1+" "+content.String() != line {
			t.Errorf("%q is read as %v", line, content)
		}
	})
}

// orders has d answer orders with lines.
func (d *daemon) orders(answer func(o protocol.SignedOrder) string) {
	d.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return true
		}
		o, err := protocol.ParseOrder(body)
		if err != nil || r.URL.Path != protocol.OrderPath+o.Verb {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		_, _ = io.WriteString(w, answer(o))
		return true
	})
}

func TestList(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	hostport := strings.TrimPrefix(d.URL, "http://")
	c := client(t, Options{Key: []byte("key")})
	order := protocol.ListOrder{Dev: 7, After: "0000000.3", Limit: 2}
	at := time.Unix(1_700_000_000, 1)
	files := []protocol.StoredFile{{FID: 4, Size: 1, ModTime: at}, {FID: 5, Size: 0, ModTime: at}}
	item := func(f protocol.StoredFile) string {
		return string(protocol.AnswerLine{Kind: protocol.AnswerItem, Fields: protocol.Args{{Name: "file", Value: f.String()}}}.Append(nil))
	}
	end := protocol.Listing{Next: "0000000.5", Foreign: 1, Now: at.Truncate(time.Millisecond), Cluster: "c", UUID: "u"}
	ok := string(protocol.AnswerLine{Kind: protocol.AnswerOK, Fields: end.Args()}.Append(nil))
	d.orders(func(o protocol.SignedOrder) string {
		if got, err := protocol.ParseListOrder(o.Args); err != nil || got != order || o.Verify([][]byte{[]byte("key")}, time.Now()) != nil {
			t.Errorf("ordered %+v, %v", got, err)
		}
		return item(files[0]) + "PROGRESS done=1\n" + item(files[1]) + ok
	})
	want := end
	want.Files = files
	got, err := c.List(t.Context(), hostport, order)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, tt := range []struct {
		name, answer string
		want         error
	}{
		{"more than was asked for", item(files[0]) + item(files[1]) + item(files[0]) + ok, ErrUnreachable},
		{"nonsense", "ITEM file=1\n" + ok, ErrUnreachable},
		{"an end that says nothing", "OK \n", ErrUnreachable},
		{"no end", item(files[0]), ErrUnreachable},
		{"a refusal", "ERR device_refused not+ours \n", protocol.Err("device_refused")},
		{"a signature that is not taken", "ERR bad_signature no \n", ErrNoOrders},
	} {
		d.orders(func(protocol.SignedOrder) string { return tt.answer })
		if got, err := c.List(t.Context(), hostport, order); !errors.Is(err, tt.want) || len(got.Files) > 0 {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
	d.answer(nil) // another make
	if _, err := c.List(t.Context(), hostport, order); !errors.Is(err, ErrNoOrders) {
		t.Errorf("of another make: %v", err)
	}
}

func TestTrash(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	hostport := strings.TrimPrefix(d.URL, "http://")
	c := client(t, Options{Key: []byte("key")})
	order := protocol.TrashOrder{Dev: 7, Files: []protocol.StoredFile{{FID: 4, Size: 1, ModTime: time.Unix(1, 0)}, {FID: 5}}}
	d.orders(func(o protocol.SignedOrder) string {
		if got, err := protocol.ParseTrashOrder(o.Args); err != nil || !cmp.Equal(got, order) {
			t.Errorf("ordered %+v, %v", got, err)
		}
		return "ITEM fid=4&result=trashed&to=x\nITEM nonsense\nOK \n"
	})
	want := map[protocol.FID]protocol.TrashResult{4: {FID: 4, What: protocol.Trashed, To: "x"}}
	got, err := c.Trash(t.Context(), hostport, order)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	// What is known before it broke off is told.
	d.orders(func(protocol.SignedOrder) string { return "ITEM fid=4&result=trashed&to=x\n" })
	got, err = c.Trash(t.Context(), hostport, order)
	if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v\n%s", err, diff)
	}
}
