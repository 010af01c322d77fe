package storaged

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
)

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		path string
		want target
		err  error
	}{
		{"/", target{root: true}, nil},
		{"///", target{root: true}, nil},
		{"/.", target{root: true}, nil},
		{"/dev1", target{dev: 1}, nil},
		{"/dev1/", target{dev: 1, dir: true}, nil},
		{"//dev1/usage", target{dev: 1, name: "usage"}, nil},
		{"/dev1/0/000/000/0000000001.fid", target{dev: 1, name: "0/000/000/0000000001.fid"}, nil},
		{"/dev1//0/./000/000/0000000001.fid", target{dev: 1, name: "0/000/000/0000000001.fid"}, nil},
		{"/dev1/0/", target{dev: 1, name: "0", dir: true}, nil},
		{"/dev1/0/.", target{dev: 1, name: "0", dir: true}, nil},
		{"/dev1/.hidden", target{dev: 1, name: ".hidden"}, nil},
		{"/dev16777215/x", target{dev: 16777215, name: "x"}, nil},
		{"/dev16777216/x", target{}, nil},
		{"/dev01/x", target{}, nil},
		{"/dev0/x", target{}, nil},
		{"/dev/x", target{}, nil},
		{"/etc/passwd", target{}, nil},
		{"/foo", target{}, nil},
		{"/dev1/../etc/passwd", target{}, errTraversal},
		{"/..", target{}, errTraversal},
		{"..", target{}, errTraversal},
		{"/dev1/a..b", target{}, errTraversal},
		{"/dev1/.mogile/device", target{}, errPrivate},
		{"/dev1//.mogile", target{}, errPrivate},
		{"/dev1/./.mogile/tmp/x", target{}, errPrivate},
		{"/dev1/a/.mogile", target{dev: 1, name: "a/.mogile"}, nil},
		{"dev1/x", target{}, errBadPath},
		{"*", target{}, errBadPath},
		{"", target{}, errBadPath},
		{"/dev1/a\x00b", target{}, errBadPath},
		{"/dev1/a\nb", target{}, errBadPath},
	} {
		got, err := parseTarget(c.path)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("parseTarget(%q) = %+v, %v, want %+v, %v", c.path, got, err, c.want, c.err)
		}
	}
}

// The examples of MogileFS's layout are found where they should be.
func TestLayout(t *testing.T) {
	t.Parallel()
	for fid, path := range map[protocol.FID]string{
		1:                 "/dev1/0/000/000/0000000001.fid",
		999:               "/dev1/0/000/000/0000000999.fid",
		1000:              "/dev1/0/000/001/0000001000.fid",
		148056:            "/dev1/0/000/148/0000148056.fid",
		2147483632:        "/dev1/2/147/483/2147483632.fid",
		9999999999:        "/dev1/9/999/999/9999999999.fid",
		12345678901:       "/dev1/1/234/567/12345678901.fid",
		52048709162819278: "/dev1/5/204/870/52048709162819278.fid",
	} {
		if got := "/" + fid.Path(1); got != path {
			t.Errorf("fid %d: path %q, want %q", fid, got, path)
		}
		want := target{dev: 1, name: strings.TrimPrefix(path, "/dev1/")}
		if got, err := parseTarget(path); err != nil || got != want {
			t.Errorf("parseTarget(%q) = %+v, %v, want %+v", path, got, err, want)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"/", "/dev1", "//dev1/usage", "/dev1/0/000/000/0000000001.fid", "/dev1/../x", "/dev1/./.mogile/x", "/dev2/a//b/./"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		got, err := parseTarget(path)
		if err != nil {
			if got != (target{}) {
				t.Errorf("%q: %v with %+v", path, err, got)
			}
			return
		}
		if got.dev == 0 && got.name != "" || got.root && got.dev != 0 {
			t.Fatalf("%q: %+v", path, got)
		}
		for part := range strings.SplitSeq(got.name, "/") {
			if got.name != "" && (part == "" || part == "." || part == "..") {
				t.Errorf("%q: name %q", path, got.name)
			}
		}
		if got.name == privateDir || strings.HasPrefix(got.name, privateDir+"/") {
			t.Errorf("%q: name %q is private", path, got.name)
		}
	})
}

// What clients ask wrongly is no fault of the daemon, which an operator would
// have to look at.
func TestStatusOfBadPaths(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]int{
		"/dev1/../x": http.StatusForbidden, "/dev1/.mogile/device": http.StatusForbidden,
		"*": http.StatusBadRequest, "/dev1/a\x00b": http.StatusBadRequest,
	} {
		_, err := parseTarget(path)
		if got := statusOf(err); got != want {
			t.Errorf("%q: %v has status %d, want %d", path, err, got, want)
		}
	}
}
