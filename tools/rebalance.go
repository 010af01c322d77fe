package tools

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

func rebalanceCommand() *cli.Command {
	flag := func(name, usage string) cli.Flag {
		return &cli.BoolFlag{Name: name, Usage: usage, DisableDefaultText: true}
	}
	return group("rebalance", "move files between devices", `mogtool rebalance auto
mogtool rebalance auto --spread 2 --dry-run
mogtool rebalance policy 'from_hosts=3 to_hosts=5'
mogtool rebalance status`,
		command("auto", "fill devices equally", "", `mogtool rebalance auto
mogtool rebalance auto --spread 2 --yes`, need{0, 0, false}, []cli.Flag{
			&cli.Float64Flag{Name: "spread", Usage: "`POINTS` of percent by which the fill of devices may differ", Value: 5},
			flag("dry-run", "show what would be moved"),
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", DisableDefaultText: true},
			flag("no-wait", "end when it has begun"),
		}, rebalanceAuto),
		command("policy", "show or set what is to be moved where", "[POLICY]", `mogtool rebalance policy
mogtool rebalance policy 'from_devices=5,6 to_hosts=2 limit_by=size limit=100g'`, need{0, 1, false}, nil, rebalanceSetPolicy),
		command("test", "show the devices that the policy means", "", `mogtool rebalance test`, need{0, 0, false}, nil, func(s *session, _ []string) error {
			reply, err := job(s, "rebalance", "rebalance_test", nil)
			if err != nil {
				return err
			}
			return s.out.args(reply)
		}),
		command("start", "begin with moving, or go on", "", `mogtool rebalance start`, need{0, 0, false}, nil, jobDo("rebalance", "rebalance_start")),
		command("stop", "stop moving; what is queued is still moved", "", `mogtool rebalance stop`, need{0, 0, false}, nil, jobDo("rebalance", "rebalance_stop")),
		command("status", "how far it is", "", `mogtool rebalance status`, need{0, 0, false}, nil, func(s *session, _ []string) error {
			p, err := rebalanceNow(s)
			if err != nil {
				return err
			}
			return p.write(s.out)
		}),
		command("reset", "forget how far it is, so that start begins anew", "", `mogtool rebalance reset`, need{0, 0, false}, nil, jobDo("rebalance", "rebalance_reset")),
	)
}

func rebalanceSetPolicy(s *session, args []string) error {
	if len(args) > 0 {
		reply, err := job(s, "rebalance", "rebalance_set_policy", protocol.Args{{Name: "policy", Value: args[0]}})
		if err != nil {
			return err
		}
		return s.out.done(reply)
	}
	p, err := rebalanceNow(s)
	if err != nil {
		return err
	}
	return s.out.pairs([][]string{{"policy:", p.Policy}})
}

// rebalanceRun is how far rebalancing is.
type rebalanceRun struct {
	State    string `json:"state"` // never, running, moving, stopped, done
	Running  bool   `json:"running"`
	Host     string `json:"host,omitempty"` // the tracker that started it
	Policy   string `json:"policy"`
	Queued   int64  `json:"files"` // whose moves were queued
	Bytes    int64  `json:"bytes"` // of these
	Waiting  int64  `json:"queued_moves"`
	Current  string `json:"current,omitempty"` // the source at work
	Sources  string `json:"sources,omitempty"` // that are to come
	Done     string `json:"completed,omitempty"`
	Started  int64  `json:"start_time,omitempty"` // seconds since 1970
	Finished int64  `json:"finish_time,omitempty"`
	Stopped  int64  `json:"stop_time,omitempty"`
	Left     int64  `json:"bytes_left,omitempty"` // of a run that levels
}

func rebalanceNow(s *session) (*rebalanceRun, error) {
	r, err := job(s, "rebalance", "rebalance_progress", nil)
	if err != nil {
		return nil, err
	}
	state := make(map[string]string)
	for item := range strings.FieldsSeq(r.Get("state")) {
		name, value, _ := strings.Cut(item, "=")
		state[name] = strings.Trim(value, ",")
	}
	p := &rebalanceRun{
		Running: r.True("running"), Host: r.Get("host"), Policy: r.Get("policy"), Waiting: r.Number("queued_moves"), Left: r.Number("bytes_left"),
		Queued: protocol.Number(state["fids_queued"]), Bytes: protocol.Number(state["bytes_queued"]),
		Sources: state["source_devs"], Done: state["completed_devs"],
		Started: protocol.Number(state["time_started"]), Finished: protocol.Number(state["time_finished"]), Stopped: protocol.Number(state["time_stopped"]),
	}
	if c := state["sdev_current"]; c != "0" {
		p.Current = c
	}
	switch {
	case p.Running:
		p.State = "running"
	case len(state) == 0:
		p.State = "never"
	case p.Finished > 0 && p.Waiting > 0:
		p.State = "moving"
	case p.Finished > 0:
		p.State = "done"
	default:
		p.State = "stopped"
	}
	return p, nil
}

func (p *rebalanceRun) write(o *output) error {
	if o.json {
		return o.object(p)
	}
	words := map[string]string{
		"running": "running, started on " + p.Host, "never": "nothing was begun", "done": "done", "stopped": "stopped",
		"moving": "all moves are queued",
	}
	rows := [][]string{{"state:", words[p.State]}, {"policy:", p.Policy}}
	if p.State != "never" {
		rows = append(rows, []string{"queued so far:", fmt.Sprintf("%d files, %s", p.Queued, size(p.Bytes))})
	}
	for _, d := range []struct{ name, devs string }{{"at work on:", p.Current}, {"to come:", p.Sources}, {"done with:", p.Done}} {
		if d.devs != "" {
			rows = append(rows, []string{d.name, "dev" + strings.ReplaceAll(d.devs, ",", ", dev")})
		}
	}
	rows = append(rows, []string{"moves waiting:", strconv.FormatInt(p.Waiting, 10)})
	return o.pairs(rows)
}

// levelDevice is a device in a plan to fill devices equally.
type levelDevice struct {
	Device   protocol.DevID `json:"device"`
	Host     string         `json:"host"`
	Bytes    int64          `json:"bytes"`    // of files, by the database
	Capacity int64          `json:"capacity"` // in bytes
	Percent  float64        `json:"percent"`
	Change   int64          `json:"change"` // bytes that it takes, or, below 0, gives
}

// levelPlan is what filling devices equally would move.
type levelPlan struct {
	Spread  float64       `json:"spread"` // there is, in percent points
	Wanted  float64       `json:"wanted_spread"`
	Bytes   int64         `json:"bytes"`
	Files   int64         `json:"files"` // about
	Devices []levelDevice `json:"devices"`
}

func planLevel(s *session) (*levelPlan, error) {
	wanted := s.Float64("spread")
	r, err := job(s, "rebalance", "rebalance_plan", protocol.Args{{Name: "spread", Value: strconv.FormatFloat(wanted, 'f', -1, 64)}})
	if err != nil {
		return nil, err
	}
	p := &levelPlan{Wanted: wanted, Bytes: r.Number("bytes"), Files: r.Number("files"), Devices: []levelDevice{}}
	if p.Spread, err = strconv.ParseFloat(r.Get("spread"), 64); err != nil {
		return nil, fmt.Errorf("rebalance_plan: %w", protocol.ErrBadReply)
	}
	n := r.Number("devices")
	if n < 0 || n > int64(len(r)) {
		return nil, fmt.Errorf("rebalance_plan: %w", protocol.ErrBadReply)
	}
	for i := range n {
		row := "dev" + strconv.FormatInt(i+1, 10) + "_"
		d := levelDevice{
			Device: protocol.DevID(max(0, r.Number(row+"devid"))), Host: r.Get(row + "host"),
			Bytes: r.Number(row + "bytes"), Capacity: r.Number(row + "capacity"), Change: r.Number(row + "change"),
		}
		d.Percent = percent(d.Bytes, d.Capacity)
		p.Devices = append(p.Devices, d)
	}
	return p, nil
}

// level reports whether there is nothing to do.
func (p *levelPlan) level() bool { return p.Spread <= p.Wanted }

func (p *levelPlan) write(o *output) error {
	if o.json {
		return o.object(p)
	}
	var rows [][]string
	for _, d := range p.Devices {
		change := ""
		switch {
		case d.Change < 0:
			change = "gives " + size(-d.Change)
		case d.Change > 0:
			change = "takes " + size(d.Change)
		}
		rows = append(rows, []string{"dev" + d.Device.String(), d.Host, size(d.Bytes), fmt.Sprintf("%.2f %%", d.Percent), change})
	}
	return o.table([]string{"device", "host", ">files", ">fill", "plan"}, rows)
}

// maxLevelRounds is how often a plan is made again from what the last one left:
// policies may not let it be carried out in full.
const maxLevelRounds = 5

// rebalanceAuto has devices filled equally. A run of it that is at work already
// is waited for.
func rebalanceAuto(s *session, _ []string) error {
	if n := s.Float64("spread"); !(n > 0 && n <= 100) {
		return usageError(s.Context, "rebalance auto: --spread is above 0 and up to 100")
	}
	policy := "level_spread=" + strconv.FormatFloat(s.Float64("spread"), 'f', -1, 64)
	now, err := rebalanceNow(s)
	if err != nil {
		return err
	}
	attached := now.Running && now.Policy == policy
	if now.Running && !attached {
		return &failure{err: fmt.Errorf("rebalance is running with the policy %q", now.Policy), hint: "'mogtool rebalance status' shows how far it is, 'mogtool rebalance stop' stops it", code: exitFailed}
	}
	plan, err := planLevel(s)
	if err != nil {
		return err
	}
	if !attached {
		if plan.level() || s.Bool("dry-run") {
			return errors.Join(plan.write(s.out), plan.tell(s))
		}
		if plan.Bytes == 0 {
			return errors.Join(plan.write(s.out), plan.stuck())
		}
		if err := plan.ask(s); err != nil {
			return err
		}
	}
	for round := 1; ; round++ {
		before := plan.Spread
		if !attached {
			if _, err := job(s, "rebalance", "rebalance_set_policy", protocol.Args{{Name: "policy", Value: policy}}); err != nil {
				return err
			}
			if _, err := job(s, "rebalance", "rebalance_start", nil); err != nil {
				return err
			}
		}
		if s.Bool("no-wait") {
			return s.out.note("it has begun; 'mogtool rebalance status' shows how far it is")
		}
		if err := awaitLevel(s, round, plan.Bytes); err != nil {
			return err
		}
		if plan, err = planLevel(s); err != nil {
			return err
		}
		if plan.level() {
			return errors.Join(plan.write(s.out), plan.tell(s))
		}
		if round == maxLevelRounds || plan.Bytes == 0 || !attached && plan.Spread > before*0.9 {
			return errors.Join(plan.write(s.out), plan.stuck())
		}
		attached = false
	}
}

// tell says how level the devices are, to people.
func (p *levelPlan) tell(s *session) error {
	if p.level() {
		return s.out.note("devices are filled to within %.4g percent points (%.4g wanted)", p.Spread, p.Wanted)
	}
	return s.out.note("%s in about %d files would be moved; the fill of devices differs by %.4g percent points (%.4g wanted)", size(p.Bytes), p.Files, p.Spread, p.Wanted)
}

func (p *levelPlan) stuck() error {
	return &failure{
		err:  fmt.Errorf("rebalance: the fill of devices differs by %.4g percent points, and cannot be made more equal now (%.4g wanted)", p.Spread, p.Wanted),
		hint: "the policies of classes keep files where they are: add devices on other hosts, or allow a greater --spread", code: exitFailed,
	}
}

func (p *levelPlan) ask(s *session) error {
	if s.Bool("yes") {
		return nil
	}
	in, ok := s.App.Reader.(*os.File)
	if !ok || !isTerminal(in) {
		return errors.Join(p.write(s.out), &failure{
			err:  fmt.Errorf("rebalance: nothing is done: %s in about %d files would be moved, and nobody can be asked", size(p.Bytes), p.Files),
			hint: "--yes does it", code: exitFailed,
		})
	}
	if err := p.write(s.out); err != nil {
		return err
	}
	fmt.Fprintf(s.out.errw, "move %s in about %d files? [y/N] ", size(p.Bytes), p.Files)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return &failure{err: errors.New("rebalance: nothing is done"), code: exitFailed}
}

// awaitLevel waits until a run has queued its moves and they were made.
func awaitLevel(s *session, round int, total int64) error {
	bar := s.out.newProgress("rebalance, round "+strconv.Itoa(round), total, true)
	defer bar.end()
	for {
		p, err := rebalanceNow(s)
		if err != nil {
			return err
		}
		done := p.Bytes
		if p.Queued > 0 { // of which some wait
			done -= int64(float64(p.Bytes) * min(1, float64(p.Waiting)/float64(p.Queued)))
		}
		bar.set(done)
		switch p.State {
		case "done":
			return nil
		case "stopped", "never":
			return &failure{err: fmt.Errorf("rebalance was stopped after %s", size(p.Bytes)), hint: "'mogtool rebalance start' lets it go on", code: exitFailed}
		}
		if err := sleepFor(s, time.Second); err != nil {
			return err
		}
	}
}
