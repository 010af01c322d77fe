package tools

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

// Files looked at in one request: deleting takes longer.
const (
	strayPage       = 500
	strayDeletePage = 100
)

// maxStrayPercent is how much of a device --delete takes for strays unless told
// otherwise.
const maxStrayPercent = 1

func straysCommand() *cli.Command {
	return command("strays", "find files on devices that the database does not know", "",
		`mogtool fsck strays                       on all devices
mogtool fsck strays --device 7 --age 72h  on one, older than three days
mogtool fsck strays --delete              to the devices' trash, for a week; asks first`,
		need{0, 0, false}, []cli.Flag{
			&cli.IntSliceFlag{Name: "device", Usage: "`DEVID` to look at; may be given several times; without it all"},
			&cli.DurationFlag{Name: "age", Usage: "`TIME` since it was written; younger stay", Value: 24 * time.Hour},
			&cli.BoolFlag{Name: "delete", Usage: "move strays to the trash of their device", DisableDefaultText: true},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", DisableDefaultText: true},
			&cli.Float64Flag{Name: "up-to", Usage: "`PERCENT` of a device's files that may be deleted", Value: maxStrayPercent},
		}, strays)
}

// strayJSON is a stray with --json.
type strayJSON struct {
	Device protocol.DevID `json:"device"`
	FID    protocol.FID   `json:"fid"`
	Size   int64          `json:"size"`
	Time   int64          `json:"mtime"` // seconds since 1970
	Kind   string         `json:"kind"`
	Path   string         `json:"path"`
	Result string         `json:"result,omitempty"`
	Note   string         `json:"note,omitempty"`
}

// strayTally is what was found on a device, or on all.
type strayTally struct {
	Device      protocol.DevID   `json:"device,omitempty"` // 0: all
	Files       int64            `json:"files"`
	Bytes       int64            `json:"bytes"`
	Strays      int64            `json:"strays"`
	StrayBytes  int64            `json:"stray_bytes"`
	Kinds       map[string]int64 `json:"kinds,omitempty"`
	Results     map[string]int64 `json:"results,omitempty"`
	Young       int64            `json:"young"`
	Pending     int64            `json:"pending"`
	Foreign     int64            `json:"foreign"`
	Unreadable  int64            `json:"unreadable"`
	Unavailable string           `json:"error,omitempty"` // why a device was not looked at, or not all of it
}

func newStrayTally(dev protocol.DevID) *strayTally {
	return &strayTally{Device: dev, Kinds: map[string]int64{}, Results: map[string]int64{}}
}

func (t *strayTally) page(p protocol.StrayPage) {
	t.Files += p.Files
	t.Bytes += p.Bytes
	t.Young += p.Young
	t.Pending += p.Pending
	t.Foreign += p.Foreign
	t.Unreadable += p.Unreadable
	for _, s := range p.Strays {
		t.Strays++
		t.StrayBytes += s.Size
		t.Kinds[s.Kind]++
		if s.Result != "" {
			t.Results[s.Result]++
		}
	}
}

func (t *strayTally) add(o *strayTally) {
	t.Files += o.Files
	t.Bytes += o.Bytes
	t.Strays += o.Strays
	t.StrayBytes += o.StrayBytes
	t.Young += o.Young
	t.Pending += o.Pending
	t.Foreign += o.Foreign
	t.Unreadable += o.Unreadable
	for k, n := range o.Kinds {
		t.Kinds[k] += n
	}
	for k, n := range o.Results {
		t.Results[k] += n
	}
}

// deletable is how many of the strays would go.
func (t *strayTally) deletable() int64 { return t.Kinds["gone"] + t.Kinds["copy"] }

// percent is how much of the files are strays.
func (t *strayTally) percent() float64 {
	if t.Files == 0 {
		return 0
	}
	return 100 * float64(t.Strays) / float64(t.Files)
}

// mayDelete says why strays of a device should rather stay, nil if they may go.
// A database that is not the device's looks as if the device were full of them.
func (t *strayTally) mayDelete(upTo float64, told bool) error {
	switch {
	case t.percent() > upTo:
		return fmt.Errorf("dev%d: %d of %d files (%.3g %%) are strays, and nothing is deleted there: is it the device of another cluster, or the database an old one? If it is as it should be, --up-to %.4g deletes them",
			t.Device, t.Strays, t.Files, t.percent(), t.percent()+0.01)
	case t.Kinds["above"] > 0 && !told:
		return fmt.Errorf("dev%d: %d files have numbers above the highest that the database ever issued, and nothing is deleted there: was the database restored from an old backup? If it is as it should be, --up-to %g deletes the others",
			t.Device, t.Kinds["above"], upTo)
	}
	return nil
}

// strayHunt is one run of the command.
type strayHunt struct {
	*session
	age  time.Duration
	bar  *progress
	seen int64
	head bool // the table's was written
}

func strays(s *session, _ []string) error {
	h := &strayHunt{session: s, age: s.Duration("age")}
	upTo, remove := s.Float64("up-to"), s.Bool("delete")
	if h.age < 0 || upTo < 0 || upTo > 100 {
		return usageError(s.Context, "strays: --age is 0 or more, --up-to a percentage")
	}
	devs, failures, err := h.devices(s.IntSlice("device"))
	if err != nil {
		return err
	}
	h.bar = s.out.newProgress("files", -1, false)
	defer h.bar.end()
	var tallies []*strayTally
	for _, dev := range devs {
		t, err := h.walk(dev, false, !remove)
		if tallies = append(tallies, t); err != nil {
			if s.ctx().Err() != nil {
				return err
			}
			failures = append(failures, err)
			t.Unavailable = err.Error()
		}
	}
	if remove {
		tallies, failures, err = h.remove(tallies, failures, upTo)
		if err != nil {
			return err
		}
	}
	h.bar.end()
	if err := h.report(tallies); err != nil {
		return err
	}
	if len(failures) > 0 {
		return &failure{err: fmt.Errorf("strays: %w", errors.Join(failures...)), hint: hint(failures[0]), code: exitFailed}
	}
	return nil
}

// devices are those to look at: those named, or all that can be. Those that
// should be and cannot are failures.
func (h *strayHunt) devices(named []int) (devs []protocol.DevID, failures []error, err error) {
	all, err := h.client.Devices(h.ctx())
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(all, func(a, b protocol.Device) int { return cmp.Compare(a.ID, b.ID) })
	for _, n := range named {
		if !slices.ContainsFunc(all, func(d protocol.Device) bool { return int(d.ID) == n }) {
			return nil, nil, &failure{err: fmt.Errorf("strays: there is no device %d", n), hint: "'mogtool device list' shows them", code: exitFailed}
		}
	}
	for _, d := range all {
		switch {
		case len(named) > 0 && !slices.Contains(named, int(d.ID)):
		case len(named) == 0 && d.Status == "dead":
		case len(named) == 0 && d.Status == "down":
			failures = append(failures, fmt.Errorf("dev%d is down, and was not looked at", d.ID))
		default:
			devs = append(devs, d.ID)
		}
	}
	return devs, failures, nil
}

// walk looks at all files on a device, and shows its strays if it is to.
func (h *strayHunt) walk(dev protocol.DevID, remove, show bool) (*strayTally, error) {
	t := newStrayTally(dev)
	q := protocol.StrayQuery{Dev: dev, Limit: strayPage, Age: h.age, Delete: remove}
	if remove {
		q.Limit = strayDeletePage
	}
	for {
		p, err := h.client.Strays(h.ctx(), q)
		if errors.Is(err, protocol.ErrUnknownCommand) {
			err = fmt.Errorf("the tracker cannot do this, it is of an older version: %w", err)
		}
		if err != nil {
			return t, err
		}
		t.page(p)
		h.seen += p.Files
		h.bar.set(h.seen)
		if show && len(p.Strays) > 0 {
			h.bar.end()
			for _, s := range p.Strays {
				if err := h.show(dev, s); err != nil {
					return t, err
				}
			}
		}
		if p.Next == q.After && p.Next != "" {
			return t, fmt.Errorf("strays on dev%d: the tracker does not get on from %q: %w", dev, p.Next, protocol.ErrBadReply)
		}
		if q.After = p.Next; q.After == "" {
			return t, nil
		}
	}
}

// show writes one stray.
func (h *strayHunt) show(dev protocol.DevID, s protocol.Stray) error {
	path := s.FID.Path(dev)
	if s.Shard {
		path = s.FID.ShardPath(dev)
	}
	if h.out.json {
		return h.out.object(strayJSON{dev, s.FID, s.Size, s.ModTime.Unix(), s.Kind, path, s.Result, s.Note})
	}
	if !h.head {
		h.head = true
		if err := h.out.line(fmt.Sprintf("%12s  %-20s  %-8s  %s", "size", "written", "kind", "path")); err != nil {
			return err
		}
	}
	line := fmt.Sprintf("%12s  %-20s  %-8s  %s", size(s.Size), s.ModTime.UTC().Format(time.RFC3339), s.Kind, path)
	if s.Result != "" {
		line += "  " + strings.TrimSuffix(s.Result+": "+h.out.shown(s.Note), ": ")
	}
	return h.out.line(line)
}

// remove deletes what was found, if it is right to. It returns what became of
// it.
func (h *strayHunt) remove(found []*strayTally, failures []error, upTo float64) ([]*strayTally, []error, error) {
	var strays, n int64
	var devs []int // of found
	for i, t := range found {
		if t.Unavailable != "" || t.deletable() == 0 {
			continue
		}
		if err := t.mayDelete(upTo, h.IsSet("up-to")); err != nil {
			failures = append(failures, err)
			continue
		}
		devs = append(devs, i)
		n++
		strays += t.deletable()
	}
	if len(devs) == 0 {
		return found, failures, nil
	}
	h.bar.end()
	if !h.Bool("yes") {
		if err := h.ask(strays, n); err != nil {
			return nil, nil, err
		}
	}
	for _, i := range devs {
		t, err := h.walk(found[i].Device, true, true)
		found[i] = t
		if err != nil {
			if h.ctx().Err() != nil {
				return nil, nil, err
			}
			failures = append(failures, err)
			t.Unavailable = err.Error()
		}
		if bad := t.Results["failed"]; bad > 0 {
			failures = append(failures, fmt.Errorf("dev%d: %d strays could not be moved to the trash", t.Device, bad))
		}
	}
	return found, failures, nil
}

// ask asks the user, if there is one. nil is a yes.
func (h *strayHunt) ask(strays, devices int64) error {
	in, ok := h.App.Reader.(*os.File)
	if !ok || !isTerminal(in) {
		return &failure{err: fmt.Errorf("strays: nothing is done, as there are %d strays on %d devices, and nobody can be asked whether to delete them", strays, devices),
			hint: "--yes deletes them; without --delete they are listed", code: exitFailed}
	}
	fmt.Fprintf(h.out.errw, "move %d strays on %d devices to the trash, which keeps them for a week? [y/N] ", strays, devices)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return &failure{err: errors.New("strays: nothing is done"), hint: "without --delete they are listed", code: exitFailed}
}

// report sums up.
func (h *strayHunt) report(tallies []*strayTally) error {
	total := newStrayTally(0)
	for _, t := range tallies {
		total.add(t)
	}
	if h.out.json {
		for _, t := range append(tallies, total) {
			if err := h.out.object(t); err != nil {
				return err
			}
		}
		return nil
	}
	for _, t := range tallies {
		if len(tallies) == 1 && t.Unavailable == "" || t.Strays+t.Foreign+t.Unreadable > 0 {
			if err := h.out.line(fmt.Sprintf("dev%d: %s", t.Device, t)); err != nil {
				return err
			}
		}
	}
	if len(tallies) != 1 {
		if err := h.out.line(fmt.Sprintf("all: %s", total)); err != nil {
			return err
		}
	}
	for _, kind := range []struct{ name, note string }{
		{"rescue", "%d files have no copy that is known to be good but one that the database does not know: 'mogtool fsck start' adopts it"},
		{"doubtful", "%d files have no copy that is known to be good, and one of another length that the database does not know: it is kept"},
		{"above", "%d files have numbers above the highest that the database ever issued: it was restored from an old backup, or the device is another cluster's; they are kept"},
	} {
		if n := total.Kinds[kind.name]; n > 0 {
			if err := h.out.note(kind.note, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// String is the tally in words.
func (t *strayTally) String() string {
	text := fmt.Sprintf("strays: %d (%s) in %d files (%s)", t.Strays, size(t.StrayBytes), t.Files, size(t.Bytes))
	for _, more := range []struct {
		n    int64
		what string
	}{
		{t.Results["trashed"], "moved to the trash"},
		{t.Results["kept"], "kept"},
		{t.Results["changed"], "rewritten meanwhile"},
		{t.Results["missing"], "gone meanwhile"},
		{t.Results["failed"], "failed"},
		{t.Young, "too young to tell"},
		{t.Pending, "being uploaded, copied or deleted"},
		{t.Foreign, "names that are no file's"},
		{t.Unreadable, "that cannot be read"},
	} {
		if more.n > 0 {
			text += fmt.Sprintf(", %d %s", more.n, more.what)
		}
	}
	return text
}
