package protocol

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Names of the replication policies.
const (
	PolicyMultipleHosts    = "MultipleHosts"
	PolicyMultipleDevices  = "MultipleDevices"
	PolicyMultipleNetworks = "MultipleNetworks"
	PolicyHostsPerNetwork  = "HostsPerNetwork"
	PolicyUnion            = "Union"
)

var policyNames = [...]string{PolicyMultipleHosts, PolicyMultipleDevices, PolicyMultipleNetworks, PolicyHostsPerNetwork, PolicyUnion}

// PolicyCall is a replication policy as it is written.
type PolicyCall struct {
	Name    string       // one of the names above
	Count   int          // of MultipleHosts, MultipleDevices, MultipleNetworks; 0 where there is none
	Needs   []ZoneNeed   // of HostsPerNetwork
	Members []PolicyCall // of Union, at least one
}

// ZoneNeed says how many hosts of a zone shall have a copy.
type ZoneNeed struct {
	Zone  string
	Hosts int
}

// MaxPolicyDepth is how deep Unions may be nested.
const MaxPolicyDepth = 16

// perlPrefix is the module that MogileFS finds its own policies in: a name may
// be spelt out.
const perlPrefix = "MogileFS::ReplicationPolicy::"

// ParsePolicy reads a policy as it stands in class.replpolicy, such as
// "MultipleHosts(3)" or "Union(HostsPerNetwork(near=2), MultipleHosts())". The
// empty string is MultipleHosts(). Blanks may stand between tokens, and what
// follows a complete policy is ignored.
//
// Everything else is refused with an [*Error] invalid_replpolicy that says what
// is wrong, and where: a policy that is stored must be one that can be kept.
func ParsePolicy(s string) (PolicyCall, error) {
	if s == "" {
		return PolicyCall{Name: PolicyMultipleHosts}, nil
	}
	p := policyParser{all: s, rest: s}
	return p.policy(0)
}

// String is the policy in the grammar that [ParsePolicy] reads.
func (c PolicyCall) String() string {
	var args []string
	switch c.Name {
	case PolicyHostsPerNetwork:
		for _, n := range c.Needs {
			args = append(args, n.Zone+"="+strconv.Itoa(n.Hosts))
		}
	case PolicyUnion:
		for _, m := range c.Members {
			args = append(args, m.String())
		}
	default:
		if c.Count > 0 {
			args = append(args, strconv.Itoa(c.Count))
		}
	}
	return c.Name + "(" + strings.Join(args, ", ") + ")"
}

type policyParser struct {
	all, rest string
}

const policyBlanks = " \t\r\n\v\f"

func (p *policyParser) blanks() { p.rest = strings.TrimLeft(p.rest, policyBlanks) }

// token reads text, and the blanks around it.
func (p *policyParser) token(text string) bool {
	p.blanks()
	rest, ok := strings.CutPrefix(p.rest, text)
	if ok {
		p.rest = rest
		p.blanks()
	}
	return ok
}

// word reads the bytes that belong to a word, maybe none.
func (p *policyParser) word(belongs func(c byte) bool) string {
	end := 0
	for end < len(p.rest) && belongs(p.rest[end]) {
		end++
	}
	word := p.rest[:end]
	p.rest = p.rest[end:]
	return word
}

// refuse says what is wrong at the present place, or at the word just read.
func (p *policyParser) refuse(word, format string, args ...any) error {
	at := p.all[:len(p.all)-len(p.rest)-len(word)]
	text := fmt.Sprintf(format, args...)
	near := p.all[len(at):]
	if near == "" {
		text += " at the end"
	} else {
		text += fmt.Sprintf(" at column %d, near %.40q", utf8.RuneCountInString(at)+1, near)
	}
	return &Error{Code: "invalid_replpolicy", Text: text}
}

func (p *policyParser) policy(depth int) (PolicyCall, error) {
	p.blanks()
	name := p.word(isPolicyByte)
	if name == "" {
		return PolicyCall{}, p.refuse("", "expected the name of a policy")
	}
	c := PolicyCall{Name: strings.TrimPrefix(name, perlPrefix)}
	if !slices.Contains(policyNames[:], c.Name) {
		return c, p.refuse(name, "unknown policy %.100q (there are %s)", name, strings.Join(policyNames[:], ", "))
	}
	if c.Name == PolicyUnion && depth == MaxPolicyDepth {
		return c, p.refuse(name, "Unions are nested more than %d deep", MaxPolicyDepth)
	}
	if !p.token("(") {
		return c, p.refuse("", "expected ( after %s", c.Name)
	}
	var err error
	switch c.Name {
	case PolicyUnion:
		c.Members, err = p.members(depth)
	case PolicyHostsPerNetwork:
		c.Needs, err = p.needs()
	default:
		c.Count, err = p.count(c.Name)
	}
	return c, err
}

// members reads policy *( [","] policy ) [","] ")".
func (p *policyParser) members(depth int) ([]PolicyCall, error) {
	var members []PolicyCall
	for {
		m, err := p.policy(depth + 1)
		if err != nil {
			return nil, err
		}
		members = append(members, m)
		p.token(",")
		if p.token(")") {
			return members, nil
		}
	}
}

// needs reads [ zone "=" count *( "," zone "=" count ) ] ")".
func (p *policyParser) needs() ([]ZoneNeed, error) {
	var needs []ZoneNeed
	for {
		if len(needs) == 0 && p.token(")") {
			return nil, nil
		}
		p.blanks()
		zone := p.word(isZoneByte)
		switch {
		case zone == "":
			return nil, p.refuse("", "expected the name of a zone in %s", PolicyHostsPerNetwork)
		case slices.ContainsFunc(needs, func(n ZoneNeed) bool { return n.Zone == zone }):
			return nil, p.refuse(zone, "zone %.100q stands twice in %s", zone, PolicyHostsPerNetwork)
		}
		if !p.token("=") {
			return nil, p.refuse("", "expected = and a number of hosts after zone %.100q", zone)
		}
		hosts, given, err := p.number()
		if err != nil {
			return nil, err
		}
		if !given {
			return nil, p.refuse("", "expected a number of hosts for zone %.100q", zone)
		}
		needs = append(needs, ZoneNeed{zone, hosts})
		switch {
		case p.token(")"):
			return needs, nil
		case !p.token(","):
			return nil, p.refuse("", "expected , or ) in %s", PolicyHostsPerNetwork)
		case p.token(")"): // a trailing comma, as Union has it
			return needs, nil
		}
	}
}

// count reads [ digits ] ")".
func (p *policyParser) count(name string) (int, error) {
	n, _, err := p.number()
	if err != nil {
		return 0, err
	}
	if !p.token(")") {
		return 0, p.refuse("", "expected a number of copies or ) in %s", name)
	}
	return n, nil
}

// number reads digits, if there are any.
func (p *policyParser) number() (n int, given bool, err error) {
	digits := p.word(func(c byte) bool { return c >= '0' && c <= '9' })
	if digits == "" {
		return 0, false, nil
	}
	n, err = strconv.Atoi(digits)
	if err != nil || n > MaxDevID {
		return 0, true, p.refuse(digits, "there cannot be %.40s copies, as there are at most %d devices,", digits, MaxDevID)
	}
	p.blanks()
	return n, true, nil
}

func isPolicyByte(c byte) bool {
	return c == '_' || c == ':' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isZoneByte(c byte) bool {
	return c > ' ' && c != 0x7f && strings.IndexByte(",=()", c) < 0
}
