package protocol

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What an order to a storage daemon may be.
const (
	// MaxOrder bounds an order, signature included, in bytes. The longest say where
	// ten thousand devices are.
	MaxOrder = 512 << 10
	// MaxOrderArgs bounds its arguments.
	MaxOrderArgs = 64
	// MaxClockSkew is how far the clocks of who orders and who obeys may be
	// apart. It is also how long an order can be on its way.
	MaxClockSkew = 2 * time.Minute
	// MaxOrderLife bounds the time from an order to its deadline.
	MaxOrderLife = 24 * time.Hour
)

// OrderPath is the folder in which storage daemons take orders: an order is the
// body of an HTTP POST to OrderPath + its verb.
const OrderPath = "/.mogile/"

// OrderType is the Content-Type of an order. A web page cannot have a browser
// send it without being asked first.
const OrderType = "application/x-mogile-order"

// VerbNone is a verb that no storage daemon has. Since everything else about an
// order is looked at first, ErrUnknownVerb says that others would be taken.
const VerbNone = "none"

// orderForm begins every order: a signature of one can be that of nothing else.
const orderForm = "mogile-order"

// orderVersion is the version of the form.
const orderVersion = "1"

// Refusals of orders. Their texts name the clocks where these matter.
var (
	ErrBadOrder       = Err("bad_order")       // not an order, or arguments that make no sense
	ErrUnknownVersion = Err("unknown_version") // an order of a form that is not understood
	ErrUnknownVerb    = Err("unknown_verb")    // a verb that this daemon does not have
	ErrNoKey          = Err("no_key")          // the daemon has no cluster key, and takes no orders from other machines
	ErrBadSignature   = Err("bad_signature")   // unsigned, or signed with another key
	ErrClockSkew      = Err("clock_skew")      // given more than MaxClockSkew before or after now
	ErrOrderExpired   = Err("order_expired")   // its deadline has passed
	ErrOrderTooLong   = Err("order_too_long")  // its deadline is more than MaxOrderLife after it was given
	ErrOrderReplayed  = Err("order_replayed")  // it was taken before
)

// Order is what a tracker wants a storage daemon to do.
//
// An order is for whoever has the devices that it names: no two hosts of a
// cluster have one of the same number. It is taken for MaxClockSkew after it
// was given, and once.
type Order struct {
	Verb     string // small letters, digits and "_"
	Issued   time.Time
	Deadline time.Time // the work is given up then
	Nonce    string    // 32 hexadecimal digits, never used before
	Args     Args      // sorted by name, each name once
}

// NewOrder is an order given now, to be done within a time of at most
// MaxOrderLife.
func NewOrder(verb string, now time.Time, within time.Duration, args Args) Order {
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails
	now = now.Truncate(time.Millisecond)
	o := Order{Verb: verb, Issued: now, Deadline: now.Add(within.Truncate(time.Millisecond)), Nonce: hex.EncodeToString(nonce[:]), Args: slices.Clone(args)}
	slices.SortFunc(o.Args, func(a, b Arg) int { return cmp.Compare(a.Name, b.Name) })
	return o
}

// append appends the order's line, which is what is signed: the form, its
// version, the verb, the times in milliseconds since 1970, the nonce and the
// arguments, and LF.
func (o Order) append(dst []byte) []byte {
	dst = append(dst, orderForm+" "+orderVersion+" "...)
	dst = append(append(dst, o.Verb...), ' ')
	dst = append(strconv.AppendInt(dst, o.Issued.UnixMilli(), 10), ' ')
	dst = append(strconv.AppendInt(dst, o.Deadline.UnixMilli(), 10), ' ')
	dst = append(append(dst, o.Nonce...), ' ')
	return append(o.Args.Append(dst), '\n')
}

const (
	signedBy = "hmac-sha256 "
	unsigned = "unsigned"
)

// Sign is the order as it is sent: its line, and a line with the HMAC-SHA256 of
// that, LF included, in hexadecimal. Without a key it says "unsigned".
func (o Order) Sign(key []byte) []byte {
	b := o.append(make([]byte, 0, 512))
	if len(key) == 0 {
		return append(b, unsigned+"\n"...)
	}
	sum := sign(key, b)
	b = append(b, signedBy...)
	return append(hex.AppendEncode(b, sum), '\n')
}

func sign(key, text []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(text) // hashes do not fail
	return mac.Sum(nil)
}

// SignedOrder is an order as it was received. Nothing of it may be believed
// before Verify.
type SignedOrder struct {
	Order
	line []byte
	mac  []byte // nil where it is unsigned
}

// ParseOrder reads what Sign writes, and nothing else. Its errors match
// ErrBadOrder or ErrUnknownVersion.
func ParseOrder(body []byte) (SignedOrder, error) {
	bad := func(why string) (SignedOrder, error) {
		return SignedOrder{}, &Error{Code: ErrBadOrder.Code, Text: why}
	}
	if len(body) > MaxOrder {
		return bad(fmt.Sprintf("the order is longer than %d bytes", MaxOrder))
	}
	end := bytes.IndexByte(body, '\n') + 1
	words := strings.SplitN(string(body[:max(end-1, 0)]), " ", 8)
	if len(words) < 2 || words[0] != orderForm {
		return bad("this is not an order")
	}
	if words[1] != orderVersion {
		return SignedOrder{}, &Error{Code: ErrUnknownVersion.Code, Text: fmt.Sprintf("orders of version %.20q are not understood, only version %s", words[1], orderVersion)}
	}
	if len(words) != 7 {
		return bad("the order does not have seven words")
	}
	issued, err1 := strconv.ParseInt(words[3], 10, 64)
	deadline, err2 := strconv.ParseInt(words[4], 10, 64)
	o := SignedOrder{
		Order: Order{Verb: words[2], Issued: time.UnixMilli(issued), Deadline: time.UnixMilli(deadline), Nonce: words[5]},
		line:  body[:end],
	}
	if err1 != nil || err2 != nil || !isVerb(o.Verb) || !isNonce(o.Nonce) {
		return bad("its verb, times or nonce are malformed")
	}
	if strings.Count(words[6], "&") >= MaxOrderArgs {
		return bad(fmt.Sprintf("the order has more than %d arguments", MaxOrderArgs))
	}
	o.Args = ParseArgs(words[6])
	for i := 1; i < len(o.Args); i++ {
		if o.Args[i-1].Name >= o.Args[i].Name {
			return bad("its arguments are not sorted")
		}
	}
	// One way to write each order: no two recipients can read it differently.
	if !bytes.Equal(o.append(nil), o.line) {
		return bad("the order is not in its canonical form")
	}
	switch tail := string(body[end:]); {
	case tail == unsigned+"\n":
	default:
		digits, ok := strings.CutPrefix(strings.TrimSuffix(tail, "\n"), signedBy)
		sum, err := hex.DecodeString(digits)
		if !ok || err != nil || len(sum) != sha256.Size || string(append(hex.AppendEncode([]byte(signedBy), sum), '\n')) != tail {
			return bad("its signature is malformed")
		}
		o.mac = sum
	}
	return o, nil
}

func isVerb(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isWord(c) || c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return s != "" && len(s) <= 32
}

func isNonce(s string) bool {
	for i := range len(s) {
		if c := s[i]; unhex(c) < 0 || c >= 'A' && c <= 'F' {
			return false
		}
	}
	return len(s) == 32
}

// Verify says whether the order is to be obeyed now: signed with one of the
// keys, given lately, not over, and not for ever. Without keys the signature is
// not looked at. Its errors match ErrBadSignature, ErrClockSkew, ErrOrderExpired
// or ErrOrderTooLong. That it is not obeyed twice is for the caller to see to.
func (o SignedOrder) Verify(keys [][]byte, now time.Time) error {
	signed := len(keys) == 0
	for _, key := range keys {
		signed = hmac.Equal(sign(key, o.line), o.mac) || signed
	}
	switch {
	case !signed && o.mac == nil:
		return &Error{Code: ErrBadSignature.Code, Text: "the order is unsigned, and a cluster key is in use here"}
	case !signed:
		return &Error{Code: ErrBadSignature.Code, Text: "the order is signed with another cluster key, or was changed"}
	}
	clocks := fmt.Sprintf("ordered at %s, it is %s here", clock(o.Issued), clock(now))
	// Compared as numbers: times of an order may be anything.
	issued, at := o.Issued.UnixMilli(), now.UnixMilli()
	switch skew := MaxClockSkew.Milliseconds(); {
	case issued < at-skew || issued > at+skew:
		return &Error{Code: ErrClockSkew.Code, Text: clocks + ": set the clocks, they may differ by " + MaxClockSkew.String()}
	case o.Deadline.UnixMilli() > issued+MaxOrderLife.Milliseconds():
		return &Error{Code: ErrOrderTooLong.Code, Text: fmt.Sprintf("%s, the deadline is %s: at most %v are allowed", clocks, clock(o.Deadline), MaxOrderLife)}
	case o.Deadline.UnixMilli() <= at:
		return &Error{Code: ErrOrderExpired.Code, Text: clocks + ", the deadline was " + clock(o.Deadline)}
	}
	return nil
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
