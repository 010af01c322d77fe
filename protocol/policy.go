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
	PolicyErasureCode      = "ErasureCode"
)

var policyNames = [...]string{PolicyMultipleHosts, PolicyMultipleDevices, PolicyMultipleNetworks, PolicyHostsPerNetwork, PolicyUnion, PolicyErasureCode}

// DefaultMinEncoded is the length, in bytes, from which files are encoded where
// ErasureCode has no min. Below it little is saved and much is paid: each shard is
// a file of its own with a header of 4 KiB, opened, written and flushed on its own
// device, and each read of the file asks k devices. At 1 MiB the headers of
// ErasureCode(6,3) add 3.5 % to the file and its parity 50 %, where copies that
// survive as much add 300 %.
const DefaultMinEncoded = 1 << 20

// maxMinEncoded bounds the min of ErasureCode: 1 PiB.
const maxMinEncoded = 1 << 50

// PolicyCall is a replication policy as it is written.
type PolicyCall struct {
	Name    string       // one of the names above
	Count   int          // of MultipleHosts, MultipleDevices, MultipleNetworks; 0 where there is none
	Needs   []ZoneNeed   // of HostsPerNetwork
	Members []PolicyCall // of Union, at least one, and none ErasureCode

	// Of ErasureCode: any K of K+M shards make the file. K is 1 to MaxDataShards, M
	// 1 to MaxParityShards. Files of less than Min bytes, and empty ones, are kept as
	// M+1 copies.
	K, M int
	Min  int64
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
// "MultipleHosts(3)", "Union(HostsPerNetwork(near=2), MultipleHosts())" or
// "ErasureCode(6, 3, min=256K)". The empty string is MultipleHosts(). Blanks may
// stand between tokens, and what follows a complete policy is ignored.
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
	case PolicyErasureCode:
		args = append(args, strconv.Itoa(c.K), strconv.Itoa(c.M))
		if c.Min != DefaultMinEncoded {
			args = append(args, "min="+formatSize(c.Min))
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
	if c.Name == PolicyErasureCode && depth > 0 {
		return c, p.refuse(name, "%s cannot stand in a %s: a file has either shards or copies", c.Name, PolicyUnion)
	}
	if !p.token("(") {
		return c, p.refuse("", "expected ( after %s", c.Name)
	}
	var err error
	switch c.Name {
	case PolicyErasureCode:
		err = p.code(&c)
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

// code reads k "," m [ "," "min" "=" size ] ")".
func (p *policyParser) code(c *PolicyCall) error {
	var err error
	if c.K, err = p.shards("k", "data shards", MaxDataShards); err != nil {
		return err
	}
	if !p.token(",") {
		return p.refuse("", "expected , and a number of parity shards in %s", c.Name)
	}
	if c.M, err = p.shards("m", "parity shards", MaxParityShards); err != nil {
		return err
	}
	c.Min = DefaultMinEncoded
	if p.token(",") {
		if !p.token("min") || !p.token("=") {
			return p.refuse("", "expected min=SIZE in %s", c.Name)
		}
		if c.Min, err = p.size(); err != nil {
			return err
		}
	}
	if !p.token(")") {
		return p.refuse("", "expected ) in %s", c.Name)
	}
	return nil
}

// shards reads a number of shards, 1 to most.
func (p *policyParser) shards(letter, what string, most int) (int, error) {
	digits := p.word(isDigit)
	if digits == "" {
		return 0, p.refuse("", "expected a number of %s in %s", what, PolicyErasureCode)
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > most {
		return 0, p.refuse(digits, "there cannot be %.40s %s: %s is from 1 to %d,", digits, what, letter, most)
	}
	p.blanks()
	return n, nil
}

// sizeUnits are what sizes end in, with the power of two that each stands for.
var sizeUnits = [...]struct {
	letter string
	shift  int
}{{"G", 30}, {"M", 20}, {"K", 10}}

// size reads a number of bytes, such as 65536 or 64K.
func (p *policyParser) size() (int64, error) {
	digits := p.word(isDigit)
	if digits == "" {
		return 0, p.refuse("", "expected a size such as 64K or 1M")
	}
	shift := 0
	for _, u := range sizeUnits {
		if rest, ok := strings.CutPrefix(p.rest, u.letter); ok {
			p.rest, digits, shift = rest, digits+u.letter, u.shift
		}
	}
	n, err := strconv.ParseInt(strings.TrimRight(digits, "KMG"), 10, 64)
	if err != nil || n > maxMinEncoded>>shift {
		return 0, p.refuse(digits, "the size %.40s is above %s", digits, formatSize(maxMinEncoded))
	}
	p.blanks()
	return n << shift, nil
}

// formatSize is n, which is not negative, in the largest unit that divides it.
func formatSize(n int64) string {
	for _, u := range sizeUnits {
		if n > 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.letter
		}
	}
	return strconv.FormatInt(n, 10)
}

// number reads digits, if there are any.
func (p *policyParser) number() (n int, given bool, err error) {
	digits := p.word(isDigit)
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

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isPolicyByte(c byte) bool {
	return c == '_' || c == ':' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isZoneByte(c byte) bool {
	return c > ' ' && c != 0x7f && strings.IndexByte(",=()", c) < 0
}
