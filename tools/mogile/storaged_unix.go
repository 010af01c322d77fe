//go:build unix

package mogile

import (
	"os"
	"os/signal"
	"syscall"
)

// notifyStorage has SIGQUIT, which ends a storage daemon when its requests have
// been answered, and SIGUSR2, which replaces it, sent to ch.
func notifyStorage(ch chan<- os.Signal) { signal.Notify(ch, syscall.SIGQUIT, syscall.SIGUSR2) }

// isReplace tells the second of them.
func isReplace(s os.Signal) bool { return s == syscall.SIGUSR2 }

// ignoreBrokenPipes has the process live on when whoever reads its log goes.
func ignoreBrokenPipes() { signal.Ignore(syscall.SIGPIPE) }

// openFiles is how many files the process may have open.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return ^uint64(0)
	}
	return uint64(limit.Cur) // int64 on FreeBSD
}
