package storage

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"testing"

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
