// Package process is what daemons of MogileFS's manner ask of the operating
// system: to go into the background, to leave their process id in a file, to
// speak to syslog, and to be replaced by a newer program without a pause.
//
// A Go program cannot fork. It goes into the background by starting itself
// again in a new session ([Background]); the process that the shell started
// waits until the other says that it is ready, and then ends with success, or
// ends as the other did. The same start, with listeners handed over
// ([Program.Start], [Inherited]), is how a daemon is replaced.
//
// A daemon that may do both looks like this:
//
//	self, err := process.Self()
//	parent := process.Inherited()
//	run := func(ctx context.Context, ready func() error) error {
//		pid, err := process.WritePidfile(path)
//		... bind, or take over parent.Files ...
//		err = ready()
//		... serve until ctx ends ...
//		return pid.Remove()
//	}
//	if daemonize {
//		err = process.Background(ctx, self, parent, os.Stderr, run)
//	} else {
//		err = run(ctx, parent.Ready) // parent may be nil
//	}
package process
