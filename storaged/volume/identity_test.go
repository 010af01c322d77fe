package volume

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

const uuid = "0d6dcb6c-3b4c-4d63-9a2e-2f3f0c6d7d55"

func TestParseIdentity(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, text string
		want       Identity
		err        string
	}{
		{"whole", "mogile device 1\ncluster prod-1\ndevice 7\nuuid " + uuid + "\n", Identity{"prod-1", 7, uuid}, ""},
		{"no cluster", "mogile device 1\ndevice 7\nuuid " + uuid + "\n", Identity{"", 7, uuid}, ""},
		{"empty", "", Identity{}, "not understood"},
		{"zeros", strings.Repeat("\x00", 80), Identity{}, "not understood"},
		{"later version", "mogile device 2\nnew things\n", Identity{}, "version \"2\""},
		{"cut off", "mogile device 1\ncluster prod-1\ndevice 7\nuuid 0d6d", Identity{}, "not understood"},
		{"no newline", "mogile device 1\ndevice 7\nuuid " + uuid, Identity{}, "not understood"},
		{"more", "mogile device 1\ndevice 7\nuuid " + uuid + "\nx\n", Identity{}, "not understood"},
		{"device 0", "mogile device 1\ndevice 0\nuuid " + uuid + "\n", Identity{}, "not understood"},
		{"leading zero", "mogile device 1\ndevice 07\nuuid " + uuid + "\n", Identity{}, "not understood"},
		{"upper case", "mogile device 1\ndevice 7\nuuid " + strings.ToUpper(uuid) + "\n", Identity{}, "not understood"},
		{"bad cluster", "mogile device 1\ncluster a b\ndevice 7\nuuid " + uuid + "\n", Identity{}, "not understood"},
	} {
		got, err := ParseIdentity(c.text)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		found   Identity
		dev     protocol.DevID
		cluster string
		want    Identity
		err     string
	}{
		{"same", Identity{"a", 7, uuid}, 7, "a", Identity{"a", 7, uuid}, ""},
		{"cluster not known here", Identity{"a", 7, uuid}, 7, "", Identity{"a", 7, uuid}, ""},
		{"cluster not known there", Identity{"", 7, uuid}, 7, "a", Identity{"a", 7, uuid}, ""},
		{"another device", Identity{"a", 8, uuid}, 7, "a", Identity{}, "folder dev7 holds device 8"},
		{"another cluster", Identity{"b", 7, uuid}, 7, "a", Identity{}, `belongs to cluster "b", not "a"`},
	} {
		got, err := c.found.judge(c.dev, c.cluster)
		if c.err != "" {
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestNewUUID(t *testing.T) {
	t.Parallel()
	a, b := newUUID(), newUUID()
	if !validUUID(a) || !validUUID(b) || a == b || a[14] != '4' {
		t.Errorf("%s, %s", a, b)
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("mogile device 1\ncluster prod-1\ndevice 7\nuuid " + uuid + "\n")
	f.Add("mogile device 1\ndevice 32767\nuuid " + uuid + "\n")
	f.Add("mogile device 2\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseIdentity(text)
		if err == nil && id.String() != text {
			t.Errorf("%q is written as %q", text, id)
		}
	})
}

func TestSum(t *testing.T) {
	t.Parallel()
	s := Sum{}.Add([]byte("1234")).Add([]byte("56789"))
	if got, want := s.String(), "1 crc32c=e3069283 length=9"; got != want { // the check value of CRC-32C
		t.Errorf("%q, want %q", got, want)
	}
	for _, bad := range []string{
		"", "1", "2 crc32c=e3069283 length=9", "1 crc32c=e3069283 length=-9", "1 crc32c=e3069283 length=09",
		"1 crc32c=E3069283 length=9", "1 crc32c=3069283 length=9", "1 crc32c=e3069283 length=9 ", "1 crc32c=e3069283 length=99999999999999999999",
	} {
		if s, err := ParseSum(bad); err == nil {
			t.Errorf("ParseSum(%q) = %v", bad, s)
		}
	}
}

func FuzzParseSum(f *testing.F) {
	f.Add("1 crc32c=e3069283 length=9")
	f.Add("1 crc32c=00000000 length=0")
	f.Add("1 crc32c= length=")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSum(text)
		if err == nil && s.String() != text {
			t.Errorf("%q is written as %q", text, s)
		}
	})
}

func FuzzCheckName(f *testing.F) {
	for _, name := range []string{"0/000/000/0000000042.fid", "a/../b", "/", "", ".mogile/x", "test-write/test-write-7", "usage", "a/", "//"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if checkName(name) != nil {
			return
		}
		for i, part := range strings.Split(name, "/") {
			if part == "" || part == "." || part == ".." || i == 0 && part == private {
				t.Errorf("%q is accepted", name)
			}
		}
	})
}
