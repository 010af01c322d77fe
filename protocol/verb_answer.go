package protocol

import (
	"fmt"
	"strings"
)

// MaxAnswerLine bounds a line of the answer to an order, LF included, in bytes.
const MaxAnswerLine = 64 << 10

// AnswerKind is what a line of the answer to an order is.
type AnswerKind int

// The lines of an answer: any number of the first two in any order, then one of
// the last two, then no more. An answer that ends without a last line is that
// of a daemon that was cut off.
const (
	AnswerProgress AnswerKind = iota + 1 // comes every second while the daemon works
	AnswerItem                           // one of what was asked for
	AnswerOK                             // it is done
	AnswerErr                            // it is not
)

// answerWords begin the lines.
var answerWords = [...]string{AnswerProgress: "PROGRESS", AnswerItem: "ITEM", AnswerOK: "OK", AnswerErr: "ERR"}

// String is the word that lines of the kind begin with.
func (k AnswerKind) String() string {
	if k < AnswerProgress || k > AnswerErr {
		return fmt.Sprintf("answer-%d", int(k))
	}
	return answerWords[k]
}

// AnswerLine is one line of the answer to an order.
type AnswerLine struct {
	Kind   AnswerKind
	Err    *Error // of AnswerErr
	Fields Args
}

// Append appends the line: its kind, of an AnswerErr the code and the text, and
// the fields, separated by single blanks, and LF.
func (l AnswerLine) Append(dst []byte) []byte {
	dst = append(append(dst, l.Kind.String()...), ' ')
	if l.Kind == AnswerErr {
		dst = append(append(dst, l.Err.Code...), ' ')
		dst = append(AppendEscaped(dst, l.Err.Message()), ' ')
	}
	return append(l.Fields.Append(dst), '\n')
}

// ParseAnswerLine reads a line of an answer, without its LF. Its errors match
// ErrBadReply. Lines of kinds that are not known are of a newer daemon, and not
// understood.
func ParseAnswerLine(line string) (AnswerLine, error) {
	word, rest, ok := strings.Cut(line, " ")
	for kind := AnswerProgress; ok && kind <= AnswerErr; kind++ {
		if answerWords[kind] != word {
			continue
		}
		l := AnswerLine{Kind: kind}
		if kind == AnswerErr {
			code, tail, ok := strings.Cut(rest, " ")
			text, fields, ok2 := strings.Cut(tail, " ")
			if !ok || !ok2 || code == "" || strings.TrimFunc(code, func(r rune) bool { return r < 128 && isWord(byte(r)) }) != "" {
				break
			}
			l.Err, rest = &Error{Code: code, Text: Unescape(text)}, fields
		}
		l.Fields = ParseArgs(rest)
		return l, nil
	}
	return AnswerLine{}, fmt.Errorf("%.80q: %w", line, ErrBadReply)
}
