//go:build !unix

package mogile

import "os"

// There are no such signals here.
func notifyStorage(chan<- os.Signal) {}

func isReplace(os.Signal) bool { return false }

func ignoreBrokenPipes() {}

func openFiles() uint64 { return ^uint64(0) }
