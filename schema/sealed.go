package schema

import (
	"strings"

	"github.com/mogile/mogile/protocol"
)

// sealFirst is how to get what is refused.
const sealFirst = " needs a sealed schema: see mogile migrate --seal"

// CheckHash refuses, with the code invalid_hashtype, algorithms that MogileFS's
// trackers would misread, in a database that they may use.
func CheckHash(hash protocol.HashType, sealed bool) error {
	if hash <= protocol.HashSHA1 || sealed {
		return nil
	}
	return &protocol.Error{Code: "invalid_hashtype", Text: "The hash type " + hash.String() + sealFirst}
}

// CheckPolicy does the same, with the code invalid_replpolicy, for replication
// policies.
func CheckPolicy(policy string, sealed bool) error {
	if !strings.Contains(policy, "ErasureCode") || sealed {
		return nil
	}
	return &protocol.Error{Code: "invalid_replpolicy", Text: "ErasureCode" + sealFirst}
}
