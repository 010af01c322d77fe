package schema

import "strconv"

// maxNumber is the highest number of a domain or a class: what the columns hold.
const maxNumber = 1<<15 - 1

// The numbers of deleted domains and classes are not given out again: uploads
// and changes that began before would end in strangers' domains and classes. The
// highest that were deleted are in table mogile_meta.

// HighestDMID is the name in mogile_meta of the highest dmid that was deleted.
const HighestDMID = "highest dmid"

// HighestClassID is the name in mogile_meta of the highest classid of a domain
// that was deleted.
func HighestClassID(dmid DMID) string { return "highest classid of domain " + strconv.Itoa(int(dmid)) }

// NextNumber follows the highest number that a domain or a class has and that
// one had which was deleted (each 0 for none). Where the column's numbers are
// used up it gives out deleted ones again.
func NextNumber(live, deleted int) int {
	if next := max(live, deleted) + 1; next <= maxNumber {
		return next
	}
	return live + 1
}
