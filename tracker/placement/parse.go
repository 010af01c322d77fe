package placement

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// perlPrefix is the module that MogileFS finds its own policies in: a name may
// be spelt out.
const perlPrefix = "MogileFS::ReplicationPolicy::"

// ParsePolicy reads a policy as it stands in class.replpolicy, such as
// "MultipleHosts(3)". The empty string is MultipleHosts(). Blanks may stand
// between tokens, and what follows a complete policy is ignored.
//
// MultipleHosts and MultipleDevices are understood. Everything else, known to
// MogileFS or not, is refused with a [*protocol.Error] invalid_replpolicy that
// says what is wrong: a policy that is stored must be one that can be kept.
func ParsePolicy(s string) (Policy, error) {
	if s == "" {
		return MultipleHosts{}, nil
	}
	rest := strings.TrimLeft(s, policyBlanks)
	end := 0
	for end < len(rest) && isNameByte(rest[end]) {
		end++
	}
	name := rest[:end]
	if name == "" {
		return nil, refuse("expected the name of a policy at %s", at(rest))
	}
	rest = strings.TrimLeft(rest[end:], policyBlanks)
	short := strings.TrimPrefix(name, perlPrefix)
	switch short {
	case "MultipleHosts", "MultipleDevices":
	case "MultipleNetworks", "HostsPerNetwork", "Union":
		return nil, refuse("%s is not supported; supported are MultipleHosts() and MultipleDevices()", short)
	default:
		return nil, refuse("unknown policy %.100q; supported are MultipleHosts() and MultipleDevices()", name)
	}
	count, err := parseCount(short, rest)
	if err != nil {
		return nil, err
	}
	if short == "MultipleDevices" {
		return MultipleDevices{Count: count}, nil
	}
	return MultipleHosts{Count: count}, nil
}

// parseCount reads "(" [ digits ] ")".
func parseCount(name, s string) (int, error) {
	rest, ok := strings.CutPrefix(s, "(")
	if !ok {
		return 0, refuse("expected ( after %s at %s", name, at(s))
	}
	rest = strings.TrimLeft(rest, policyBlanks)
	end := 0
	for end < len(rest) && rest[end] >= '0' && rest[end] <= '9' {
		end++
	}
	digits := rest[:end]
	rest = strings.TrimLeft(rest[end:], policyBlanks)
	if !strings.HasPrefix(rest, ")") {
		return 0, refuse("expected a number of copies or ) in %s at %s", name, at(rest))
	}
	if digits == "" {
		return 0, nil
	}
	count, err := strconv.Atoi(digits)
	if err != nil || count > protocol.MaxDevID {
		return 0, refuse("%s cannot make %.40s copies; there are at most %d devices", name, digits, protocol.MaxDevID)
	}
	return count, nil
}

const policyBlanks = " \t\r\n\v\f"

func isNameByte(c byte) bool {
	return c == '_' || c == ':' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func at(rest string) string {
	if rest == "" {
		return "the end"
	}
	return fmt.Sprintf("%.40q", rest)
}

func refuse(format string, args ...any) *protocol.Error {
	return &protocol.Error{Code: "invalid_replpolicy", Text: fmt.Sprintf(format, args...)}
}

// call is a policy with its optional number, as [ParsePolicy] reads it.
func call(name string, count int) string {
	if count == 0 {
		return name + "()"
	}
	return name + "(" + strconv.Itoa(count) + ")"
}
