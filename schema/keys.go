package schema

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/mogile/mogile/protocol"
)

// The longest keys.
const (
	MaxKeyChars       = 255  // where MogileFS may use the database too: the width of file.dkey
	MaxSealedKeyBytes = 1024 // where it may not
)

// CheckKey refuses, with an error matching protocol.ErrInvalidKey that says why,
// keys that a database cannot hold. Databases in SQL_ASCII hold any bytes but
// NUL, all others only UTF-8.
func CheckKey(key string, ascii, sealed bool) error {
	reason := ""
	switch {
	case key == "":
		reason = "The key is empty"
	case strings.IndexByte(key, 0) >= 0:
		reason = "The key has a NUL character in it"
	case !ascii && !utf8.ValidString(key):
		reason = "The key is not valid UTF-8"
	case sealed && len(key) > MaxSealedKeyBytes:
		reason = fmt.Sprintf("The key is longer than %d bytes", MaxSealedKeyBytes)
	case !sealed && ascii && len(key) > MaxKeyChars:
		reason = fmt.Sprintf("The key is longer than %d bytes", MaxKeyChars)
	case !sealed && !ascii && utf8.RuneCountInString(key) > MaxKeyChars:
		reason = fmt.Sprintf("The key is longer than %d characters", MaxKeyChars)
	default:
		return nil
	}
	return InvalidKey(reason)
}

// InvalidKey is the refusal of a key for a reason.
func InvalidKey(reason string) error {
	return &protocol.Error{Code: protocol.ErrInvalidKey.Code, Text: reason}
}

// FIDMismatch is the refusal of a change that was to be made only while the key
// names want, where it names got; 0 is no file in both. It matches
// protocol.ErrFIDMismatch.
func FIDMismatch(want, got protocol.FID) error {
	text := ""
	switch {
	case want == got: // when it was looked at, but not when it was to be changed
		text = "The key is being changed by somebody else"
	case want == 0:
		text = fmt.Sprintf("The key names fid %d, and should name no file", got)
	case got == 0:
		text = fmt.Sprintf("The key names no file, and should name fid %d", want)
	default:
		text = fmt.Sprintf("The key names fid %d, and should name fid %d", got, want)
	}
	return &protocol.Error{Code: protocol.ErrFIDMismatch.Code, Text: text}
}

// Conditional reports whether the close depends on what the key names.
func (c Close) Conditional() bool { return c.NoOverwrite || c.IfFID != nil }

// Refusal is why the file must not be closed while its key names now, 0 for no
// file; nil where it may. That the key names the file itself is no reason: the
// upload has been closed before.
func (c Close) Refusal(now protocol.FID) error {
	switch {
	case now == c.FID:
	case c.NoOverwrite && now != 0:
		return protocol.ErrKeyExists
	case c.IfFID != nil && *c.IfFID != now:
		return FIDMismatch(*c.IfFID, now)
	}
	return nil
}
