package tools

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

const (
	checkTimeout = 5 * time.Second // for each question
	checkJobs    = 32              // questions at once
	staleUsage   = 2 * time.Minute // daemons write usage every 10 s
)

func checkCommand() *cli.Command {
	return command("check", "ask every tracker, host and device whether it is well", "",
		`mogtool check                         exit code 1 when something is wrong
mogtool --json check | jq .problems`,
		need{0, 0, false}, nil, check)
}

func statsCommand() *cli.Command {
	return command("stats", "print the counters of every tracker, and what classes occupy", "",
		`mogtool stats
mogtool --json stats`,
		need{0, 0, false}, nil, stats)
}

func consoleCommand() *cli.Command {
	return command("console", "send a line of the administration port to every tracker", "COMMAND",
		`mogtool console '!stats'              also !jobs, !queue, !recent, !version
mogtool console '!want 5 replicate'
mogtool console '!watch'              the log, until interrupted`,
		need{1, -1, false}, nil, console)
}

// report is what check found.
type report struct {
	Trackers []trackerCheck `json:"trackers"`
	Hosts    []hostCheck    `json:"hosts"`
	Devices  []deviceCheck  `json:"devices"`
	Problems []problem      `json:"problems"`
	Notes    []problem      `json:"notes,omitempty"` // what is no problem, and could be better

	drains drainState
}

type trackerCheck struct {
	Tracker string  `json:"tracker"`
	Answer  string  `json:"answer"` // "ok", or what is wrong
	Millis  float64 `json:"millis"`

	hosts    []protocol.Host
	devices  []protocol.Device
	domains  []protocol.Domain
	settings map[string]string
	orders   []orderCheck
}

// orderCheck is whether a storage daemon takes a tracker's orders.
type orderCheck struct{ host, answer, text string }

type hostCheck struct {
	Host   string `json:"host"`
	Addr   string `json:"address"`
	Status string `json:"status"`
	Answer string `json:"answer"` // "ok", "not asked", or what is wrong

	capabilities string // what Mogile's daemons name in each answer; "" of other makes
}

type deviceCheck struct {
	deviceRow
	Answer string `json:"answer"` // "ok", "not asked", or what is wrong
}

type problem struct {
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

func check(s *session, _ []string) error {
	var r report
	r.askTrackers(s)
	asked := slices.IndexFunc(r.Trackers, func(t trackerCheck) bool { return t.Answer == "ok" })
	if asked >= 0 {
		t := r.Trackers[asked]
		web := &http.Client{Timeout: checkTimeout, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
		r.askHosts(s.ctx(), web, t.hosts)
		r.askDevices(s.ctx(), web, t.hosts, t.devices)
		r.askDrains(s, t.Tracker)
	}
	if err := s.ctx().Err(); err != nil {
		return err
	}
	r.Problems, r.Notes = judge(&r), judgeKeys(r.Hosts)
	if err := r.write(s.out); err != nil {
		return err
	}
	switch n := len(r.Problems); {
	case n == 1:
		return errors.New("check found a problem")
	case n > 1:
		return fmt.Errorf("check found %d problems", n)
	}
	return nil
}

func (r *report) askTrackers(s *session) {
	r.Trackers = make([]trackerCheck, len(s.client.Trackers()))
	var g errgroup.Group
	g.SetLimit(checkJobs)
	for i, addr := range s.client.Trackers() {
		g.Go(func() error {
			t := &r.Trackers[i]
			t.Tracker, t.Answer = addr, "ok"
			ctx, cancel := context.WithTimeoutCause(s.ctx(), checkTimeout, fmt.Errorf("no answer in %v", checkTimeout))
			defer cancel()
			begun := time.Now()
			err := t.ask(ctx, s.client)
			t.Millis = float64(time.Since(begun).Microseconds()) / 1000
			if err != nil {
				t.Answer = err.Error()
				return nil
			}
			t.askOrders(s.ctx(), s.client)
			return nil
		})
	}
	_ = g.Wait() // never an error
}

func (t *trackerCheck) ask(ctx context.Context, c *protocol.Client) error {
	reply, err := c.DoAt(ctx, t.Tracker, "get_hosts", nil)
	if err == nil {
		t.hosts, err = protocol.ParseHosts(reply)
	}
	if err == nil {
		reply, err = c.DoAt(ctx, t.Tracker, "get_devices", nil)
	}
	if err == nil {
		t.devices, err = protocol.ParseDevices(reply)
	}
	if err == nil {
		reply, err = c.DoAt(ctx, t.Tracker, "get_domains", nil)
	}
	if err == nil {
		t.domains, err = protocol.ParseDomains(reply)
	}
	if err == nil {
		reply, err = c.DoAt(ctx, t.Tracker, "server_settings", nil)
	}
	if err == nil {
		var all []protocol.Setting
		all, err = protocol.ParseSettings(reply)
		t.settings = make(map[string]string, len(all))
		for _, x := range all {
			t.settings[x.Key] = x.Value
		}
	}
	if te, ok := errors.AsType[*protocol.TrackerError](err); ok {
		return te.Err
	}
	return err
}

// askOrders has the tracker find out which storage daemons take its orders.
// MogileFS's trackers give none.
func (t *trackerCheck) askOrders(ctx context.Context, c *protocol.Client) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	reply, err := c.DoAt(ctx, t.Tracker, "host_orders", nil)
	if err != nil {
		return
	}
	for i := range min(reply.Number("hosts"), int64(len(reply))) {
		row := "host" + strconv.FormatInt(i+1, 10) + "_"
		t.orders = append(t.orders, orderCheck{reply.Get(row + "hostname"), reply.Get(row + "answer"), reply.Get(row + "text")})
	}
}

func (r *report) askHosts(ctx context.Context, web *http.Client, hosts []protocol.Host) {
	r.Hosts = make([]hostCheck, len(hosts))
	var g errgroup.Group
	g.SetLimit(checkJobs)
	for i, h := range hosts {
		r.Hosts[i] = hostCheck{Host: h.Name, Addr: hostAddr(h), Status: h.Status, Answer: "not asked"}
		if h.Status == "alive" || h.Status == "readonly" {
			g.Go(func() error {
				_, header, err := fetchText(ctx, web, "http://"+r.Hosts[i].Addr+"/")
				r.Hosts[i].capabilities = header.Get("Mogile")
				if e, ok := errors.AsType[*protocol.StatusError](err); ok && e.Code < 500 {
					err = nil // nginx refuses to list its root, and serves files
				}
				r.Hosts[i].Answer = answer(err)
				return nil
			})
		}
	}
	_ = g.Wait() // never an error
}

func hostAddr(h protocol.Host) string { return net.JoinHostPort(h.IP, strconv.Itoa(h.Port)) }

func answer(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// askDevices reads the usage files.
func (r *report) askDevices(ctx context.Context, web *http.Client, hosts []protocol.Host, devs []protocol.Device) {
	rows := deviceRows(hosts, devs)
	r.Devices = make([]deviceCheck, len(rows))
	var g errgroup.Group
	g.SetLimit(checkJobs)
	for i, d := range rows {
		r.Devices[i] = deviceCheck{d, "not asked"}
		h := slices.IndexFunc(r.Hosts, func(h hostCheck) bool { return h.Host == d.Host })
		if d.Status == "dead" || d.Status == "down" || h < 0 || r.Hosts[h].Answer != "ok" {
			continue
		}
		g.Go(func() error {
			text, _, err := fetchText(ctx, web, "http://"+r.Hosts[h].Addr+"/dev"+d.ID.String()+"/usage")
			var u deviceUsage
			if err == nil {
				u, err = parseUsage(text)
			}
			if age := time.Since(u.asOf); err == nil && !u.asOf.IsZero() && age > staleUsage {
				err = fmt.Errorf("its usage is %v old", age.Round(time.Second))
			}
			if err == nil {
				r.Devices[i].TotalMB, r.Devices[i].UsedMB = u.totalKB>>10, u.usedKB>>10
			}
			r.Devices[i].Answer = answer(err)
			return nil
		})
	}
	_ = g.Wait() // never an error
}

// askDrains finds out which devices still have files that should not. Trackers of
// MogileFS's cannot tell.
func (r *report) askDrains(s *session, tracker string) {
	ctx, cancel := context.WithTimeout(s.ctx(), checkTimeout)
	defer cancel()
	if reply, err := s.client.DoAt(ctx, tracker, "drain_status", protocol.Args{{Name: "examine", Value: "1"}}); err == nil {
		r.drains = readDrains(reply)
	}
}

// fetchText is the beginning of what url has. The header is that of any answer.
func fetchText(ctx context.Context, web *http.Client, url string) (string, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", nil, err
	}
	resp, err := web.Do(req)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil { // the URL is named anyway
			err = inner
		}
		return "", nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return "", resp.Header, &protocol.StatusError{Code: resp.StatusCode}
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return string(b), resp.Header, err
}

type deviceUsage struct {
	totalKB, usedKB int64
	asOf            time.Time // zero where it is not told
}

// parseUsage reads a device's usage file. Trackers insist on total and used.
func parseUsage(text string) (deviceUsage, error) {
	var u deviceUsage
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			continue
		}
		n := protocol.Number(value)
		switch strings.TrimSpace(name) {
		case "total":
			u.totalKB = n
		case "used":
			u.usedKB = n
		case "time":
			u.asOf = time.Unix(n, 0)
		}
	}
	if u.totalKB <= 0 || u.usedKB <= 0 {
		return deviceUsage{}, errors.New("its usage has no total or used")
	}
	return u, nil
}

// judge names what is wrong, and what to do.
func judge(r *report) []problem {
	var ps []problem
	add := func(remedy, format string, args ...any) {
		ps = append(ps, problem{fmt.Sprintf(format, args...), remedy})
	}
	var view *trackerCheck
	for i, t := range r.Trackers {
		if t.Answer != "ok" {
			add("start it there ('mogile tracker'), or take it off --trackers", "tracker %s: %s", t.Tracker, t.Answer)
		} else if view == nil {
			view = &r.Trackers[i]
		}
	}
	if view == nil {
		return ps
	}
	if len(r.Hosts) == 0 {
		add("'mogtool host add HOST --ip ADDRESS --port 7500 --status alive'", "there is no host")
	}
	for _, h := range r.Hosts {
		switch {
		case h.Answer != "ok" && h.Answer != "not asked":
			add(fmt.Sprintf("start its daemon ('mogile storaged'), or 'mogtool host mark %s down'", h.Host), "host %s does not answer at %s: %s", h.Host, h.Addr, h.Answer)
		case h.Status == "dead" && slices.ContainsFunc(r.Devices, func(d deviceCheck) bool { return d.Host == h.Host && d.Status != "dead" }):
			add("mark each of its devices dead, so that their copies no longer count", "host %s is dead, and not all its devices are", h.Host)
		}
	}
	for _, t := range r.Trackers {
		ps = append(ps, judgeOrders(t)...)
	}
	if len(r.Hosts) > 0 && len(r.Devices) == 0 {
		add("'mogtool device add HOST DEVID', for the folder dev<DEVID> there", "there is no device")
	}
	writeable := 0
	for _, d := range r.Devices {
		if d.Host == "" {
			add("give it to a host of the cluster, in the database", "dev%d belongs to no host", d.ID)
			continue
		}
		h := slices.IndexFunc(r.Hosts, func(h hostCheck) bool { return h.Host == d.Host })
		if d.Status == "alive" && r.Hosts[h].Status == "alive" {
			if d.Observed == "writeable" {
				writeable++
			}
		}
		if d.Answer == "not asked" {
			continue
		}
		if d.Answer != "ok" {
			add(fmt.Sprintf("see that its folder dev%d is there and mounted, or 'mogtool device mark %s %d down'", d.ID, d.Host, d.ID), "dev%d of host %s: %s", d.ID, d.Host, d.Answer)
			continue
		}
		for _, t := range r.Trackers {
			for _, seen := range t.devices {
				if seen.ID != d.ID || t.Answer != "ok" || seen.Observed == "writeable" || seen.Observed == "readable" && d.Status != "alive" {
					continue
				}
				what := "has not seen it yet"
				if seen.Observed != "" {
					what = "finds it " + seen.Observed
				}
				add("see the logs of the tracker and of the host's daemon: the tracker could not write or read its probe", "dev%d of host %s is %s, and tracker %s %s", d.ID, d.Host, d.Status, t.Tracker, what)
			}
		}
	}
	if len(r.Devices) > 0 && writeable == 0 {
		add("mark a device alive whose host is, or add one", "no device takes new files")
	}
	for _, d := range r.drains.Devices {
		switch d.State {
		case "reaping":
			add("they are copied from elsewhere: 'mogtool drain --status' shows how far it is", "dev%d of host %s is dead, and %d files still have a copy recorded there", d.Device, d.Host, d.Files)
		case "blocked":
			add("'mogtool drain --status' names them and the reason", "dev%d of host %s cannot be emptied: %d files have no other place", d.Device, d.Host, d.Files)
		}
	}
	return append(ps, judgePolicies(view, makesNoShards(r.Hosts))...)
}

// judgeKeys names the hosts that take no orders, for want of a cluster key.
func judgeKeys(hosts []hostCheck) []problem {
	var without []string
	ours := 0
	for _, h := range hosts {
		words := strings.Fields(h.capabilities)
		if len(words) == 0 {
			continue
		}
		ours++
		if !slices.Contains(words, "copy") {
			without = append(without, h.Host)
		}
	}
	what := "no storage daemon has a cluster key"
	switch {
	case len(without) == 0:
		return nil
	case len(without) < ours:
		what = "storage daemons have no cluster key: " + strings.Join(without, ", ")
	}
	return []problem{{
		What:   what + "; copies to them go through trackers, bad copies stay on their disks, strays are not looked for",
		Remedy: "'mogile key new FILE', and --cluster-key-file FILE for all daemons of the cluster",
	}}
}

// judgeOrders names the storage daemons that have a cluster key and refuse what a
// tracker orders. Those that do not answer are found otherwise.
func judgeOrders(t trackerCheck) []problem {
	var ps []problem
	told := make(map[orderCheck]bool) // by the reason alone
	for _, o := range t.orders {
		why := orderCheck{answer: o.answer, text: o.text}
		if o.answer == "ok" || o.answer == "unreachable" || told[why] {
			continue
		}
		told[why] = true
		var hosts []string
		for _, other := range t.orders {
			if other.answer == why.answer && other.text == why.text {
				hosts = append(hosts, other.host)
			}
		}
		names := strings.Join(hosts, ", ")
		p := problem{What: fmt.Sprintf("the storage daemons of %s refuse the orders of tracker %s: %s", names, t.Tracker, cmp.Or(o.text, o.answer))}
		switch o.answer {
		case "tracker_has_no_key":
			p.What = fmt.Sprintf("tracker %s has no cluster key, and the storage daemons of %s have one", t.Tracker, names)
			p.Remedy = "start the tracker with --cluster-key-file, and the file of the storage daemons"
		case protocol.ErrBadSignature.Code:
			p.Remedy = "give " + names + " the tracker's file of --cluster-key-file, or the tracker theirs, and restart whoever got another"
		case protocol.ErrClockSkew.Code:
			p.Remedy = "set the clocks of " + names + " and of the tracker by NTP"
		default:
			p.Remedy = "see the logs of " + names
		}
		ps = append(ps, p)
	}
	return ps
}

func (r *report) write(o *output) error {
	if o.json {
		if r.Problems == nil {
			r.Problems = []problem{}
		}
		return o.object(r)
	}
	var trackers, hosts, devs [][]string
	for _, t := range r.Trackers {
		trackers = append(trackers, []string{t.Tracker, t.Answer, fmt.Sprintf("%.1f ms", t.Millis)})
	}
	for _, h := range r.Hosts {
		hosts = append(hosts, []string{h.Host, h.Addr, h.Status, h.Answer})
	}
	var total, used int64
	for _, d := range r.Devices {
		devs = append(devs, append(append([]string{d.Host, "dev" + d.ID.String(), d.Status, d.Observed}, usage(d.TotalMB, d.UsedMB)...), d.Utilization, d.Answer))
		if d.Status != "dead" && d.TotalMB > 0 && d.UsedMB >= 0 {
			total, used = total+d.TotalMB, used+d.UsedMB
		}
	}
	if len(devs) > 1 {
		devs = append(devs, append(append([]string{"total", "", "", ""}, usage(total, used)...), "", ""))
	}
	blank := false
	for _, t := range []struct {
		header []string
		rows   [][]string
	}{
		{[]string{"tracker", "answer", ">took"}, trackers},
		{[]string{"host", "address", "status", "answer"}, hosts},
		{[]string{"host", ">device", "status", "seen as", ">size", ">?used", ">free", ">use%", ">?io%", "answer"}, devs},
	} {
		if len(t.rows) == 0 {
			continue
		}
		if blank {
			if err := o.line(""); err != nil {
				return err
			}
		}
		blank = true
		if err := o.table(t.header, t.rows); err != nil {
			return err
		}
	}
	var lines []string
	for _, p := range r.Problems {
		lines = append(lines, "", "problem: "+p.What, "remedy:  "+p.Remedy)
	}
	for _, p := range r.Notes {
		lines = append(lines, "", "note:    "+p.What, "remedy:  "+p.Remedy)
	}
	for _, l := range lines {
		if err := o.line(l); err != nil {
			return err
		}
	}
	return nil
}

// statsJSON are one tracker's counters.
type statsJSON struct {
	Tracker  string             `json:"tracker"`
	Counters map[string]float64 `json:"counters"`
}

// trackerStats asks every tracker; names are those of the counters, in the order
// in which they came.
func trackerStats(s *session) (all []statsJSON, names []string, err error) {
	for _, addr := range s.client.Trackers() {
		one := statsJSON{addr, make(map[string]float64)}
		for line, err := range s.client.Console(s.ctx(), addr, "!stats") {
			if err != nil {
				return nil, nil, err
			}
			name, value, _ := strings.Cut(line, " ")
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return nil, nil, fmt.Errorf("tracker %s: !stats: line %q is not a name and a number", addr, line)
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			one.Counters[name] = n
		}
		all = append(all, one)
	}
	return all, names, nil
}

func stats(s *session, _ []string) error {
	all, names, err := trackerStats(s)
	if err != nil {
		return err
	}
	usage, err := s.client.ClassUsage(s.ctx())
	if err != nil && !errors.Is(err, protocol.ErrUnknownCommand) {
		return err
	}
	if s.out.json {
		return errors.Join(list(s.out, all, nil, nil), classUsage(s.out, usage))
	}
	header := []string{"counter"}
	for _, one := range all {
		header = append(header, ">"+one.Tracker)
	}
	var rows [][]string
	for _, name := range names {
		row := []string{name}
		for _, one := range all {
			cell := ""
			if n, ok := one.Counters[name]; ok {
				cell = strconv.FormatFloat(n, 'f', -1, 64)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	if err := s.out.table(header, rows); err != nil || len(usage) == 0 {
		return err
	}
	if err := s.out.line(""); err != nil {
		return err
	}
	return classUsage(s.out, usage)
}

// usageJSON is what the files of a class occupy.
type usageJSON struct {
	protocol.ClassUsage
	Overhead float64 `json:"overhead"`
}

// classUsage writes what classes occupy.
func classUsage(o *output, usage []protocol.ClassUsage) error {
	rows := make([]usageJSON, len(usage))
	for i, u := range usage {
		rows[i] = usageJSON{u, math.Round(1000*u.Overhead()) / 1000}
	}
	return list(o, rows, []string{"domain", "class", ">files", ">size", ">stored", ">overhead"}, func(u usageJSON) []string {
		return []string{u.Domain, u.Class, strconv.FormatInt(u.Files, 10), size(u.Bytes), size(u.Stored), fmt.Sprintf("%.0f %%", 100*u.Overhead)}
	})
}

func console(s *session, args []string) error {
	line := strings.Join(args, " ")
	if !strings.HasPrefix(line, "!") {
		return usageError(s.Context, "console: %q does not begin with \"!\"", line)
	}
	trackers := s.client.Trackers()
	if strings.HasPrefix(line, "!watch") && len(trackers) > 1 {
		return usageError(s.Context, "console: !watch is for one tracker; name it with --trackers")
	}
	return each(trackers, func(addr string) error {
		if len(trackers) > 1 && !s.out.json {
			if err := s.out.line(addr + ":"); err != nil {
				return err
			}
		}
		for l, err := range s.client.Console(s.ctx(), addr, line) {
			if err != nil {
				return err
			}
			if s.out.json {
				err = s.out.object(struct {
					Tracker string `json:"tracker"`
					Line    string `json:"line"`
				}{addr, l})
			} else {
				err = s.out.line(l)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
