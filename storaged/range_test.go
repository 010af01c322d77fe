package storaged

import (
	"errors"
	"fmt"
	"math"
	"testing"
)

func TestSelectRange(t *testing.T) {
	t.Parallel()
	const size = 10
	for _, c := range []struct {
		header string
		status int
		want   span
	}{
		{"bytes=0-0", 206, span{0, 1}},
		{"bytes=2-5", 206, span{2, 4}},
		{"bytes=2-9", 206, span{2, 8}},
		{"bytes=2-10", 206, span{2, 8}},
		{"bytes=2-99999999999999999999", 206, span{2, 8}},
		{"bytes=2-", 206, span{2, 8}},
		{"bytes=0-", 206, span{0, 10}},
		{"bytes=9-", 206, span{9, 1}},
		{" bytes=9- ", 206, span{9, 1}},
		{"Bytes=9-", 206, span{9, 1}},
		{"bytes=-1", 206, span{9, 1}},
		{"bytes=-10", 206, span{0, 10}},
		{"bytes=-11", 200, span{0, 10}},
		{"bytes=-99999999999999999999", 200, span{0, 10}},
		{"bytes=-0", 416, span{}},
		{"bytes=10-", 416, span{}},
		{"bytes=10-12", 416, span{}},
		{"bytes=99999999999999999999-", 416, span{}},
		{"bytes=5-4", 416, span{}},
		{"bytes=", 400, span{}},
		{"bytes=-", 400, span{}},
		{"bytes", 400, span{}},
		{"", 400, span{}},
		{"lines=1-2", 400, span{}},
		{"bytes=1-2,4-5", 400, span{}},
		{"bytes=1-2,", 400, span{}},
		{"bytes=a-b", 400, span{}},
		{"bytes=1-b", 400, span{}},
		{"bytes=+1-2", 400, span{}},
		{"bytes=1-2-3", 400, span{}},
		{"bytes=--1", 400, span{}},
		{"bytes= 1-2", 400, span{}},
	} {
		got, status := selectRange([]string{c.header}, size)
		if got != c.want || status != c.status {
			t.Errorf("selectRange(%q, %d) = %v, %d, want %v, %d", c.header, size, got, status, c.want, c.status)
		}
	}
	for _, c := range []struct {
		headers []string
		size    int64
		status  int
		want    span
	}{
		{nil, size, 200, span{0, size}},
		{nil, 0, 200, span{}},
		{[]string{"bytes=0-1", "bytes=2-3"}, size, 400, span{}},
		{[]string{"bytes=0-"}, 0, 416, span{}},
		{[]string{"bytes=-1"}, 0, 200, span{}},
	} {
		if got, status := selectRange(c.headers, c.size); got != c.want || status != c.status {
			t.Errorf("selectRange(%q, %d) = %v, %d, want %v, %d", c.headers, c.size, got, status, c.want, c.status)
		}
	}
}

func FuzzSelectRange(f *testing.F) {
	f.Add("bytes=0-0", int64(1))
	f.Add("bytes=-5", int64(10))
	f.Add("bytes=5-", int64(10))
	f.Add("bytes=9223372036854775807-9223372036854775808", int64(10))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		got, status := selectRange([]string{header}, size)
		switch status {
		case 200:
			if got != (span{0, size}) {
				t.Errorf("%q of %d: 200 with %v", header, size, got)
			}
		case 206:
			if got.off < 0 || got.n < 1 || got.off > size-got.n {
				t.Errorf("%q of %d: 206 with %v", header, size, got)
			}
			again, status := selectRange([]string{fmt.Sprintf("bytes=%d-%d", got.off, got.off+got.n-1)}, size)
			if again != got || status != 206 {
				t.Errorf("%q of %d: %v, spelled out %v and %d", header, size, got, again, status)
			}
		case 400, 416:
			if got != (span{}) {
				t.Errorf("%q of %d: %d with %v", header, size, status, got)
			}
		default:
			t.Errorf("%q of %d: %d", header, size, status)
		}
	})
}

func TestParseContentRange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		header string
		want   span
		err    error
	}{
		{"bytes 5-5/*", span{5, 1}, nil},
		{"bytes 0-9/10", span{0, 10}, nil},
		{" bytes  0-9/10 ", span{0, 10}, nil},
		{"bytes 9223372036854775806-9223372036854775806/*", span{math.MaxInt64 - 1, 1}, nil},
		{"bytes 0-9223372036854775807/*", span{}, errOverflow},
		{"bytes 0-9223372036854775808/*", span{}, errOverflow},
		{"bytes 99999999999999999999-99999999999999999999/*", span{}, errOverflow},
		{"bytes 0-9/99999999999999999999", span{}, errOverflow},
		{"bytes 5-4/*", span{}, errMalformed},
		{"bytes 5-/*", span{}, errMalformed},
		{"bytes -5/*", span{}, errMalformed},
		{"bytes */10", span{}, errMalformed},
		{"bytes 0-9", span{}, errMalformed},
		{"bytes 0-9/", span{}, errMalformed},
		{"bytes=0-9/*", span{}, errMalformed},
		{"0-9/*", span{}, errMalformed},
		{"", span{}, errMalformed},
	} {
		got, err := parseContentRange(c.header)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("parseContentRange(%q) = %v, %v, want %v, %v", c.header, got, err, c.want, c.err)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 5-5/*")
	f.Add("bytes 0-9223372036854775807/*")
	f.Fuzz(func(t *testing.T, header string) {
		got, err := parseContentRange(header)
		if err != nil {
			return
		}
		if got.off < 0 || got.n < 1 || got.off > math.MaxInt64-got.n {
			t.Errorf("%q: %v", header, got)
		}
		again, err := parseContentRange(fmt.Sprintf("bytes %d-%d/*", got.off, got.off+got.n-1))
		if err != nil || again != got {
			t.Errorf("%q: %v, spelled out %v and %v", header, got, again, err)
		}
	})
}
