//go:build !unix

package storaged

import (
	"errors"
	"fmt"
)

// duplicate fails: sockets are not handed over here.
func duplicate(int) (int, error) {
	return 0, fmt.Errorf("hand a socket over: %w", errors.ErrUnsupported)
}
