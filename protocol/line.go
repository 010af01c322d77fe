package protocol

import (
	"errors"
	"fmt"
	"strings"
)

// MaxLine bounds a request or a reply line in bytes, terminator included.
// MogileFS sets none; lists of keys and long settings stay far below it.
const MaxLine = 4 << 20

// DefaultPort is the tracker's port where an address names none.
const DefaultPort = "7001"

// Request is one request line, decoded.
type Request struct {
	Command string // lower case
	Args    Args
}

// CallID is the opaque value that the reply must repeat, and whether the
// request has one.
func (r Request) CallID() (string, bool) { return r.Args.Lookup("callid") }

// Append appends the request's line, with CRLF.
func (r Request) Append(dst []byte) []byte {
	dst = append(dst, r.Command...)
	if len(r.Args) > 0 {
		dst = append(dst, ' ')
		dst = r.Args.Append(dst)
	}
	return append(dst, '\r', '\n')
}

// ParseRequest decodes a request line without its terminator. Blanks before
// the command are skipped; the command ends at the first byte that is not a
// letter, a digit or "_", and its arguments follow after any number of blanks,
// none included ("GET_PATHS&domain=d" is what one client sends). A line
// without a command is answered by [ErrUnknownCommand].
//
// Empty lines, which get no reply at all, and lines of the administration port
// ("!stats") are the listener's business.
func ParseRequest(line string) (Request, error) {
	line = strings.TrimLeft(line, blanks)
	end := 0
	for end < len(line) && isWord(line[end]) {
		end++
	}
	if end == 0 {
		return Request{}, ErrUnknownCommand
	}
	return Request{
		Command: strings.ToLower(line[:end]),
		Args:    ParseArgs(strings.TrimLeft(line[end:], blanks)),
	}, nil
}

const blanks = " \t\r\v\f"

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// AppendOK appends a reply of success, with CRLF. The blank after OK is always
// there: some clients refuse a line without it. The first field's name must
// not begin with a digit.
func AppendOK(dst []byte, fields Args) []byte {
	dst = append(dst, "OK "...)
	dst = fields.Append(dst)
	return append(dst, '\r', '\n')
}

// AppendErr appends a refusal, with CRLF. callid is the request's, nil where it
// had none.
func AppendErr(dst []byte, e *Error, callid *string) []byte {
	dst = append(dst, "ERR "...)
	dst = append(dst, e.Code...)
	dst = append(dst, ' ')
	dst = AppendEscaped(dst, e.Message())
	if callid != nil {
		dst = append(dst, ' ')
		dst = AppendEscaped(dst, *callid)
	}
	return append(dst, '\r', '\n')
}

// ErrBadReply is matched by the errors of [ParseReply] for a line that is
// neither success nor refusal. The connection it came from must be dropped.
var ErrBadReply = errors.New("reply is neither OK nor ERR")

// ParseReply decodes a reply line without its terminator. A refusal is
// returned as an error of type *[Error]; the callid of either kind is in the
// fields ("callid"), so that a caller can check whose answer it is.
func ParseReply(line string) (Args, error) {
	if rest, ok := strings.CutPrefix(line, "OK"); ok && (rest == "" || rest[0] == ' ') {
		rest = strings.TrimLeft(rest, " ")
		// Releases before 2.0 sent the payload's length first.
		if digits, payload, ok := strings.Cut(rest, " "); ok && digits != "" && strings.Trim(digits, "0123456789") == "" {
			rest = payload
		}
		return ParseArgs(rest), nil
	}
	if rest, ok := strings.CutPrefix(line, "ERR "); ok {
		code, rest, _ := strings.Cut(rest, " ")
		text, callid, hasCallID := strings.Cut(rest, " ")
		if code == "" || strings.TrimFunc(code, func(r rune) bool { return r < 128 && isWord(byte(r)) }) != "" {
			return nil, fmt.Errorf("%.80q: %w", line, ErrBadReply)
		}
		var fields Args
		if hasCallID {
			fields.Add("callid", Unescape(callid))
		}
		return fields, &Error{Code: code, Text: Unescape(text)}
	}
	return nil, fmt.Errorf("%.80q: %w", line, ErrBadReply)
}
