package volume

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A usage file has its seven lines whatever the numbers are and however file
// systems and folders are called, and its readers find what was meant.
func FuzzUsage(f *testing.F) {
	f.Add(int64(872816640), int64(97573519360), "/dev/sdb1", "/var/mogdata/dev1", "/var/mogdata/dev1", int64(1700000000))
	f.Add(int64(0), int64(0), "", "/", "/srv/x", int64(0))
	f.Add(int64(-1), int64(-1), "fuse\nused: 1", "/mnt/a\nb/dev7", "/srv/\r\ndev7", int64(1))
	f.Add(int64(1<<62), int64(1<<62), "tank/\x00data", "/tank", "dev\xff1", int64(1)<<33)
	f.Fuzz(func(t *testing.T, used, available int64, device, point, folder string, now int64) {
		if now < 0 || now > 1<<40 || folder == "" {
			return
		}
		u := usageOf(Space{Used: used, Available: available}, Mount{Point: point, Device: device}, folder, time.Unix(now, 0))
		text := u.String()
		var names []string
		values := map[string]string{}
		for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
			name, value, ok := strings.Cut(line, ": ")
			if !ok || value == "" || strings.ContainsAny(line, "\r\x00") {
				t.Fatalf("line %q of %q", line, text)
			}
			names, values[name] = append(names, name), value
		}
		if !slices.Equal(names, []string{"available", "device", "disk", "time", "total", "use", "used"}) {
			t.Fatalf("lines %v of %q", names, text)
		}
		number := func(name string) int64 {
			n, err := strconv.ParseInt(strings.TrimSuffix(values[name], "%"), 10, 64)
			if err != nil {
				t.Fatalf("%s in %q: %v", name, text, err)
			}
			return n
		}
		if number("used") < 1 || number("available") < 0 || number("total") != number("used")+number("available") ||
			number("use") < 0 || number("use") > 100 || number("time") != now {
			t.Errorf("%q of %d used and %d available bytes", text, used, available)
		}
	})
}
