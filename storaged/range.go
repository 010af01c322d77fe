package storaged

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// span is a piece of a file: n bytes from off.
type span struct{ off, n int64 }

// selectRange decides what a GET with these Range headers gets of a file of
// size bytes, and the status of its answer: 200 with the whole file, 206 with a
// piece, 416, or 400 for a header that is malformed or asks for several
// ranges.
func selectRange(headers []string, size int64) (span, int) {
	whole := span{0, size}
	switch {
	case len(headers) == 0:
		return whole, http.StatusOK
	case len(headers) > 1:
		return span{}, http.StatusBadRequest
	}
	unit, set, ok := strings.Cut(strings.TrimSpace(headers[0]), "=")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return span{}, http.StatusBadRequest
	}
	first, last, ok := strings.Cut(set, "-")
	if !ok {
		return span{}, http.StatusBadRequest
	}
	if first == "" {
		n, err := offset(last)
		switch {
		case errors.Is(err, errOverflow) || err == nil && n > size:
			return whole, http.StatusOK
		case err != nil:
			return span{}, http.StatusBadRequest
		case n == 0:
			return span{}, http.StatusRequestedRangeNotSatisfiable
		}
		return span{size - n, n}, http.StatusPartialContent
	}
	a, errA := offset(first)
	if errA != nil && !errors.Is(errA, errOverflow) {
		return span{}, http.StatusBadRequest
	}
	b := int64(math.MaxInt64)
	if last != "" {
		n, err := offset(last)
		switch {
		case err == nil:
			b = n
		case !errors.Is(err, errOverflow):
			return span{}, http.StatusBadRequest
		}
	}
	if errA != nil || a >= size || a > b {
		return span{}, http.StatusRequestedRangeNotSatisfiable
	}
	return span{a, min(b, size-1) - a + 1}, http.StatusPartialContent
}

var (
	errOverflow  = errors.New("number does not fit in 63 bits")
	errMalformed = errors.New("malformed")
)

// parseContentRange reads the Content-Range of a PUT, "bytes a-b/*" or with a
// total in place of the asterisk, which is ignored. Its errors match
// errMalformed or errOverflow.
func parseContentRange(s string) (span, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), "bytes ")
	if !ok {
		return span{}, errMalformed
	}
	piece, total, ok := strings.Cut(strings.TrimSpace(rest), "/")
	if !ok {
		return span{}, errMalformed
	}
	if total != "*" {
		if _, err := offset(total); err != nil {
			return span{}, err
		}
	}
	first, last, ok := strings.Cut(piece, "-")
	if !ok {
		return span{}, errMalformed
	}
	a, errA := offset(first)
	b, errB := offset(last)
	switch {
	case errors.Is(errA, errMalformed) || errors.Is(errB, errMalformed):
		return span{}, errMalformed
	case errA != nil || errB != nil || b == math.MaxInt64:
		return span{}, errOverflow
	case a > b:
		return span{}, errMalformed
	}
	return span{a, b - a + 1}, nil
}

// offset reads digits and nothing else. Its errors are errMalformed and
// errOverflow.
func offset(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, errMalformed
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, errOverflow
	}
	return n, nil
}
