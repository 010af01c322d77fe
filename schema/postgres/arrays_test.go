package postgres

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// TestArrays: the server reads arrays as they were meant, and as pgx has it.
func TestArrays(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	ours, theirs := connect(t, dsn), connect(t, dsn)
	registerArrays(ours)
	for _, c := range []struct {
		kind  string
		value any
	}{
		{"int2[]", []int16{1, -1, math.MaxInt16, math.MinInt16}}, {"int2[]", []int16{}}, {"int2[]", []int16(nil)},
		{"int8[]", []int64{0, -1, math.MaxInt64, math.MinInt64}}, {"int8[]", []int64{}}, {"int8[]", []int64(nil)},
		{"text[]", []string{"", "a b", `"{}\,`, "NULL", "ä", strings.Repeat("x", 5000)}}, {"text[]", []string{}}, {"text[]", []string(nil)},
	} {
		var texts [2]*string
		for i, conn := range []*pgx.Conn{ours, theirs} {
			if err := conn.QueryRow(t.Context(), "SELECT $1::"+c.kind+"::text", c.value).Scan(&texts[i]); err != nil {
				t.Fatalf("%v as %s: %v", c.value, c.kind, err)
			}
		}
		if !reflect.DeepEqual(texts[0], texts[1]) {
			t.Errorf("%v as %s: %v, by pgx %v", c.value, c.kind, texts[0], texts[1])
		}
	}
	// Narrower and wider slices, and answers, go their old way.
	var got []int64
	if err := ours.QueryRow(t.Context(), "SELECT $1::int8[]", []int16{3, 4}).Scan(&got); err != nil || !slices.Equal(got, []int64{3, 4}) {
		t.Errorf("%v, %v", got, err)
	}
}
