package protocol

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePolicy(t *testing.T) {
	t.Parallel()
	deep := func(n int) string {
		return strings.Repeat("Union(", n) + "MultipleHosts()" + strings.Repeat(")", n)
	}
	for _, c := range []struct {
		in   string
		want string // canonical, or the refusal's text
	}{
		{"", "MultipleHosts()"},
		{"MultipleHosts()", "MultipleHosts()"},
		{"MultipleHosts(3)", "MultipleHosts(3)"},
		{"MultipleHosts(0)", "MultipleHosts()"},
		{"MultipleHosts(007)", "MultipleHosts(7)"},
		{" \n MultipleHosts \t (\n 5 \r\n ) ", "MultipleHosts(5)"},
		{"MultipleDevices()", "MultipleDevices()"},
		{"MultipleDevices ( 2 ) and what follows", "MultipleDevices(2)"},
		{"MultipleHosts(2)))", "MultipleHosts(2)"},
		{"MultipleNetworks()", "MultipleNetworks()"},
		{"MultipleNetworks(2)", "MultipleNetworks(2)"},
		{"MogileFS::ReplicationPolicy::MultipleDevices(2)", "MultipleDevices(2)"},
		{"MogileFS::ReplicationPolicy::HostsPerNetwork(a=1)", "HostsPerNetwork(a=1)"},
		{"HostsPerNetwork()", "HostsPerNetwork()"},
		{"HostsPerNetwork( near = 2 ,\n far-away.1=1 )", "HostsPerNetwork(near=2, far-away.1=1)"},
		{"HostsPerNetwork(near=2,)", "HostsPerNetwork(near=2)"},
		{"HostsPerNetwork(near=0)", "HostsPerNetwork(near=0)"},
		{"Union(MultipleHosts(2), MultipleDevices(1))", "Union(MultipleHosts(2), MultipleDevices(1))"},
		{"Union(MultipleHosts(2) MultipleDevices(1))", "Union(MultipleHosts(2), MultipleDevices(1))"},
		{"Union(\n  MultipleHosts(2),\n  HostsPerNetwork(a=1, b=1),\n)\n", "Union(MultipleHosts(2), HostsPerNetwork(a=1, b=1))"},
		{"Union(Union(MultipleNetworks()))", "Union(Union(MultipleNetworks()))"},
		{deep(MaxPolicyDepth), deep(MaxPolicyDepth)},

		{"MultipleHosts", "expected ( after MultipleHosts at the end"},
		{"MultipleHosts[2]", `expected ( after MultipleHosts at column 14, near "[2]"`},
		{"MultipleHosts(2", "expected a number of copies or ) in MultipleHosts at the end"},
		{"MultipleHosts(two)", `expected a number of copies or ) in MultipleHosts at column 15, near "two)"`},
		{"MultipleHosts(2 3)", `expected a number of copies or ) in MultipleHosts at column 17, near "3)"`},
		{"MultipleHosts(-1)", `expected a number of copies or ) in MultipleHosts at column 15, near "-1)"`},
		{"MultipleHosts(99999999999999999999)", `there cannot be 99999999999999999999 copies, as there are at most 32767 devices, at column 15, near "99999999999999999999)"`},
		{"HostsPerNetwork(a=32768)", `there cannot be 32768 copies, as there are at most 32767 devices, at column 19, near "32768)"`},
		{"multiplehosts()", `unknown policy "multiplehosts" (there are MultipleHosts, MultipleDevices, MultipleNetworks, HostsPerNetwork, Union) at column 1, near "multiplehosts()"`},
		{"  My::Policy()", `unknown policy "My::Policy" (there are MultipleHosts, MultipleDevices, MultipleNetworks, HostsPerNetwork, Union) at column 3, near "My::Policy()"`},
		{"Union(\u00a0MultipleHosts())", `expected the name of a policy at column 7, near "\u00a0MultipleHosts())"`},
		{"HostsPerNetwork", "expected ( after HostsPerNetwork at the end"},
		{"HostsPerNetwork(a)", `expected = and a number of hosts after zone "a" at column 18, near ")"`},
		{"HostsPerNetwork(a=)", `expected a number of hosts for zone "a" at column 19, near ")"`},
		{"HostsPerNetwork(a=1 b=1)", `expected , or ) in HostsPerNetwork at column 21, near "b=1)"`},
		{"HostsPerNetwork(,a=1)", `expected the name of a zone in HostsPerNetwork at column 17, near ",a=1)"`},
		{"HostsPerNetwork(a=1,a=2)", `zone "a" stands twice in HostsPerNetwork at column 21, near "a=2)"`},
		{"Union()", `expected the name of a policy at column 7, near ")"`},
		{"Union(MultipleHosts(),,)", `expected the name of a policy at column 23, near ",)"`},
		{"Union(MultipleHosts(2), Never(3))", `unknown policy "Never" (there are MultipleHosts, MultipleDevices, MultipleNetworks, HostsPerNetwork, Union) at column 25, near "Never(3))"`},
		{"Union(MultipleHosts(2)", "expected the name of a policy at the end"},
		{deep(MaxPolicyDepth + 1), `Unions are nested more than 16 deep at column 97, near "Union(MultipleHosts())))))))))))))))))"`},
		{"(2)", `expected the name of a policy at column 1, near "(2)"`},
		{"  ", "expected the name of a policy at the end"},
	} {
		p, err := ParsePolicy(c.in)
		got := ""
		if err != nil {
			e, ok := err.(*Error)
			if !ok || e.Code != "invalid_replpolicy" {
				t.Errorf("%q: error %v is not invalid_replpolicy", c.in, err)
				continue
			}
			got = e.Text
		} else {
			got = p.String()
		}
		if got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	for _, s := range []string{
		"", "MultipleHosts()", "MultipleHosts(3)", " MultipleDevices ( 2 ) tail", "MultipleHosts",
		"HostsPerNetwork(near=2,far=1)", "Union(MultipleHosts(), MultipleDevices(2),)", "MultipleHosts(\x00)",
		"MogileFS::ReplicationPolicy::MultipleHosts(1)", "MultipleHosts(4294967298)", "MultipleNetworks(2)",
		"HostsPerNetwork(\xff=1)", strings.Repeat("Union(", 20), "Union(Union(MultipleHosts() MultipleHosts()) HostsPerNetwork(),)",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePolicy(s)
		if err != nil {
			if e, ok := err.(*Error); !ok || e.Code != "invalid_replpolicy" || e.Text == "" {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := ParsePolicy(p.String())
		if err != nil {
			t.Fatalf("%q reads as %v, which does not read: %v", s, p, err)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Fatalf("%q: %s", s, diff)
		}
	})
}
