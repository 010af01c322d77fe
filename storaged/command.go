package storaged

import (
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// verb is what a line of the side channel asks for.
type verb int

const (
	verbUnknown  verb = iota // answered "ERROR: unknown command: word"
	verbBlank                // an empty line, answered by one
	verbBadURI               // answered "ERROR: uri invalid (contains ..)"
	verbSize                 // size uri
	verbDigest               // MD5 uri [reason], SHA-1 uri [reason], BLAKE3 uri [reason]
	verbVerify               // verify uri MD5|SHA-1|BLAKE3|- [reason]: ours
	verbWatch                // watch
	verbShutdown             // shutdown [graceful]
	verbThreads              // server aio_threads = n
)

// command is one line of the side channel, parsed.
type command struct {
	verb   verb
	word   string            // the first word as it was sent
	uri    string            // as it was sent; begins with a slash
	hash   protocol.HashType // of verbDigest and verbVerify; there it may be none
	reason string            // of verbDigest and verbVerify, may be empty

	graceful bool // of verbShutdown: the word was there
}

// reasonFsck and reasonScrub mark readings of which one at a time runs on a file
// system.
const (
	reasonFsck  = "fsck"
	reasonScrub = "scrub" // ours
)

// patient reports whether what c asks for is done when nothing else is: one at a
// time, and without throwing out of memory what clients read.
func (c *command) patient() bool { return c.reason == reasonFsck || c.reason == reasonScrub }

// maxThreads is the most that "server aio_threads" may ask for.
const maxThreads = 100

// parseCommand reads a line without its terminator. It accepts anything: a
// line that it cannot make sense of is verbUnknown. Words are case-sensitive,
// watch excepted, for MogileFS 2.73 takes that in any case.
func parseCommand(line string) command {
	words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\v\f", r) })
	if len(words) == 0 {
		return command{verb: verbBlank}
	}
	c := command{word: words[0]}
	args := words[1:]
	switch hash, isHash := protocol.ParseHashType(c.word); {
	case c.word == "size" && len(args) == 1:
		c.setURI(verbSize, args[0])
	case isHash && (len(args) == 1 || len(args) == 2):
		c.hash = hash
		if len(args) == 2 {
			c.reason = args[1]
		}
		c.setURI(verbDigest, args[0])
	case c.word == "verify" && (len(args) == 2 || len(args) == 3):
		if args[1] != "-" {
			if c.hash, isHash = protocol.ParseHashType(args[1]); !isHash {
				break
			}
		}
		if len(args) == 3 {
			c.reason = args[2]
		}
		c.setURI(verbVerify, args[0])
	case strings.EqualFold(c.word, "watch") && len(args) == 0:
		c.verb = verbWatch
	case c.word == "shutdown" && (len(args) == 0 || len(args) == 1 && args[0] == "graceful"):
		c.verb, c.graceful = verbShutdown, len(args) == 1
	case c.word == "server":
		name, value, ok := strings.Cut(strings.Join(args, ""), "=")
		if n, err := strconv.Atoi(value); ok && name == "aio_threads" && err == nil && n >= 1 && n <= maxThreads {
			c.verb = verbThreads
		}
	}
	return c
}

func (c *command) setURI(v verb, uri string) {
	switch {
	case !strings.HasPrefix(uri, "/"): // stays unknown
	case strings.Contains(uri, ".."):
		c.verb = verbBadURI
	default:
		c.verb, c.uri = v, uri
	}
}
