package tools

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

func fsckCommands(leaf leafFunc) []*cli.Command {
	return []*cli.Command{
		leaf("start", "start or resume the check", "", `mogadm fsck start`, 0, 0, nil, jobDo("fsck", "fsck_start")),
		leaf("stop", "pause the check", "", `mogadm fsck stop`, 0, 0, nil, jobDo("fsck", "fsck_stop")),
		leaf("status", "show how far it is and what it found", "", `mogadm fsck status`, 0, 0, nil, fsckStatus),
		leaf("reset", "begin again at the first file", "", `mogadm fsck reset
mogadm fsck reset --policy-only --startpos=5000`, 0, 0, []cli.Flag{
			&cli.BoolFlag{Name: "policy-only", Usage: "look at replication only, not at the devices", DisableDefaultText: true},
			&cli.Int64Flag{Name: "startpos", Usage: "`FID` behind which to begin"},
		}, fsckReset),
		leaf("clearlog", "delete the log", "", `mogadm fsck clearlog`, 0, 0, nil, jobDo("fsck", "fsck_clearlog")),
		leaf("printlog", "print the log", "", `mogadm fsck printlog`, 0, 0, nil, fsckPrintLog),
		leaf("taillog", "print what comes to the log, until interrupted", "", `mogadm fsck taillog`, 0, 0, nil, fsckTailLog),
	}
}

func rebalanceCommands(leaf leafFunc) []*cli.Command {
	return []*cli.Command{
		leaf("policy", "say what to move where", "", `mogadm rebalance policy --options='from_hosts=3 to_percent_free=50'`, 0, 0, []cli.Flag{
			&cli.StringFlag{Name: "options", Usage: "`POLICY`, such as 'from_devices=5,6 to_hosts=2'"},
		}, rebalancePolicy),
		leaf("settings", "show the policy and the state that is kept", "", `mogadm rebalance settings`, 0, 0, nil, func(s *session, _ []string) error {
			return printSettings(s, func(key string) bool { return strings.HasPrefix(key, "rebal_") })
		}),
		leaf("test", "show the devices that the policy means", "", `mogadm rebalance test`, 0, 0, nil, rebalanceTest),
		leaf("start", "start or resume moving", "", `mogadm rebalance start`, 0, 0, nil, rebalanceState("rebalance_start")),
		leaf("stop", "pause moving", "", `mogadm rebalance stop`, 0, 0, nil, jobDo("rebalance", "rebalance_stop")),
		leaf("status", "show how far it is", "", `mogadm rebalance status`, 0, 0, nil, rebalanceState("rebalance_status")),
		leaf("reset", "forget how far it is", "", `mogadm rebalance reset`, 0, 0, nil, jobDo("rebalance", "rebalance_reset")),
	}
}

// job sends a command of fsck or rebalance, which not every tracker has.
func job(s *session, what, command string, args protocol.Args) (protocol.Args, error) {
	reply, err := s.client.Do(s.ctx(), command, args)
	if errors.Is(err, protocol.ErrUnknownCommand) {
		return nil, &failure{
			err:  fmt.Errorf("%s: the tracker has no %s: %w", command, what, err),
			hint: "nothing was done; it needs a tracker of a version that can do it",
			code: exitFailed,
		}
	}
	return reply, err
}

func jobDo(what, command string) func(*session, []string) error {
	return func(s *session, _ []string) error {
		reply, err := job(s, what, command, nil)
		if err != nil {
			return err
		}
		return s.out.done(reply)
	}
}

func fsckReset(s *session, _ []string) error {
	var args protocol.Args
	if s.Bool("policy-only") {
		args.Add("policy_only", "1")
	}
	if n := s.Int64("startpos"); n < 0 {
		return usageError(s.Context, "fsck reset: --startpos is a file number, 0 or more")
	} else if n > 0 {
		args.AddInt("startpos", n)
	}
	reply, err := job(s, "fsck", "fsck_reset", args)
	if err != nil {
		return err
	}
	return s.out.done(reply)
}

func fsckStatus(s *session, _ []string) error {
	reply, err := job(s, "fsck", "fsck_status", nil)
	if err != nil {
		return err
	}
	return s.printf("%s", fsckText(reply))
}

// fsckText words the reply to fsck_status. Fields that it does not know are
// printed as they are: the counts of what was found are among them.
func fsckText(reply protocol.Args) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%11s: %s\n", name, fmt.Sprintf(format, args...))
	}
	running := reply.True("running")
	b.WriteString("\n")
	if running {
		line("Running", "Yes (on %s)", reply.Get("host"))
	} else {
		line("Running", "No")
	}
	done, end := reply.Number("max_fid_checked"), reply.Number("end_fid")
	line("Status", "%d / %d (%.2f%%)", done, end, percent(done, end))
	start, until := reply.Number("start_time"), reply.Number("stop_time")
	if running {
		until = reply.Number("current_time")
	}
	if took := until - start; start > 0 && took >= 0 {
		speed := done / max(1, took)
		text := fmt.Sprintf("%s (%d fids/s", shortTime(took), speed)
		if running && speed > 0 && end > done {
			text += "; " + shortTime((end-done)/speed) + " remaining"
		}
		line("Time", "%s)", text)
	}
	kind := "Normal (check policy + files)"
	if reply.True("policy_only") {
		kind = "Policy only (check policy, not files)"
	}
	line("Check Type", "%s", kind)
	b.WriteString("\n")
	for _, f := range reply {
		switch f.Name {
		case "running", "host", "max_fid_checked", "end_fid", "start_time", "stop_time", "current_time", "policy_only", "max_logid", "callid":
		default:
			fmt.Fprintf(&b, " [%s]: %s\n", f.Name, f.Value)
		}
	}
	return b.String()
}

// shortTime is a number of seconds as "1d 2h", "3h 4m", "5m 6s" or "7s".
func shortTime(seconds int64) string {
	units := []struct {
		name string
		n    int64
	}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}}
	for i, u := range units[:3] {
		if seconds >= u.n {
			return fmt.Sprintf("%d%s %d%s", seconds/u.n, u.name, seconds%u.n/units[i+1].n, units[i+1].name)
		}
	}
	return fmt.Sprintf("%ds", seconds)
}

// fsckLogPage is the most rows of the log that trackers give at once.
const fsckLogPage = 100

// printLog prints the rows of the log after a number, and returns the last's.
func printLog(s *session, after int64) (int64, error) {
	err := readLog(s, after, func(r logRow) error {
		fid, dev := "", ""
		if r.FID != 0 {
			fid = r.FID.String()
		}
		if r.Device != 0 {
			dev = r.Device.String()
		}
		after = max(after, r.LogID)
		return s.printf("%10d %-4s %10s %s\n", r.Time, r.Code, fid, dev)
	})
	return after, err
}

const fsckLogHead = "  unixtime event      fid devid\n"

func fsckPrintLog(s *session, _ []string) error {
	if err := s.printf(fsckLogHead); err != nil {
		return err
	}
	_, err := printLog(s, 0)
	return err
}

// fsckTailLog looks for rows every 5 s, as mogadm does.
func fsckTailLog(s *session, _ []string) error {
	reply, err := job(s, "fsck", "fsck_status", nil)
	if err != nil {
		return err
	}
	if err := s.printf(fsckLogHead); err != nil {
		return err
	}
	return poll(s.ctx(), 5*time.Second, max(0, reply.Number("max_logid")-20), func(after int64) (int64, error) {
		return printLog(s, after)
	})
}

// poll calls f with what it returned before, until ctx is cancelled.
func poll(ctx context.Context, every time.Duration, n int64, f func(int64) (int64, error)) error {
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		var err error
		if n, err = f(n); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticks.C:
		}
	}
}

func rebalancePolicy(s *session, _ []string) error {
	if !s.IsSet("options") {
		return usageError(s.Context, "rebalance policy: it needs --options; 'mogadm rebalance settings' shows the policy there is")
	}
	_, err := job(s, "rebalance", "rebalance_set_policy", protocol.Args{{Name: "policy", Value: s.String("options")}})
	return err
}

func rebalanceTest(s *session, _ []string) error {
	reply, err := job(s, "rebalance", "rebalance_test", nil)
	if err != nil {
		return err
	}
	rows, err := devices(s)
	if err != nil {
		return err
	}
	for _, list := range []struct{ title, field string }{{"Source devices", "sdevs"}, {"Destination devices", "ddevs"}} {
		if err := s.printf("%s:\n", list.title); err != nil {
			return err
		}
		for id := range strings.SplitSeq(reply.Get(list.field), ",") {
			if id == "" {
				continue
			}
			host, free := "?", 0.0
			for _, d := range rows {
				if d.ID.String() == id {
					host, free = d.Host, gigabytes(d.TotalMB-d.UsedMB)
				}
			}
			if err := s.printf("  %-20s dev%-8s free(G): %10.3f\n", host, id, free); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebalanceState prints the state in the reply, a "name = value" a line.
func rebalanceState(command string) func(*session, []string) error {
	return func(s *session, _ []string) error {
		reply, err := job(s, "rebalance", command, nil)
		if err != nil {
			return err
		}
		for pair := range strings.FieldsSeq(reply.Get("state")) {
			name, value, _ := strings.Cut(pair, "=")
			if err := s.printf("%25s = %s\n", name, value); err != nil {
				return err
			}
		}
		return nil
	}
}
