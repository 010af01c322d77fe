package placement

import (
	"fmt"

	"github.com/mogile/mogile/protocol"
)

// ParsePolicy reads a policy as it stands in class.replpolicy, in the grammar of
// [protocol.ParsePolicy], whose refusals it returns.
func ParsePolicy(s string) (Policy, error) {
	c, err := protocol.ParsePolicy(s)
	if err != nil {
		return nil, err
	}
	return policyOf(c), nil
}

func policyOf(c protocol.PolicyCall) Policy {
	switch c.Name {
	case protocol.PolicyMultipleHosts:
		return MultipleHosts{Count: c.Count}
	case protocol.PolicyMultipleDevices:
		return MultipleDevices{Count: c.Count}
	case protocol.PolicyMultipleNetworks:
		return MultipleNetworks{Count: c.Count}
	case protocol.PolicyHostsPerNetwork:
		return HostsPerNetwork{Needs: c.Needs}
	case protocol.PolicyUnion:
		var u Union
		for _, m := range c.Members {
			// Members of a member are as good as its own, and quicker: a Union asks
			// its members again for each copy.
			p := policyOf(m)
			if inner, ok := p.(Union); ok {
				u.Members = append(u.Members, inner.Members...)
			} else {
				u.Members = append(u.Members, p)
			}
		}
		return u
	case protocol.PolicyErasureCode:
		return ErasureCode{K: c.K, M: c.M, Min: c.Min}
	}
	panic(fmt.Sprintf("no policy is named %q", c.Name))
}

// counted is a policy with its optional number, in that grammar.
func counted(name string, count int) string {
	return protocol.PolicyCall{Name: name, Count: count}.String()
}
