// Mogile is a distributed file store: trackers keep a namespace of keys in a
// database, storage daemons keep plain files, and workers keep as many copies
// of each as its class asks for.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/mogile/mogile/tools/mogile"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal kills: by then stop has given it back its default.
	context.AfterFunc(ctx, stop)
	os.Exit(mogile.Run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}
