package load

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/mogile/mogile/protocol"
)

// maxReply bounds a reply: a page of 1,000 keys of 1,024 bytes, escaped, has
// 3 MB.
const maxReply = 8 << 20

// Tracker is a connection to a tracker, used by one client. A request is made
// by Begin and the methods that add arguments, and sent by Do:
//
//	t.Begin("get_paths")
//	t.Text("domain", "photos")
//	t.Text("key", "cat")
//	reply, err := t.Do()
type Tracker struct {
	addr    string
	timeout time.Duration
	nc      net.Conn // nil until it is needed
	out     []byte
	args    bool // out has an argument
	in      []byte
}

// NewTracker is a connection that is made when it is needed.
func NewTracker(addr string, timeout time.Duration) *Tracker {
	return &Tracker{addr: addr, timeout: timeout, in: make([]byte, 0, 4<<10)}
}

// Close closes the connection.
func (t *Tracker) Close() error {
	if t.nc == nil {
		return nil
	}
	err := t.nc.Close()
	t.nc = nil
	return err
}

// Begin starts a request.
func (t *Tracker) Begin(command string) {
	t.out = append(append(t.out[:0], command...), ' ')
	t.args = false
}

func (t *Tracker) name(name string) {
	if t.args {
		t.out = append(t.out, '&')
	}
	t.args = true
	t.out = append(append(t.out, name...), '=')
}

// Text adds an argument.
func (t *Tracker) Text(name, value string) {
	t.name(name)
	t.out = protocol.AppendEscaped(t.out, value)
}

// Int adds an argument.
func (t *Tracker) Int(name string, value int64) {
	t.name(name)
	t.out = strconv.AppendInt(t.out, value, 10)
}

// Numbered adds an argument that is a text and a number of at least 10 digits.
func (t *Tracker) Numbered(name, value string, n int64) {
	t.Text(name, value)
	t.out = AppendPadded(t.out, n)
}

// AppendPadded appends n with at least 10 digits, so that the order of texts is
// that of numbers.
func AppendPadded(b []byte, n int64) []byte {
	for limit := int64(1e9); limit > max(n, 1); limit /= 10 {
		b = append(b, '0')
	}
	return strconv.AppendInt(b, n, 10)
}

// Raw adds an argument as it stood in a reply.
func (t *Tracker) Raw(name string, value []byte) {
	t.name(name)
	t.out = append(t.out, value...)
}

// Reply is the fields of a reply, still escaped. It is valid until the next
// request of its connection.
type Reply []byte

// Raw is the first field of that name, escaped; nil where there is none.
func (r Reply) Raw(name string) []byte {
	for len(r) > 0 {
		field := []byte(r)
		if i := bytes.IndexByte(r, '&'); i >= 0 {
			field, r = r[:i], r[i+1:]
		} else {
			r = nil
		}
		if len(field) > len(name) && field[len(name)] == '=' && string(field[:len(name)]) == name {
			return field[len(name)+1:]
		}
	}
	return nil
}

// Int is the first field of that name, 0 where it is no number.
func (r Reply) Int(name string) int64 { return Number(r.Raw(name)) }

// Cut is the first field, and what follows it.
func (r Reply) Cut() (name, value []byte, rest Reply) {
	field, after, _ := bytes.Cut(r, []byte{'&'})
	name, value, _ = bytes.Cut(field, []byte{'='})
	return name, value, after
}

// Number is that of decimal digits, 0 where there is anything else.
func Number(b []byte) int64 {
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' || n > 1<<58 {
			return 0
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// errReply is an answer that is none.
var errReply = errors.New("the tracker's answer makes no sense")

// Do sends the request and waits for its reply. A refusal is a *protocol.Error.
func (t *Tracker) Do() (Reply, error) {
	reply, err := t.exchange()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tracker %s: %w", t.addr, err), t.Close())
	}
	if after, ok := bytes.CutPrefix(reply, []byte("OK")); ok && (len(after) == 0 || after[0] == ' ') {
		return Reply(bytes.TrimPrefix(after, []byte{' '})), nil
	}
	if after, ok := bytes.CutPrefix(reply, []byte("ERR ")); ok {
		code, text, _ := bytes.Cut(after, []byte{' '})
		return nil, &protocol.Error{Code: string(code), Text: protocol.Unescape(string(text))}
	}
	return nil, errors.Join(fmt.Errorf("tracker %s: %w: %q", t.addr, errReply, reply[:min(len(reply), 100)]), t.Close())
}

// exchange returns the line that answers.
func (t *Tracker) exchange() ([]byte, error) {
	if t.nc == nil {
		nc, err := net.DialTimeout("tcp", t.addr, t.timeout)
		if err != nil {
			return nil, err
		}
		t.nc = nc
	}
	if err := t.nc.SetDeadline(time.Now().Add(t.timeout)); err != nil {
		return nil, err
	}
	t.out = append(t.out, '\r', '\n')
	if _, err := t.nc.Write(t.out); err != nil {
		return nil, err
	}
	t.in = t.in[:0]
	for {
		if len(t.in) == cap(t.in) {
			if len(t.in) >= maxReply {
				return nil, fmt.Errorf("a reply of more than %d bytes", maxReply)
			}
			t.in = append(make([]byte, 0, 2*cap(t.in)), t.in...)
		}
		n, err := t.nc.Read(t.in[len(t.in):cap(t.in)])
		t.in = t.in[:len(t.in)+n]
		if n > 0 && t.in[len(t.in)-1] == '\n' {
			line := bytes.TrimSuffix(t.in[:len(t.in)-1], []byte{'\r'})
			if bytes.IndexByte(line, '\n') >= 0 {
				return nil, errReply // two answers to one request
			}
			return line, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
