package storaged

import (
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
)

func TestParseCommand(t *testing.T) {
	t.Parallel()
	const uri = "/dev1/0/000/000/0000000042.fid"
	for _, c := range []struct {
		line string
		want command
	}{
		{"", command{verb: verbBlank}},
		{" \t\r", command{verb: verbBlank}},
		{"size " + uri, command{verb: verbSize, word: "size", uri: uri}},
		{"  size   " + uri + " \r", command{verb: verbSize, word: "size", uri: uri}},
		{"size bad", command{word: "size"}},
		{"size", command{word: "size"}},
		{"size " + uri + " x", command{word: "size"}},
		{"SIZE " + uri, command{word: "SIZE"}},
		{"size /a/../b", command{verb: verbBadURI, word: "size"}},
		{"MD5 /a/..", command{verb: verbBadURI, word: "MD5", hash: protocol.HashMD5}},
		{"MD5 " + uri, command{verb: verbDigest, word: "MD5", uri: uri, hash: protocol.HashMD5}},
		{"MD5 " + uri + " fsck", command{verb: verbDigest, word: "MD5", uri: uri, hash: protocol.HashMD5, reason: "fsck"}},
		{"SHA-1 " + uri + " create_close", command{verb: verbDigest, word: "SHA-1", uri: uri, hash: protocol.HashSHA1, reason: "create_close"}},
		{"BLAKE3 " + uri + " fsck", command{verb: verbDigest, word: "BLAKE3", uri: uri, hash: protocol.HashBLAKE3, reason: "fsck"}},
		{"verify " + uri + " -", command{verb: verbVerify, word: "verify", uri: uri}},
		{"verify " + uri + " SHA-1 scrub", command{verb: verbVerify, word: "verify", uri: uri, hash: protocol.HashSHA1, reason: "scrub"}},
		{"verify /a/.. -", command{verb: verbBadURI, word: "verify"}},
		{"verify " + uri, command{word: "verify"}},
		{"verify " + uri + " NONE", command{word: "verify"}},
		{"verify " + uri + " - a b", command{word: "verify"}},
		{"MD5", command{word: "MD5"}},
		{"MD5 bad", command{word: "MD5", hash: protocol.HashMD5}},
		{"MD5 " + uri + " two words", command{word: "MD5"}},
		{"md5 " + uri, command{word: "md5"}},
		{"SHA-256 " + uri, command{word: "SHA-256"}},
		{"watch", command{verb: verbWatch, word: "watch"}},
		{"WATCH", command{verb: verbWatch, word: "WATCH"}},
		{"watch me", command{word: "watch"}},
		{"shutdown", command{verb: verbShutdown, word: "shutdown"}},
		{"shutdown graceful", command{verb: verbShutdown, word: "shutdown", graceful: true}},
		{"shutdown now", command{word: "shutdown"}},
		{"Shutdown", command{word: "Shutdown"}},
		{"server aio_threads = 5", command{verb: verbThreads, word: "server"}},
		{"server aio_threads=100", command{verb: verbThreads, word: "server"}},
		{"server aio_threads = 0", command{word: "server"}},
		{"server aio_threads = 101", command{word: "server"}},
		{"server aio_threads", command{word: "server"}},
		{"server", command{word: "server"}},
		{"server max_conns = 5", command{word: "server"}},
		{"hello world", command{word: "hello"}},
		{"\xff\xfe\x00", command{word: "\xff\xfe\x00"}},
	} {
		if got := parseCommand(c.line); got != c.want {
			t.Errorf("parseCommand(%q) = %+v, want %+v", c.line, got, c.want)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{"", "size /dev1/0/000/000/0000000042.fid", "MD5 /dev1/usage fsck\r", "SHA-1 /x", "watch", "shutdown graceful",
		"server aio_threads = 5", "size /a/../b", "hello world", "size bad", "verify /x -", "verify /x BLAKE3 scrub"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c := parseCommand(line)
		if strings.ContainsAny(c.word, " \t\r") || (c.word == "") != (c.verb == verbBlank) {
			t.Errorf("%q: word %q of verb %d", line, c.word, c.verb)
		}
		if hasURI := c.verb == verbSize || c.verb == verbDigest || c.verb == verbVerify; hasURI != (c.uri != "") {
			t.Errorf("%q: uri %q of verb %d", line, c.uri, c.verb)
		}
		if c.uri != "" && (c.uri[0] != '/' || strings.Contains(c.uri, "..") || strings.ContainsAny(c.uri, " \t\r")) {
			t.Errorf("%q: uri %q", line, c.uri)
		}
		if c.verb == verbDigest && c.hash.New() == nil {
			t.Errorf("%q: no such hash %d", line, c.hash)
		}
		var words []string
		for _, w := range []string{c.word, c.uri, c.reason} {
			if w != "" {
				words = append(words, w)
			}
		}
		if c.verb == verbSize || c.verb == verbDigest {
			if again := parseCommand(strings.Join(words, " ")); again != c {
				t.Errorf("%q: %+v, spelled out %+v", line, c, again)
			}
		}
	})
}
