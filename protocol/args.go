package protocol

import (
	"strconv"
	"strings"
)

// Arg is one named value of a request or a reply, decoded.
type Arg struct{ Name, Value string }

// Args are the arguments of a request or the fields of a reply, decoded, in
// the order of the line. Names are unique in what [ParseArgs] returns.
type Args []Arg

// Get is the value of name, or "" where it is absent.
func (a Args) Get(name string) string {
	v, _ := a.Lookup(name)
	return v
}

// Lookup is the value of name, and whether name is there at all.
func (a Args) Lookup(name string) (string, bool) {
	for i := range a {
		if a[i].Name == name {
			return a[i].Value, true
		}
	}
	return "", false
}

// True reports whether name is true as the original server (Perl) saw it:
// absent, empty and "0" are false, all else is true.
func (a Args) True(name string) bool { return Truthy(a.Get(name)) }

// Number is the value of name by [Number]; absent is 0.
func (a Args) Number(name string) int64 { return Number(a.Get(name)) }

// Add appends a field. The name must not be there yet.
func (a *Args) Add(name, value string) { *a = append(*a, Arg{name, value}) }

// AddInt appends a number.
func (a *Args) AddInt(name string, value int64) {
	*a = append(*a, Arg{name, strconv.FormatInt(value, 10)})
}

// Set replaces the value of name, or appends it.
func (a *Args) Set(name, value string) {
	for i := range *a {
		if (*a)[i].Name == name {
			(*a)[i].Value = value
			return
		}
	}
	a.Add(name, value)
}

// Truthy is Perl's truth of a string: "" and "0" are false.
func Truthy(s string) bool { return s != "" && s != "0" }

// Number reads s as Perl would coerce it to an integer: blanks, a sign, then
// leading digits; what follows is ignored and no digits count as 0. Values
// beyond 64 bits saturate.
func Number(s string) int64 {
	s = strings.TrimLeft(s, " \t\r\n\f")
	end := 0
	if end < len(s) && (s[end] == '-' || s[end] == '+') {
		end++
	}
	first := end
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	if end == first {
		return 0
	}
	n, err := strconv.ParseInt(s[:end], 10, 64)
	if err != nil { // only ErrRange is left, for which ParseInt returns the nearest value
		return n
	}
	return n
}

const upperHex = "0123456789ABCDEF"

// plain marks the bytes that are sent as they are.
var plain = func() (t [256]bool) {
	for c := range t {
		switch b := byte(c); {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9':
			t[c] = true
		default:
			t[c] = strings.IndexByte(`_,-./\:`, b) >= 0
		}
	}
	return t
}()

// AppendEscaped appends s as it is sent: letters, digits and _,-./\: stay, a
// blank becomes "+", every other byte "%XX" in upper case.
func AppendEscaped(dst []byte, s string) []byte {
	for i := 0; i < len(s); {
		j := i
		for j < len(s) && plain[s[j]] {
			j++
		}
		dst = append(dst, s[i:j]...)
		if j == len(s) {
			break
		}
		if c := s[j]; c == ' ' {
			dst = append(dst, '+')
		} else {
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		}
		i = j + 1
	}
	return dst
}

// Escape is s as it is sent; see [AppendEscaped].
func Escape(s string) string { return string(AppendEscaped(nil, s)) }

// Unescape decodes what [AppendEscaped] encodes: "+" is a blank, "%HH" in
// either case a byte, and an escape that is not one stays as it is.
func Unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			b = append(b, ' ')
		case c == '%' && i+2 < len(s) && unhex(s[i+1]) >= 0 && unhex(s[i+2]) >= 0:
			b = append(b, byte(unhex(s[i+1])<<4|unhex(s[i+2])))
			i += 2
		default:
			b = append(b, c)
		}
	}
	return string(b)
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// Append appends a encoded as "name=value&name=value".
func (a Args) Append(dst []byte) []byte {
	for i := range a {
		if i > 0 {
			dst = append(dst, '&')
		}
		dst = AppendEscaped(dst, a[i].Name)
		dst = append(dst, '=')
		dst = AppendEscaped(dst, a[i].Value)
	}
	return dst
}

// String is a encoded, as [Args.Append] does.
func (a Args) String() string { return string(a.Append(nil)) }

// MaxArgs bounds the arguments of one line: the rest of a longer one is
// ignored. The largest lines that servers send, list_fids of 500 fids, have
// 3,001.
const MaxArgs = 1 << 14

// ParseArgs decodes "name=value&name=value". Empty pieces are dropped; a
// missing "=" is an empty value; a second raw "=" belongs to the value; of a
// name that stands several times the last value counts. It accepts anything.
func ParseArgs(s string) Args {
	if s == "" {
		return nil
	}
	args := make(Args, 0, min(strings.Count(s, "&")+1, 64))
	var seen map[string]int // only for long lines, where looking through args would be quadratic
	for s != "" && len(args) < MaxArgs {
		var piece string
		piece, s, _ = strings.Cut(s, "&")
		if piece == "" {
			continue
		}
		name, value, _ := strings.Cut(piece, "=")
		arg := Arg{Unescape(name), Unescape(value)}
		if len(args) < 16 {
			args.Set(arg.Name, arg.Value)
			continue
		}
		if seen == nil {
			seen = make(map[string]int, 64)
			for i := range args {
				seen[args[i].Name] = i
			}
		}
		if i, ok := seen[arg.Name]; ok {
			args[i].Value = arg.Value
			continue
		}
		seen[arg.Name] = len(args)
		args = append(args, arg)
	}
	return args
}
