package tools

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

func drainCommand() *cli.Command {
	return command("drain", "move all files off devices that are to go", "DEVICE…", `mogtool drain 7                 until it is empty and can be pulled
mogtool drain 7 8 --no-wait     begin, and come back later
mogtool drain --status          how far it is; dead devices, too
mogtool drain 7 --cancel        leave the rest there; it takes files again`, need{0, -1, false}, []cli.Flag{
		&cli.BoolFlag{Name: "no-wait", Usage: "begin, and end at once; the cluster goes on by itself", DisableDefaultText: true},
		&cli.BoolFlag{Name: "cancel", Usage: "stop it, and have the devices alive again", DisableDefaultText: true},
		&cli.BoolFlag{Name: "status", Usage: "how far devices are emptied, these or all", DisableDefaultText: true},
		&cli.BoolFlag{Name: "watch", Usage: "tell it anew every 2 s, until nothing is left", DisableDefaultText: true},
	}, drain)
}

// drainExample is a file that cannot be moved.
type drainExample struct {
	FID    int64  `json:"fid"`
	Domain string `json:"domain"`
	Key    string `json:"key"`
	Reason string `json:"reason"`
	Text   string `json:"text"`
}

// drained is how far a device is emptied.
type drained struct {
	Device   protocol.DevID `json:"device"`
	Host     string         `json:"host"`
	Status   string         `json:"status"`
	State    string         `json:"state"`    // draining, blocked, uploads, empty, reaping, idle
	Draining bool           `json:"draining"` // it is being emptied
	Files    int64          `json:"files"`    // left
	Uploads  int64          `json:"uploads"`  // under way that may still end there
	Looked   int64          `json:"looked"`   // files that were looked at for why they are there
	Blocked  int64          `json:"blocked"`  // of those, files that cannot be moved now
	Examples []drainExample `json:"examples,omitempty"`
}

// drainState is the answer to drain_status.
type drainState struct {
	Moves   int64     `json:"queued_moves"` // of all devices, those of rebalance too
	Devices []drained `json:"devices"`
}

func readDrains(r protocol.Args) drainState {
	st := drainState{Moves: r.Number("queued_moves"), Devices: []drained{}}
	for n := range r.Number("devices") {
		row := fmt.Sprintf("dev%d_", n+1)
		d := drained{
			Device: protocol.DevID(r.Number(row + "devid")), Host: r.Get(row + "host"), Status: r.Get(row + "status"),
			Draining: r.True(row + "draining"), Files: r.Number(row + "files"), Uploads: r.Number(row + "uploads"),
			Looked: r.Number(row + "looked"), Blocked: r.Number(row + "blocked"),
		}
		for e := range r.Number(row + "examples") {
			one := fmt.Sprintf("%sexample%d_", row, e+1)
			d.Examples = append(d.Examples, drainExample{
				FID: r.Number(one + "fid"), Domain: r.Get(one + "domain"), Key: r.Get(one + "key"),
				Reason: r.Get(one + "reason"), Text: r.Get(one + "text"),
			})
		}
		d.State = d.state()
		st.Devices = append(st.Devices, d)
	}
	return st
}

func (d drained) state() string {
	switch {
	case d.Status == "dead" && d.Files > 0:
		return "reaping"
	case d.Status == "dead":
		return "empty"
	case !d.Draining:
		return "idle"
	case d.Files > 0 && d.Looked == d.Files && d.Blocked == d.Files:
		return "blocked"
	case d.Files > 0:
		return "draining"
	case d.Uploads > 0:
		return "uploads"
	}
	return "empty"
}

// words are the state for people.
func (d drained) words() string {
	switch d.State {
	case "reaping":
		return "dead: its files are copied from elsewhere"
	case "blocked":
		return "blocked: no file can be moved now"
	case "uploads":
		return "uploads under way may still end on it"
	case "empty":
		if d.Status == "dead" {
			return "dead and empty"
		}
		return "empty: mark it dead, then pull it"
	case "idle":
		if d.Status == "drain" {
			return fmt.Sprintf("gets no new files, and is not emptied: 'mogtool drain %d'", d.Device)
		}
		return "not to be emptied"
	}
	text := "is being emptied"
	if d.Blocked > 0 {
		text += fmt.Sprintf("; of %d files looked at %d cannot be moved now", d.Looked, d.Blocked)
	}
	return text
}

// files are all that are left on the devices.
func (st drainState) files() (files, uploads int64) {
	for _, d := range st.Devices {
		files += d.Files
		uploads += d.Uploads
	}
	return files, uploads
}

func (st drainState) write(o *output) error {
	if o.json {
		return o.object(st)
	}
	if len(st.Devices) == 0 {
		return o.line("no device is in drain, and no dead one has files")
	}
	rows := make([][]string, len(st.Devices))
	for i, d := range st.Devices {
		rows[i] = []string{"dev" + d.Device.String(), d.Host, d.Status, strconv.FormatInt(d.Files, 10), strconv.FormatInt(d.Uploads, 10), d.words()}
	}
	if err := o.table([]string{">device", "host", "status", ">files left", ">uploads", "is"}, rows); err != nil {
		return err
	}
	if err := o.line(fmt.Sprintf("moves queued: %d", st.Moves)); err != nil {
		return err
	}
	return st.writeExamples(o)
}

// writeExamples names files that cannot be moved, and why.
func (st drainState) writeExamples(o *output) error {
	var rows [][]string
	for _, d := range st.Devices {
		for _, e := range d.Examples {
			rows = append(rows, []string{"dev" + d.Device.String(), strconv.FormatInt(e.FID, 10), e.Domain, e.Key, e.Text})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return errors.Join(o.line(""), o.table([]string{">device", ">cannot be moved: fid", "domain", "key", "because"}, rows))
}

func drainStatusOf(s *session, devs []string, more ...string) (drainState, error) {
	var q protocol.Args
	if len(devs) > 0 {
		q.Add("devids", strings.Join(devs, ","))
	}
	for _, name := range more {
		q.Add(name, "1")
	}
	reply, err := job(s, "drain", "drain_status", q)
	if err != nil {
		return drainState{}, err
	}
	return readDrains(reply), nil
}

func drain(s *session, args []string) error {
	var devs []string
	for _, arg := range args {
		n, err := strconv.ParseUint(strings.TrimPrefix(arg, "dev"), 10, 16)
		if err != nil || n == 0 || n > protocol.MaxDevID {
			return usageError(s.Context, "drain: a device is a number such as 7, not %q", arg)
		}
		devs = append(devs, strconv.FormatUint(n, 10))
	}
	slices.Sort(devs)
	devs = slices.Compact(devs)
	status, cancel, noWait := s.Bool("status"), s.Bool("cancel"), s.Bool("no-wait")
	switch {
	case status && cancel, noWait && (status || cancel || s.Bool("watch")), cancel && s.Bool("watch"):
		return usageError(s.Context, "drain: --status, --cancel and --no-wait exclude each other, and --watch goes with --status or alone")
	case status:
		return drainWatch(s, devs)
	case len(devs) == 0:
		return usageError(s.Context, "drain: it needs DEVICE…, or --status")
	}
	command := "drain_device"
	if cancel {
		command = "drain_cancel"
	}
	for _, dev := range devs {
		reply, err := job(s, "drain", command, protocol.Args{{Name: "devid", Value: dev}})
		if err != nil {
			return err
		}
		if cancel || noWait {
			if err := s.out.done(append(reply, protocol.Arg{Name: "devid", Value: dev})); err != nil {
				return err
			}
		}
	}
	if cancel || noWait {
		return nil
	}
	return drainWait(s, devs)
}

// drainWatch tells how far it is, with --watch until nothing is left.
func drainWatch(s *session, devs []string) error {
	for {
		st, err := drainStatusOf(s, devs, "examine", "sizes")
		if err != nil {
			return err
		}
		if err := st.write(s.out); err != nil {
			return err
		}
		if files, uploads := st.files(); !s.Bool("watch") || files+uploads == 0 {
			return nil
		}
		if err := sleepFor(s, watchPause); err != nil {
			return err
		}
		if !s.out.json {
			if err := s.out.line(""); err != nil {
				return err
			}
		}
	}
}

// How long nothing may have moved off devices until it is said that nothing will.
const (
	drainStalls    = 10 * time.Second // where no file can be moved by what is known
	drainStallsDry = time.Minute      // where no move is queued
	drainStallsAll = 10 * time.Minute // whatever is going on
)

// stalled says why it is no use to wait any longer, "" where it is.
func stalled(st drainState, quiet time.Duration) string {
	blocked, files := true, false
	for _, d := range st.Devices {
		files = files || d.Files > 0
		blocked = blocked && (d.Files == 0 || d.State == "blocked")
	}
	switch {
	case files && blocked && quiet >= drainStalls:
		return "files cannot be moved now"
	case files && st.Moves == 0 && quiet >= drainStallsDry, files && quiet >= drainStallsAll:
		return fmt.Sprintf("nothing was moved for %s, and files are left", shortTime(int64(quiet/time.Second)))
	}
	return ""
}

// drainWait waits until devices are empty.
func drainWait(s *session, devs []string) error {
	var bar *progress
	least, since, first := int64(-1), time.Now(), int64(0)
	told := false
	between := time.Second
	if s.Bool("watch") {
		between = watchPause
	}
	for {
		var more []string
		if time.Since(since) >= drainStalls || s.Bool("watch") {
			more = []string{"examine", "sizes"}
		}
		st, err := drainStatusOf(s, devs, more...)
		if err != nil {
			return err
		}
		for _, d := range st.Devices {
			if !d.Draining {
				return &failure{err: fmt.Errorf("dev%d is not emptied any more: it is %s, with %d files", d.Device, d.Status, d.Files), code: exitFailed}
			}
		}
		files, uploads := st.files()
		if least < 0 {
			first = files
			bar = s.out.newProgress("files moved", first, false)
			defer bar.end()
		}
		if least < 0 || files < least {
			least, since = files, time.Now()
		}
		if s.Bool("watch") {
			if err := st.write(s.out); err != nil {
				return err
			}
		} else {
			bar.set(max(0, first-files))
		}
		if files+uploads == 0 {
			bar.end()
			return drainDone(s, st)
		}
		if why := stalled(st, time.Since(since)); why != "" && len(more) > 0 {
			bar.end()
			return drainBlocked(s, st, why)
		}
		if files == 0 && !told {
			told = true
			if err := s.out.note("no files are left; %d uploads that are under way may still end there", uploads); err != nil {
				return err
			}
		}
		if err := sleepFor(s, between); err != nil {
			return err
		}
	}
}

// drainDone says that devices can be pulled, and how.
func drainDone(s *session, st drainState) error {
	if s.out.json {
		return s.out.object(st)
	}
	for _, d := range st.Devices {
		err := errors.Join(
			s.out.line(fmt.Sprintf("dev%d is empty: mark it dead, then pull it", d.Device)),
			s.out.line(fmt.Sprintf("  mogtool device mark %s %d dead", d.Host, d.Device)),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// drainBlocked says what is left, and why.
func drainBlocked(s *session, st drainState, why string) error {
	if err := st.write(s.out); err != nil {
		return err
	}
	var left []string
	for _, d := range st.Devices {
		if d.Files > 0 {
			left = append(left, fmt.Sprintf("dev%d: %d", d.Device, d.Files))
		}
	}
	return &failure{
		err:  fmt.Errorf("%s (%s)", why, strings.Join(left, ", ")),
		hint: "the cluster tries again by itself, at once when a device comes back or is added; 'mogtool drain --status' shows how far it is, the same command waits again",
		code: exitFailed,
	}
}
