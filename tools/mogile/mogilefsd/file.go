package mogilefsd

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// DefaultFile is read where no other is named, if it can be.
const DefaultFile = "/etc/mogilefs/mogilefsd.conf"

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Setting is one "key = value" of a file or option of a command line.
type Setting struct {
	Key   string // a directive's name, or what stood in its place
	Value string
	From  string // where it was written, for messages: "FILE:LINE" or "--option"
}

// ParseFile reads a configuration file; name is for the messages. A line is
// "key = value", with at least one blank after the key; the equals sign and
// further blanks may be missing. Lines that are blank or begin with "#" are
// comments; nothing else is one. Whether there is such a key is not asked.
func ParseFile(name string, r io.Reader) ([]Setting, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes: this is no configuration file", name, maxFile)
	}
	var settings []Setting
	n := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		n++
		line = strings.Trim(line, blanks)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: Malformed config file (line %d): %w", name, n, n, err)
		}
		settings = append(settings, Setting{key, value, fmt.Sprintf("%s:%d", name, n)})
	}
	return settings, nil
}

const blanks = " \t\r\f\v"

// parseLine takes a line without blanks at its ends apart.
func parseLine(line string) (key, value string, err error) {
	rest := strings.TrimLeftFunc(line, func(r rune) bool {
		return r == '_' || r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
	})
	key = line[:len(line)-len(rest)]
	switch {
	case key == "":
		return "", "", errors.New("a line begins with a key of letters, digits, _ and ., or with #")
	case rest == "":
		return "", "", fmt.Errorf("%s has no value", key)
	case !strings.ContainsRune(blanks, rune(rest[0])):
		return "", "", fmt.Errorf("a blank must follow the key, as in %q", key+" = value")
	}
	rest = strings.TrimLeft(rest, blanks)
	return key, strings.TrimLeft(strings.TrimPrefix(rest, "="), blanks), nil
}
