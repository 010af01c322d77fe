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
		{"ErasureCode(6,3)", "ErasureCode(6, 3)"},
		{" ErasureCode\t( 06 ,\n3 ) and what follows", "ErasureCode(6, 3)"},
		{"ErasureCode(1,1)", "ErasureCode(1, 1)"},
		{"ErasureCode(32,16,min=1G)", "ErasureCode(32, 16, min=1G)"},
		{"ErasureCode(4,2,min=64K)", "ErasureCode(4, 2, min=64K)"},
		{"ErasureCode(4,2, min = 65536 )", "ErasureCode(4, 2, min=64K)"},
		{"ErasureCode(4,2,min=1000)", "ErasureCode(4, 2, min=1000)"},
		{"ErasureCode(4,2,min=1M)", "ErasureCode(4, 2)"},
		{"ErasureCode(4,2,min=1024K)", "ErasureCode(4, 2)"},
		{"ErasureCode(4,2,min=0)", "ErasureCode(4, 2, min=0)"},
		{"ErasureCode(4,2,min=1048576G)", "ErasureCode(4, 2, min=1048576G)"},
		{"MogileFS::ReplicationPolicy::ErasureCode(4,2)", "ErasureCode(4, 2)"},

		{"MultipleHosts", "expected ( after MultipleHosts at the end"},
		{"MultipleHosts[2]", `expected ( after MultipleHosts at column 14, near "[2]"`},
		{"MultipleHosts(2", "expected a number of copies or ) in MultipleHosts at the end"},
		{"MultipleHosts(two)", `expected a number of copies or ) in MultipleHosts at column 15, near "two)"`},
		{"MultipleHosts(2 3)", `expected a number of copies or ) in MultipleHosts at column 17, near "3)"`},
		{"MultipleHosts(-1)", `expected a number of copies or ) in MultipleHosts at column 15, near "-1)"`},
		{"MultipleHosts(99999999999999999999)", `there cannot be 99999999999999999999 copies, as there are at most 32767 devices, at column 15, near "99999999999999999999)"`},
		{"HostsPerNetwork(a=32768)", `there cannot be 32768 copies, as there are at most 32767 devices, at column 19, near "32768)"`},
		{"multiplehosts()", `unknown policy "multiplehosts" (there are MultipleHosts, MultipleDevices, MultipleNetworks, HostsPerNetwork, Union, ErasureCode) at column 1, near "multiplehosts()"`},
		{"  My::Policy()", `unknown policy "My::Policy" (there are MultipleHosts, MultipleDevices, MultipleNetworks, HostsPerNetwork, Union, ErasureCode) at column 3, near "My::Policy()"`},
		{"Union(\u00a0MultipleHosts())", `expected the name of a policy at column 7, near "\u00a0MultipleHosts())"`},
		{"HostsPerNetwork", "expected ( after HostsPerNetwork at the end"},
		{"HostsPerNetwork(a)", `expected = and a number of hosts after zone "a" at column 18, near ")"`},
		{"HostsPerNetwork(a=)", `expected a number of hosts for zone "a" at column 19, near ")"`},
		{"HostsPerNetwork(a=1 b=1)", `expected , or ) in HostsPerNetwork at column 21, near "b=1)"`},
		{"HostsPerNetwork(,a=1)", `expected the name of a zone in HostsPerNetwork at column 17, near ",a=1)"`},
		{"HostsPerNetwork(a=1,a=2)", `zone "a" stands twice in HostsPerNetwork at column 21, near "a=2)"`},
		{"Union()", `expected the name of a policy at column 7, near ")"`},
		{"Union(MultipleHosts(),,)", `expected the name of a policy at column 23, near ",)"`},
		{"Union(MultipleHosts(2), Never(3))", `unknown policy "Never" (there are MultipleHosts, MultipleDevices, MultipleNetworks, HostsPerNetwork, Union, ErasureCode) at column 25, near "Never(3))"`},
		{"Union(MultipleHosts(2)", "expected the name of a policy at the end"},
		{deep(MaxPolicyDepth + 1), `Unions are nested more than 16 deep at column 97, near "Union(MultipleHosts())))))))))))))))))"`},
		{"ErasureCode()", `expected a number of data shards in ErasureCode at column 13, near ")"`},
		{"ErasureCode(6)", `expected , and a number of parity shards in ErasureCode at column 14, near ")"`},
		{"ErasureCode(6,)", `expected a number of parity shards in ErasureCode at column 15, near ")"`},
		{"ErasureCode(6,3", "expected ) in ErasureCode at the end"},
		{"ErasureCode(6,3,)", `expected min=SIZE in ErasureCode at column 17, near ")"`},
		{"ErasureCode(6,3,1M)", `expected min=SIZE in ErasureCode at column 17, near "1M)"`},
		{"ErasureCode(6,3,min=)", `expected a size such as 64K or 1M at column 21, near ")"`},
		{"ErasureCode(6,3,min=1T)", `expected ) in ErasureCode at column 22, near "T)"`},
		{"ErasureCode(6,3,min=1KK)", `expected ) in ErasureCode at column 23, near "K)"`},
		{"ErasureCode(6,3,min=1048577G)", `the size 1048577G is above 1048576G at column 21, near "1048577G)"`},
		{"ErasureCode(6,3,min=99999999999999999999)", `the size 99999999999999999999 is above 1048576G at column 21, near "99999999999999999999)"`},
		{"ErasureCode(0,3)", `there cannot be 0 data shards: k is from 1 to 32, at column 13, near "0,3)"`},
		{"ErasureCode(33,3)", `there cannot be 33 data shards: k is from 1 to 32, at column 13, near "33,3)"`},
		{"ErasureCode(6,0)", `there cannot be 0 parity shards: m is from 1 to 16, at column 15, near "0)"`},
		{"ErasureCode(6,17)", `there cannot be 17 parity shards: m is from 1 to 16, at column 15, near "17)"`},
		{"ErasureCode(99999999999999999999,1)", `there cannot be 99999999999999999999 data shards: k is from 1 to 32, at column 13, near "99999999999999999999,1)"`},
		{"ErasureCode(-1,3)", `expected a number of data shards in ErasureCode at column 13, near "-1,3)"`},
		{"Union(MultipleHosts(), ErasureCode(4,2))", `ErasureCode cannot stand in a Union: a file has either shards or copies at column 24, near "ErasureCode(4,2))"`},
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
		"ErasureCode(6,3)", "ErasureCode(4, 2, min=64K)", "ErasureCode(1,1,min=0)", "ErasureCode(33,0,min=9999999G)",
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
