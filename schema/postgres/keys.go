package postgres

import (
	"unicode/utf8"

	"github.com/mogile/mogile/schema"
)

// keyName is a key in its domain.
type keyName struct {
	dmid schema.DMID
	key  string
}

func (s *Store) checkKey(key string) error { return schema.CheckKey(key, s.ascii, s.sealed()) }

// keyError turns the server's refusal of a key into ours.
func keyError(err error) error {
	switch state(err) {
	case stateTooLong:
		return schema.InvalidKey("The key is too long for the database")
	case stateNotInEncoding:
		return schema.InvalidKey("The key is not in the database's encoding")
	}
	return err
}

// keyRange is the range of storable keys, in byte order, that begin with
// prefix and are greater than after: from is its inclusive lower end, to its
// exclusive upper end, nil where there is none. ok is false where no key can be
// in it. Prefix and after may be any bytes.
func keyRange(prefix, after string, ascii bool) (from string, to *string, ok bool) {
	if from, ok = ceil(max(prefix, after+"\x01"), ascii); !ok {
		return "", nil, false
	}
	end := []byte(prefix)
	for len(end) > 0 && end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	if len(end) > 0 {
		end[len(end)-1]++
		if s, ok := ceil(string(end), ascii); ok {
			to = &s
		}
	}
	return from, to, to == nil || from < *to
}

// ceil is the least string that a database can hold and that is not less than
// s in byte order; there may be none.
func ceil(s string, ascii bool) (string, bool) {
	valid := 0 // bytes of s that a key can begin with
	for valid < len(s) && s[valid] != 0 {
		size := 1
		if !ascii {
			var r rune
			if r, size = utf8.DecodeRuneInString(s[valid:]); r == utf8.RuneError && size == 1 {
				break
			}
		}
		valid += size
	}
	head, rest := s[:valid], s[valid:]
	switch {
	case rest == "":
		return s, true
	case ascii: // rest begins with NUL
		return head + "\x01", true
	}
	if r, ok := leastRune(rest); ok {
		return head + string(r), true
	}
	// No character follows head so late: the next string that does not begin
	// with head.
	for head != "" {
		last, size := utf8.DecodeLastRuneInString(head)
		head = head[:len(head)-size]
		if last < utf8.MaxRune {
			if last++; last == 0xd800 {
				last = 0xe000
			}
			return head + string(last), true
		}
	}
	return "", false
}

// leastRune is the least character whose encoding is not less than s.
func leastRune(s string) (rune, bool) {
	low, high := rune(1), rune(utf8.MaxRune+1)
	for low < high {
		mid := low + (high-low)/2
		encoded := string(mid)
		if mid >= 0xd800 && mid < 0xe000 {
			encoded = string(rune(0xe000)) // surrogates are no characters
		}
		if encoded < s {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low >= 0xd800 && low < 0xe000 {
		low = 0xe000
	}
	return low, low <= utf8.MaxRune
}
