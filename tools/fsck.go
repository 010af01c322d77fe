package tools

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

func fsckCommand() *cli.Command {
	wait := func() cli.Flag {
		return &cli.BoolFlag{Name: "wait", Usage: "until it is done; shows how far it is, and then what was found", DisableDefaultText: true}
	}
	watch := func() cli.Flag {
		return &cli.BoolFlag{Name: "watch", Usage: "tell it anew every 2 s, until it is done", DisableDefaultText: true}
	}
	check := func() cli.Flag {
		return &cli.BoolFlag{Name: "check", Usage: "exit with 1 if something was found that nobody could repair", DisableDefaultText: true}
	}
	return group("fsck", "compare the database with the devices, and repair", `mogtool fsck start --all --wait
mogtool fsck status
mogtool fsck scrub --wait                  read and verify all content
mogtool fsck policy                        after a class was changed`,
		command("start", "check files: placement, presence, length", "", `mogtool fsck start                go on where it was stopped, or check what came since
mogtool fsck start --all --wait   every file`, need{0, 0, false}, []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "from the first file on", DisableDefaultText: true}, wait(),
		}, fsckBegin),
		command("stop", "stop where it is; start goes on there", "", `mogtool fsck stop`, need{0, 0, false}, nil, jobDo("fsck", "fsck_stop")),
		command("reset", "say where the next start begins", "", `mogtool fsck reset --startpos 5000
mogtool fsck reset --policy-only          look at placement only`, need{0, 0, false}, []cli.Flag{
			&cli.BoolFlag{Name: "policy-only", Usage: "look at placement only, not at the devices", DisableDefaultText: true},
			&cli.Int64Flag{Name: "startpos", Usage: "`FID` behind which to begin"},
		}, fsckReset),
		command("status", "how far it is, and what it found", "", `mogtool fsck status --watch`, need{0, 0, false}, []cli.Flag{watch(), check()}, func(s *session, _ []string) error {
			return sweepStatusCommand(s, "fsck")
		}),
		command("log", "list what was found", "", `mogtool fsck log
mogtool fsck log --after 1200`, need{0, 0, false}, []cli.Flag{
			&cli.Int64Flag{Name: "after", Usage: "`NUMBER` of the row after which to begin"},
		}, fsckLog),
		command("clearlog", "forget what was found", "", `mogtool fsck clearlog`, need{0, 0, false}, nil, jobDo("fsck", "fsck_clearlog")),
		command("policy", "bring all files to policies that were changed", "", `mogtool fsck policy --wait`, need{0, 0, false}, []cli.Flag{wait()}, fsckPolicy),
		command("scrub", "read and verify the content of all copies", "[start|stop|status]", `mogtool fsck scrub --wait
mogtool fsck scrub status
mogtool fsck scrub stop
mogtool settings set scrub_days 30        by itself, all content in 30 days`, need{0, 1, false}, []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "from the first file on, where one was stopped", DisableDefaultText: true},
			&cli.BoolFlag{Name: "paced", Usage: "go on at the pace of scrub_days, where one was stopped", DisableDefaultText: true},
			wait(), watch(), check(),
		}, scrub),
		straysCommand(),
	)
}

func fsckBegin(s *session, _ []string) error {
	if s.Bool("all") {
		if err := freshFsck(s, nil); err != nil {
			return err
		}
	}
	reply, err := job(s, "fsck", "fsck_start", nil)
	if err != nil {
		return err
	}
	st, err := sweepOf(s, "fsck")
	if err != nil {
		return err
	}
	if !s.Bool("all") && st.Running && st.First > 0 {
		if err := s.out.note("it begins behind file %d of %d; 'mogtool fsck start --all' begins at the first", st.First, st.End); err != nil {
			return err
		}
	}
	return waited(s, "fsck", reply)
}

// freshFsck has the next fsck begin at the first file, unless one runs.
func freshFsck(s *session, args protocol.Args) error {
	st, err := sweepOf(s, "fsck")
	if err != nil {
		return err
	}
	if st.Running {
		return &failure{err: fmt.Errorf("fsck is running, started on %s", st.Host), hint: "'mogtool fsck status' shows how far it is, 'mogtool fsck stop' stops it", code: exitFailed}
	}
	_, err = job(s, "fsck", "fsck_reset", args)
	return err
}

func fsckPolicy(s *session, _ []string) error {
	if err := freshFsck(s, protocol.Args{{Name: "policy_only", Value: "1"}}); err != nil {
		return err
	}
	reply, err := job(s, "fsck", "fsck_start", nil)
	if err != nil {
		return err
	}
	return waited(s, "fsck", reply)
}

func scrub(s *session, args []string) error {
	verb := "start"
	if len(args) > 0 {
		verb = args[0]
	}
	switch verb {
	case "start":
		var q protocol.Args
		if s.Bool("all") {
			q.Add("again", "1")
		}
		if s.Bool("paced") {
			q.Add("paced", "1")
		}
		reply, err := job(s, "scrub", "scrub_start", q)
		if err != nil {
			return err
		}
		return waited(s, "scrub", reply)
	case "stop":
		return jobDo("scrub", "scrub_stop")(s, nil)
	case "status":
		return sweepStatusCommand(s, "scrub")
	}
	return usageError(s.Context, "scrub: it takes start, stop or status, not %q", verb)
}

// eventMeanings says what a finding is, and whether somebody must act on it.
var eventMeanings = map[string]struct {
	text string
	act  bool
}{
	"NOPA": {"files without a recorded copy", false},
	"POVI": {"files placed otherwise than their policy wants", false},
	"MISS": {"copies that were not there; forgotten", false},
	"BLEN": {"copies of another length; put aside unless there is nothing better", false},
	"BSUM": {"copies with wrong content, put aside; or, without a device, files of which no copy is right", false},
	"MSUM": {"files whose copies differ, and nobody knows which is right", true},
	"BALG": {"files whose checksum is of another algorithm than their class's", false},
	"NSUM": {"checksums that were missing; made", false},
	"SRCH": {"files searched for on all devices", false},
	"FOND": {"files found by searching", false},
	"GONE": {"files of which no good copy was found", true},
	"REPL": {"files queued for replication", false},
	"BCNT": {"files whose count of copies was wrong; corrected", false},
	"WAIT": {"files that could not be read when their turn came; tried again later", false},
}

// meaning says what a row of the log is.
func (r logRow) meaning() string {
	m := eventMeanings[r.Code]
	switch {
	case r.Code == "BSUM" && r.Device != 0:
		return "copy with wrong content; put aside"
	case r.Code == "BSUM":
		m.text, m.act = "file of which no copy is right", true
	}
	if m.act {
		return m.text + ": somebody must look"
	}
	return m.text
}

// sweepProgress is how far fsck or scrub is.
type sweepProgress struct {
	Sweep       string           `json:"sweep"`
	State       string           `json:"state"` // never, running, waiting, stopped, done
	Running     bool             `json:"running"`
	Host        string           `json:"host,omitempty"` // the tracker that started it
	PolicyOnly  bool             `json:"policy_only,omitempty"`
	Paced       bool             `json:"paced,omitempty"`
	First       int64            `json:"start_fid"`
	Position    int64            `json:"position"`
	End         int64            `json:"end_fid"`
	Percent     float64          `json:"percent"`
	Files       int64            `json:"files"`
	Bytes       int64            `json:"bytes"`
	Started     int64            `json:"start_time,omitempty"` // seconds since 1970
	Stopped     int64            `json:"stop_time,omitempty"`
	Took        int64            `json:"seconds"` // since it was last started
	FilesPerSec float64          `json:"files_per_second"`
	BytesPerSec float64          `json:"bytes_per_second"`
	Remaining   *int64           `json:"remaining_seconds,omitempty"`
	Claimed     int64            `json:"claimed_files"` // being checked
	Queued      int64            `json:"queued_files"`  // that could not be checked, and will be again
	Events      map[string]int64 `json:"events"`
}

func sweepOf(s *session, sweep string) (*sweepProgress, error) {
	reply, err := job(s, "fsck", "fsck_progress", protocol.Args{{Name: "sweep", Value: sweep}})
	if err != nil {
		return nil, err
	}
	return readProgress(sweep, reply), nil
}

// readProgress understands the reply to fsck_progress.
func readProgress(sweep string, r protocol.Args) *sweepProgress {
	p := &sweepProgress{
		Sweep: sweep, Running: r.True("running"), Host: r.Get("host"), PolicyOnly: r.True("policy_only"), Paced: r.True("paced"),
		First: r.Number("start_fid"), Position: r.Number("position"), End: r.Number("end_fid"),
		Files: r.Number("files"), Bytes: r.Number("bytes"),
		Started: r.Number("start_time"), Stopped: r.Number("stop_time"),
		Claimed: r.Number("claimed_files"), Queued: r.Number("queued_files"),
		Events: make(map[string]int64),
	}
	for _, f := range r {
		if code, ok := strings.CutPrefix(f.Name, "num_"); ok {
			p.Events[code] = protocol.Number(f.Value)
		}
	}
	p.Percent = percent(p.Position, p.End)
	now, period := r.Number("current_time"), r.Number("period")
	until := p.Stopped
	if p.Running {
		until = now
	}
	if p.Started > 0 && until >= p.Started {
		p.Took = until - p.Started
		seconds := float64(max(1, p.Took))
		p.FilesPerSec = float64(max(0, p.Files-r.Number("start_files"))) / seconds
		p.BytesPerSec = float64(max(0, p.Bytes-r.Number("start_bytes"))) / seconds
	}
	switch {
	case p.Running && p.Paced && period == 0:
		p.State = "waiting"
	case p.Running:
		p.State = "running"
	case p.Started == 0 && p.Stopped == 0 && p.Position == 0:
		p.State = "never"
	case p.Position >= p.End:
		p.State = "done"
	default:
		p.State = "stopped"
	}
	if p.State == "running" {
		left := int64(-1)
		if p.Paced {
			left = p.Started + period - now
		} else if walked := p.Position - p.First; walked > 0 {
			left = int64(float64(p.End-p.Position) / float64(walked) * float64(p.Took))
		}
		if left >= 0 {
			p.Remaining = &left
		}
	}
	return p
}

// words is the state for people.
func (p *sweepProgress) words() string {
	switch p.State {
	case "never":
		return "never ran"
	case "running":
		text := "running, started on " + p.Host
		if p.Paced {
			text += ", at the pace of scrub_days"
		}
		return text
	case "waiting":
		return "waiting: scrub_days is not set"
	case "done":
		return "done"
	}
	return "stopped"
}

// rows are the status as names and values.
func (p *sweepProgress) rows() [][]string {
	at := func(seconds int64) string { return time.Unix(seconds, 0).Format(time.DateTime) }
	rows := [][]string{{"state:", p.words()}}
	if p.State == "never" {
		return rows
	}
	kind := "placement, presence, length; content of classes with a hash type"
	switch {
	case p.Sweep == "scrub":
		kind = "content of all copies"
	case p.PolicyOnly:
		kind = "placement only"
	}
	rows = append(rows,
		[]string{"checks:", kind},
		[]string{"position:", fmt.Sprintf("%d of %d (%.2f %%)", p.Position, p.End, p.Percent)},
		[]string{"files:", strconv.FormatInt(p.Files, 10)},
	)
	if p.Bytes > 0 {
		rows = append(rows, []string{"read:", size(p.Bytes)})
	}
	if p.Started > 0 {
		rows = append(rows, []string{"started:", at(p.Started)})
	}
	if p.Stopped > 0 && !p.Running {
		rows = append(rows, []string{"ended:", at(p.Stopped)})
	}
	if p.Started > 0 {
		rate := fmt.Sprintf("%.1f files/s", p.FilesPerSec)
		if p.BytesPerSec > 0 {
			rate += fmt.Sprintf(", %s/s", size(int64(p.BytesPerSec)))
		}
		rows = append(rows, []string{"took:", shortTime(p.Took) + " (" + rate + ")"})
	}
	if p.Remaining != nil {
		rows = append(rows, []string{"remaining:", "about " + shortTime(*p.Remaining)})
	}
	if p.Queued > 0 {
		rows = append(rows, []string{"waiting:", fmt.Sprintf("%d files that could not be checked, and will be again", p.Queued)})
	}
	return rows
}

func (p *sweepProgress) write(o *output) error {
	if o.json {
		return o.object(p)
	}
	if err := o.pairs(p.rows()); err != nil || p.State == "never" {
		return err
	}
	if len(p.Events) == 0 {
		return o.line("nothing was found")
	}
	var rows [][]string
	for _, code := range slices.Sorted(maps.Keys(p.Events)) {
		text := eventMeanings[code].text
		if eventMeanings[code].act {
			text += ": somebody must look"
		}
		rows = append(rows, []string{code, strconv.FormatInt(p.Events[code], 10), text})
	}
	return o.table([]string{"found", ">times", "is"}, rows)
}

// Times between two looks.
const (
	watchPause = 2 * time.Second
	waitPause  = 500 * time.Millisecond
)

func sweepStatusCommand(s *session, sweep string) error {
	for {
		p, err := sweepOf(s, sweep)
		if err != nil {
			return err
		}
		if err := p.write(s.out); err != nil {
			return err
		}
		if !s.Bool("watch") || !p.Running {
			return checked(s, p)
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

func sleepFor(s *session, d time.Duration) error {
	select {
	case <-s.ctx().Done():
		return s.ctx().Err()
	case <-time.After(d):
		return nil
	}
}

// checked is an error, with --check, where something was found that nobody could
// repair.
func checked(s *session, p *sweepProgress) error {
	if !s.Bool("check") {
		return nil
	}
	var found []string
	for _, code := range slices.Sorted(maps.Keys(p.Events)) {
		n := p.Events[code]
		if code == "BSUM" && n > 0 {
			var err error
			if n, err = undecided(s, p.Started); err != nil {
				return err
			}
		} else if !eventMeanings[code].act {
			continue
		}
		if n > 0 {
			found = append(found, fmt.Sprintf("%d × %s", n, code))
		}
	}
	if len(found) == 0 {
		return nil
	}
	return &failure{err: errors.New("not repaired: " + strings.Join(found, ", ")), hint: "'mogtool fsck log' lists the files", code: exitFailed}
}

// undecided counts the rows of the log since a time that call a file's content
// wrong without naming a copy.
func undecided(s *session, since int64) (n int64, err error) {
	err = readLog(s, 0, func(r logRow) error {
		if r.Code == "BSUM" && r.Device == 0 && r.Time >= since {
			n++
		}
		return nil
	})
	return n, err
}

// waited waits for a sweep where --wait says so, and tells what it found; else
// what the tracker replied.
func waited(s *session, sweep string, reply protocol.Args) error {
	if !s.Bool("wait") {
		return s.out.done(reply)
	}
	var bar *progress
	for {
		p, err := sweepOf(s, sweep)
		if err != nil {
			return err
		}
		if bar == nil {
			bar = s.out.newProgress(sweep, p.End, false)
			defer bar.end()
		}
		bar.set(p.Position)
		switch {
		case p.State == "stopped":
			bar.end()
			return errors.Join(p.write(s.out), &failure{err: fmt.Errorf("%s was stopped at %d of %d", sweep, p.Position, p.End), code: exitFailed})
		case !p.Running:
			bar.end()
			return p.write(s.out)
		}
		if err := sleepFor(s, waitPause); err != nil {
			return err
		}
	}
}

// logRow is a row of the log.
type logRow struct {
	LogID  int64          `json:"logid"`
	Time   int64          `json:"time"` // seconds since 1970
	FID    protocol.FID   `json:"fid,omitempty"`
	Code   string         `json:"code"`
	Device protocol.DevID `json:"device,omitempty"`
}

// readLog calls f for the rows of the log after a number.
func readLog(s *session, after int64, f func(logRow) error) error {
	for {
		reply, err := job(s, "fsck", "fsck_getlog", protocol.Args{{Name: "after_logid", Value: strconv.FormatInt(after, 10)}})
		if err != nil {
			return err
		}
		rows, err := logRows(reply)
		if err != nil {
			return fmt.Errorf("fsck_getlog after %d: %w", after, err)
		}
		before := after
		for _, r := range rows {
			if err := f(r); err != nil {
				return err
			}
			after = max(after, r.LogID)
		}
		if len(rows) < fsckLogPage {
			return nil
		}
		if after == before {
			return fmt.Errorf("fsck_getlog after %d: the same again: %w", after, protocol.ErrBadReply)
		}
	}
}

func logRows(reply protocol.Args) ([]logRow, error) {
	n := reply.Number("row_count")
	if n < 0 || n > int64(len(reply)) {
		return nil, fmt.Errorf("row_count is %d: %w", n, protocol.ErrBadReply)
	}
	values := make(map[string]string, len(reply))
	for _, f := range reply {
		values[f.Name] = f.Value
	}
	rows := make([]logRow, n)
	for i := range rows {
		get := func(name string) string { return values["row_"+strconv.Itoa(i+1)+"_"+name] }
		rows[i] = logRow{
			LogID: protocol.Number(get("logid")), Time: protocol.Number(get("utime")), FID: protocol.FID(max(0, protocol.Number(get("fid")))),
			Code: get("evcode"), Device: protocol.DevID(max(0, protocol.Number(get("devid")))),
		}
	}
	return rows, nil
}

func fsckLog(s *session, _ []string) error {
	var rows []logRow
	show := func() error {
		err := list(s.out, rows, []string{">row", "time", "found", ">fid", ">device", "?is"}, func(r logRow) []string {
			fid, dev := "", ""
			if r.FID != 0 {
				fid = r.FID.String()
			}
			if r.Device != 0 {
				dev = r.Device.String()
			}
			return []string{strconv.FormatInt(r.LogID, 10), time.Unix(r.Time, 0).Format(time.DateTime), r.Code, fid, dev, r.meaning()}
		})
		rows = rows[:0]
		return err
	}
	err := readLog(s, s.Int64("after"), func(r logRow) error {
		rows = append(rows, r)
		if len(rows) < 50*fsckLogPage { // the log may be long
			return nil
		}
		return show()
	})
	return errors.Join(show(), err)
}
