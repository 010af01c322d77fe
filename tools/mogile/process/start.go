package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// startedBy in the environment tells a process that Start started it, and
	// how many files it was given.
	startedBy = "MOGILE_STARTED_WITH_FILES"
	// readyFD is the descriptor on which the started process says that it is
	// ready; the files follow it.
	readyFD = 3
	// endWithin is how long a process that is no longer wanted may take to end
	// before it is killed.
	endWithin = 5 * time.Second
)

// Program is this program as it was started, so that it can be started again.
type Program struct {
	Path string   // of the executable, absolute
	Args []string // Args[0] is the name under which it runs
	Dir  string   // working directory at the time, which relative paths in Args are below
}

// Self is the running program. Call it before the working directory changes.
func Self() (Program, error) {
	p := Program{Args: os.Args}
	var err error
	if p.Dir, err = os.Getwd(); err != nil {
		return p, err
	}
	if p.Path, err = os.Executable(); err != nil {
		return p, err
	}
	// Where the program is started through a link, it is the link that an
	// upgrade changes.
	if name, err := exec.LookPath(os.Args[0]); err == nil && sameFile(name, p.Path) {
		if abs, err := filepath.Abs(name); err == nil {
			p.Path = abs
		}
	}
	return p, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// ExitError says that a started process ended before it was ready. Why, it has
// written to its standard error.
type ExitError struct {
	Code int // its exit code; -1 where a signal ended it
}

func (e *ExitError) Error() string {
	if e.Code < 0 {
		return "the new process was killed before it was ready"
	}
	return fmt.Sprintf("the new process ended with exit code %d before it was ready", e.Code)
}

// Start runs the program in a session of its own, hands it the files, and waits
// until it calls [Parent.Ready]; it returns its process id. What it writes to
// its standard error goes to stderr. The error is an [*ExitError] where it ended
// instead. When ctx ends before it is ready it is told to end, and waited for.
//
// A process that is ready is nobody's concern any longer: it is not waited for,
// and goes on when this one ends.
func (p Program) Start(ctx context.Context, stderr io.Writer, files ...*os.File) (pid int, err error) {
	session, err := newSession()
	if err != nil {
		return 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd := &exec.Cmd{
		Path:        p.Path,
		Args:        p.Args,
		Dir:         p.Dir,
		Env:         append(os.Environ(), startedBy+"="+strconv.Itoa(len(files))),
		Stderr:      stderr,
		ExtraFiles:  append([]*os.File{w}, files...),
		SysProcAttr: session,
	}
	keepToOurselves()
	err = cmd.Start()
	_ = w.Close() // the started process has the other end
	if err != nil {
		return 0, fmt.Errorf("start %s again: %w", p.Path, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var said [1]byte
	switch _, err := r.Read(said[:]); {
	case err == nil:
		pid := cmd.Process.Pid // Release forgets it
		return pid, cmd.Process.Release()
	case ctx.Err() != nil:
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		kill := time.AfterFunc(endWithin, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = cmd.Wait() // how it ended does not matter any more
		return 0, context.Cause(ctx)
	}
	err = cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); !ok && err != nil {
		return 0, err
	}
	return 0, &ExitError{Code: cmd.ProcessState.ExitCode()}
}

// Parent is the process that started this one with [Program.Start] and waits
// until it is ready.
type Parent struct {
	// Files are those that it handed over, in its order.
	Files []*os.File
	ready *os.File
}

// Inherited is the parent of a process that [Program.Start] started, and nil in
// any other. It takes the mark out of the environment, so that processes further
// down do not believe the same: a second call returns nil.
func Inherited() *Parent {
	value, ok := os.LookupEnv(startedBy)
	_ = os.Unsetenv(startedBy) // fails for names with "=" in them only
	n, err := strconv.Atoi(value)
	if !ok || err != nil || n < 0 || n > 1024 || !isPipe(readyFD) {
		return nil
	}
	p := &Parent{ready: inherit(readyFD, "ready")}
	for i := range n {
		p.Files = append(p.Files, inherit(readyFD+1+i, "inherited file "+strconv.Itoa(i)))
	}
	return p
}

func inherit(fd int, name string) *os.File {
	closeOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// Ready tells the parent that this process does its work from now on. Without
// one, with p nil, there is nobody to tell.
func (p *Parent) Ready() error {
	if p == nil || p.ready == nil {
		return nil
	}
	_, err := p.ready.Write([]byte{'\n'})
	err = errors.Join(err, p.ready.Close())
	p.ready = nil
	if err != nil {
		return fmt.Errorf("tell the parent process: %w", err)
	}
	return nil
}

// Background runs serve in the background. In the process that the user started
// (parent is nil, see [Inherited]) it starts the program p again and returns
// when that is ready, or with the error of [Program.Start]; the user sees on
// stderr what the other has to say until then. In the process so started it runs
// serve, with umask 0, as MogileFS does.
//
// serve calls ready once its listeners are bound. From then on the working
// directory is /, and standard input, output and error are /dev/null: make
// paths absolute before, and log to syslog.
func Background(ctx context.Context, p Program, parent *Parent, stderr io.Writer, serve func(ctx context.Context, ready func() error) error) error {
	if parent == nil {
		_, err := p.Start(ctx, stderr)
		return err
	}
	zeroUmask()
	return serve(ctx, func() error {
		if err := detach(); err != nil {
			return fmt.Errorf("go into the background: %w", err)
		}
		return parent.Ready()
	})
}

// RefuseRoot is an error where the process runs as root and user, the daemon's
// setting of that name, is not "root". No privileges are dropped: the setting
// only says that it is meant.
func RefuseRoot(user string) error {
	if os.Geteuid() != 0 || strings.TrimSpace(user) == "root" {
		return nil
	}
	return errors.New("it must not run as root: start it as a user of its own (in systemd User=, in an init script su or start-stop-daemon --chuid), or say user = root in its configuration file, or --user=root, where root is meant")
}
