package mogile

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/mogile/mogile/tools/mogile/getopt"
	"github.com/mogile/mogile/tools/mogile/mogdbsetup"
)

// runMogdbsetup is the binary under the name mogdbsetup.
func runMogdbsetup(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	const name = "mogdbsetup"
	o, err := mogdbsetup.Parse(args[1:])
	switch {
	case errors.As(err, new(*getopt.Error)):
		fmt.Fprintf(stderr, "%s: %v: see %[1]s --help\n", name, err)
		return ExitUsage
	case o.Help:
		fmt.Fprint(stdout, mogdbsetup.Help())
		return ExitDone
	}
	if err := mogdbsetup.Setup(ctx, o, stdin, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return ExitFailed
	}
	return ExitDone
}
