package storaged

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// maxHeader bounds a header block, request line included, in bytes: one of this
// size is refused, as by MogileFS's daemons.
const maxHeader = 64 << 10

// maxBlank bounds what may stand before a request line: line ends that a client
// sent behind the body before it.
const maxBlank = 64

// head is what is of interest in a request's header block.
type head struct {
	method string
	path   string // decoded, without query, host and scheme
	keep   bool   // the client would send another request on the connection
	expect bool   // the client waits for "100 Continue" before it sends the body
	minor  int    // of the version
	length int64  // of the body in bytes; -1 where it is chunked, 0 where there is none

	ranges, contentRange, contentMD5, modifiedSince, contentType, want, order []string

	// sumFollows says that a Content-MD5 was announced for the trailer.
	sumFollows bool
}

// refusal is an error for which the request is answered with a status of its
// own. What comes behind it on the connection cannot be understood.
type refusal struct {
	status int
	reason string
}

// Error implements error.
func (r *refusal) Error() string { return r.reason }

func malformed(reason string) error { return &refusal{http.StatusBadRequest, reason} }

// headEnd is the length of the header block that b begins with, its empty line
// included, and 0 where b does not have all of it. The first from bytes are
// known not to have the end.
func headEnd(b []byte, from int) int {
	for {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return 0
		}
		from += i + 1
		switch rest := b[from:]; {
		case len(rest) > 0 && rest[0] == '\n':
			return from + 1
		case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
			return from + 2
		}
	}
}

// parseHead reads a header block as RFC 9112 has it, of which headEnd found the
// end. Lines end in CRLF or LF, values may be folded, and the header Host may be
// missing. What leaves a doubt about where the body ends is refused. Its errors
// are of type *refusal.
func parseHead(b []byte) (head, error) {
	var h head
	line, rest, err := cutLine(b)
	if err != nil {
		return head{}, err
	}
	minor, err := h.requestLine(line)
	if err != nil {
		return head{}, err
	}
	var f framing
	if err := eachField(rest, func(name, value []byte) error { return h.field(&f, name, value) }); err != nil {
		return head{}, err
	}
	if h.length, err = f.length(minor); err != nil {
		return head{}, err
	}
	if f.expectation != "" && minor > 0 { // HTTP/1.0 knows of none
		if !strings.EqualFold(f.expectation, "100-continue") {
			return head{}, &refusal{http.StatusExpectationFailed, "unknown expectation"}
		}
		h.expect = h.length != 0
	}
	h.minor, h.keep = minor, !f.close && (minor > 0 || f.keepAlive)
	return h, nil
}

// cutLine cuts a line off, without its end.
func cutLine(b []byte) (line, rest []byte, err error) {
	line, rest, ok := bytes.Cut(b, []byte{'\n'})
	if !ok {
		return nil, nil, malformed("line without an end")
	}
	line = bytes.TrimSuffix(line, []byte{'\r'})
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return nil, nil, malformed("control character")
		}
	}
	return line, rest, nil
}

// requestLine reads method, target and version, of which it returns the minor
// number.
func (h *head) requestLine(line []byte) (minor int, err error) {
	word, afterWord, ok1 := bytes.Cut(line, []byte{' '})
	method := methodName(word)
	target, version, ok2 := strings.Cut(string(afterWord), " ")
	if !ok1 || !ok2 || !isToken(method) || target == "" || strings.Contains(target, "\t") {
		return 0, malformed("malformed request line")
	}
	digits, ok := strings.CutPrefix(version, "HTTP/")
	switch {
	case !ok || len(digits) != 3 || digits[1] != '.' || !isDigit(digits[0]) || !isDigit(digits[2]):
		return 0, malformed("malformed version")
	case digits[0] != '1':
		return 0, &refusal{http.StatusHTTPVersionNotSupported, "not HTTP/1"}
	}
	const scheme = "http://"
	if len(target) > len(scheme) && strings.EqualFold(target[:len(scheme)], scheme) {
		target = target[len(scheme):]
		end := strings.IndexAny(target, "/?")
		switch {
		case end == 0:
			return 0, malformed("URI without a host")
		case end < 0:
			target = "/"
		case target[end] == '?':
			target = "/" + target[end:]
		default:
			target = target[end:]
		}
	}
	target, _, _ = strings.Cut(target, "?")
	h.method = method
	if strings.IndexByte(target, '%') < 0 {
		h.path = target
	} else if h.path, err = url.PathUnescape(target); err != nil {
		return 0, malformed("malformed escape")
	}
	return int(digits[2] - '0'), nil
}

// methodName is a method, without a copy where it is an ordinary one.
func methodName(word []byte) string {
	for _, known := range [...]string{http.MethodGet, http.MethodPut, http.MethodHead, http.MethodDelete, http.MethodPost} {
		if string(word) == known {
			return known
		}
	}
	return string(word)
}

// framing collects the headers that say where the message ends, and what comes
// after it.
type framing struct {
	lengths, codings []string
	close, keepAlive bool
	expectation      string
}

// eachField calls f with each field of a header block or trailer, up to the
// empty line. Folded values are put together. Name is in lower case.
func eachField(b []byte, f func(name, value []byte) error) error {
	var name, value []byte
	for {
		line, rest, err := cutLine(b)
		if err != nil {
			return err
		}
		b = rest
		if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			if name == nil {
				return malformed("folded line without a field")
			}
			value = append(append(value[:len(value):len(value)], ' '), trimBlanks(line)...)
			continue
		}
		if name != nil {
			if err := f(name, trimBlanks(value)); err != nil {
				return err
			}
		}
		if len(line) == 0 {
			return nil
		}
		var ok bool
		name, value, ok = bytes.Cut(line, []byte{':'})
		if !ok || !isToken(string(name)) {
			return malformed("malformed header")
		}
		for i, c := range name {
			if c >= 'A' && c <= 'Z' {
				name[i] = c + ('a' - 'A')
			}
		}
	}
}

func trimBlanks(b []byte) []byte { return bytes.Trim(b, " \t") }

// field takes in one header.
func (h *head) field(f *framing, name, value []byte) error {
	switch string(name) {
	case "content-length":
		f.lengths = append(f.lengths, string(value))
	case "transfer-encoding":
		f.codings = append(f.codings, string(value))
	case "connection":
		eachMember(string(value), func(option string) {
			f.close = f.close || strings.EqualFold(option, "close")
			f.keepAlive = f.keepAlive || strings.EqualFold(option, "keep-alive")
		})
	case "expect":
		f.expectation = string(value)
	case "trailer":
		eachMember(string(value), func(field string) {
			h.sumFollows = h.sumFollows || strings.EqualFold(field, sumHeader)
		})
	case "range":
		h.ranges = append(h.ranges, string(value))
	case "content-range":
		h.contentRange = append(h.contentRange, string(value))
	case sumHeader:
		h.contentMD5 = append(h.contentMD5, string(value))
	case "if-modified-since":
		h.modifiedSince = append(h.modifiedSince, string(value))
	case "content-type":
		h.contentType = append(h.contentType, string(value))
	case "mogile-want":
		h.want = append(h.want, string(value))
	case orderHeader:
		h.order = append(h.order, string(value))
	}
	return nil
}

// Headers in lower case: sumHeader has the digest of a body, orderHeader is
// protocol.OrderHeader.
const (
	sumHeader   = "content-md5"
	orderHeader = "mogile-order"
)

// eachMember calls f with the members of a list such as that of Connection.
func eachMember(list string, f func(string)) {
	for member := range strings.SplitSeq(list, ",") {
		if member = strings.Trim(member, " \t"); member != "" {
			f(member)
		}
	}
}

// length is the length of the body; -1 where it is chunked. What another
// recipient may read in another way is refused.
func (f *framing) length(minor int) (int64, error) {
	if len(f.codings) > 0 {
		switch {
		case len(f.codings) > 1:
			return 0, malformed("several Transfer-Encoding")
		case !strings.EqualFold(f.codings[0], "chunked"):
			return 0, &refusal{http.StatusNotImplemented, "unknown Transfer-Encoding"}
		case len(f.lengths) > 0:
			return 0, malformed("Content-Length beside Transfer-Encoding")
		case minor == 0:
			return 0, malformed("Transfer-Encoding in HTTP/1.0")
		}
		return -1, nil
	}
	switch len(f.lengths) {
	case 0:
		return 0, nil
	case 1:
	default:
		return 0, malformed("several Content-Length")
	}
	n, err := offset(f.lengths[0])
	switch {
	case errors.Is(err, errOverflow):
		return 0, &refusal{http.StatusInsufficientStorage, "Content-Length: " + err.Error()}
	case err != nil:
		return 0, malformed("malformed Content-Length")
	}
	return n, nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// isToken reports whether s is a token, as methods and names of headers are.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !isDigit(c) && (c|0x20 < 'a' || c|0x20 > 'z') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}
