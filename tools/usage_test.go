package tools

import (
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

func TestClassUsage(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	reply := "classes=3&class1_domain=test&class1_class=default&class1_files=2&class1_bytes=1048576&class1_stored=3145728" +
		"&class2_domain=test&class2_class=ec&class2_files=1&class2_bytes=1048576&class2_stored=1577058" +
		"&class3_domain=test&class3_class=empty&class3_files=1&class3_bytes=0&class3_stored=0"
	cluster.Before(func(r protocol.Request) *protocoltest.Reply {
		if r.Command != "class_usage" {
			return nil
		}
		return &protocoltest.Reply{Fields: protocol.ParseArgs(reply)}
	})
	code, out, stderr := run(t.Context(), cluster, "stats")
	want := `
domain  class    files     size   stored  overhead
test    default      2  1.0 MiB  3.0 MiB     200 %
test    ec           1  1.0 MiB  1.5 MiB      50 %
test    empty        1      0 B      0 B       0 %
`
	if code != 0 || !strings.HasSuffix(out, want) || !strings.HasPrefix(out, "counter") {
		t.Errorf("code %d, %s\n%s", code, stderr, out)
	}
	code, out, _ = run(t.Context(), cluster, "--json", "stats")
	if code != 0 || !strings.Contains(out, "\n"+`{"domain":"test","class":"ec","files":1,"bytes":1048576,"stored_bytes":1577058,"overhead":0.504}`+"\n") {
		t.Errorf("code %d\n%s", code, out)
	}
	for _, bad := range []string{"", "classes=9", "classes=-1", "classes=1&class1_domain=test"} {
		reply = bad
		if code, out, _ := run(t.Context(), cluster, "stats"); code == 0 {
			t.Errorf("%q: %s", bad, out)
		}
	}
}
