package tools

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

// admCommands are mogadm's, with mogtool's own actions where those print
// nothing.
func admCommands() []*cli.Command {
	leaf := func(name, usage, operands, example string, min, max int, flags []cli.Flag, do func(*session, []string) error) *cli.Command {
		return command(name, usage, operands, example, need{min, max, false}, flags, do)
	}
	group := func(name, usage string, subs ...*cli.Command) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Subcommands: subs}
	}
	status := func(values string) cli.Flag {
		return &cli.StringFlag{Name: "status", Usage: "`STATUS`: " + values}
	}
	all := &cli.BoolFlag{Name: "all", Usage: "dead ones too", DisableDefaultText: true}
	chosen := []cli.Flag{all, status("only devices of these, separated by commas"), &cli.StringFlag{Name: "name", Usage: "only devices of these `HOSTS`, separated by commas"}}
	slave := []cli.Flag{
		&cli.StringFlag{Name: "dsn", Usage: "`DSN` of the database"},
		&cli.StringFlag{Name: "username", Usage: "`NAME` to log in with"},
		&cli.StringFlag{Name: "password", Usage: "`PASSWORD` to log in with"},
	}
	return []*cli.Command{
		leaf("check", "ask every tracker, host and device whether it is there", "", `mogadm --trackers=10.0.0.1:7001,10.0.0.2:7001 check`, 0, 0, nil, admCheck),
		leaf("stats", "print what trackers know in numbers", "", `mogadm stats
mogadm stats --devices --fids
mogadm stats --all                    walks over all files, 500 a request`, 0, 0, statsFlags(), admStats),
		group("host", "storage hosts",
			leaf("list", "list hosts", "", `mogadm host list`, 0, 0, nil, admHostList),
			leaf("add", "register a host", "HOST", `mogadm host add store1 --ip=10.0.0.1 --port=7500 --status=alive`, 1, 1, hostFlags(), admHostAdd),
			leaf("modify", "change a host", "HOST", `mogadm host modify store1 --getport=7510`, 1, 1, hostFlags(), hostModify),
			leaf("mark", "set a host's status", "HOST STATUS", `mogadm host mark store1 down           also alive, readonly, dead`, 2, 2, nil, hostMark),
			leaf("delete", "forget a host that has no devices", "HOST", `mogadm host delete store1`, 1, 1, nil, hostDelete),
		),
		group("device", "disks of storage hosts",
			leaf("list", "list devices", "", `mogadm device list
mogadm device list --all --name=store1,store2 --status=alive,drain`, 0, 0, chosen, admDeviceList),
			leaf("summary", "sums over the devices of each host", "", `mogadm device summary --status=alive`, 0, 0, chosen, admDeviceSummary),
			leaf("next", "print the next free device number", "", `mogadm device next`, 0, 0, nil, admDeviceNext),
			leaf("add", "register a device", "HOST DEVID", `mogadm device add store1 7 --status=alive`, 2, 2, []cli.Flag{
				&cli.StringFlag{Name: "status", Usage: "`STATUS`: alive, down, dead, readonly or drain", Value: "alive"},
			}, deviceAdd),
			leaf("mark", "set a device's status", "HOST DEVID STATUS", `mogadm device mark store1 7 drain`, 3, 3, nil, deviceMark),
			leaf("modify", "change a device", "HOST DEVID", `mogadm device modify store1 7 --weight=50`, 2, 2, []cli.Flag{
				status("alive, down, dead, readonly or drain"),
				&cli.IntFlag{Name: "weight", Usage: "`N`; how much it is read from, others having 100"},
			}, deviceModify),
			leaf("delete", "explain how a device goes", "HOST DEVID", `mogadm device mark store1 7 dead       is what there is`, 0, -1, nil, deviceDelete),
		),
		group("domain", "namespaces of keys",
			leaf("list", "list domains and their classes", "", `mogadm domain list`, 0, 0, nil, admClassList),
			leaf("add", "make a domain", "DOMAIN", `mogadm domain add photos`, 1, 1, nil, domainDo("create_domain")),
			leaf("delete", "delete a domain without files and classes", "DOMAIN", `mogadm domain delete photos`, 1, 1, nil, domainDo("delete_domain")),
		),
		group("class", "rules for the files of a domain",
			leaf("list", "list classes", "[DOMAIN…]", `mogadm class list`, 0, -1, nil, admClassList),
			leaf("add", "make a class", "DOMAIN CLASS", `mogadm class add photos thumbs --mindevcount=3 --replpolicy='MultipleHosts(3)' --hashtype=MD5`, 2, 2, classFlags(), admClassAdd),
			leaf("modify", "change a class", "DOMAIN CLASS", `mogadm class modify photos thumbs --mindevcount=3`, 2, 2, classFlags(), classModify),
			leaf("delete", "delete a class without files", "DOMAIN CLASS", `mogadm class delete photos thumbs`, 2, 2, nil, classDelete),
		),
		group("settings", "settings of the whole cluster",
			leaf("list", "list settings", "", `mogadm settings list`, 0, 0, nil, admSettingsList),
			leaf("set", "change a setting", "KEY VALUE", `mogadm settings set skip_mkcol 1`, 2, 2, nil, settingsSet),
		),
		group("slave", "read replicas of the database, which Mogile does not use",
			leaf("list", "list replicas", "", `mogadm slave list`, 0, 0, nil, slaveList),
			leaf("add", "record a replica", "KEY", `mogadm slave add db2 --dsn='DBI:Pg:dbname=mogilefs;host=db2' --username=mogile`, 1, 1, slave, slaveAdd),
			leaf("modify", "change a replica", "KEY", `mogadm slave modify db2 --username=reader`, 1, 1, slave, slaveModify),
			leaf("delete", "forget a replica", "KEY", `mogadm slave delete db2`, 1, 1, nil, slaveDelete),
		),
		group("fsck", "check that files are where they should be", fsckCommands(leaf)...),
		group("rebalance", "move files between devices", rebalanceCommands(leaf)...),
	}
}

type leafFunc func(name, usage, operands, example string, min, max int, flags []cli.Flag, do func(*session, []string) error) *cli.Command

// printf writes to standard output.
func (s *session) printf(format string, args ...any) error {
	text, nl := strings.CutSuffix(fmt.Sprintf(format, args...), "\n")
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = s.out.shown(l)
	}
	text = strings.Join(lines, "\n")
	if nl {
		text += "\n"
	}
	_, err := fmt.Fprint(s.out.w, text)
	return err
}

// gigabytes are mogadm's, 2³⁰ bytes.
func gigabytes(mb int64) float64 { return float64(max(0, mb)) / 1024 }

func admCheck(s *session, _ []string) error {
	var r report
	r.askTrackers(s)
	bad := 0
	var b strings.Builder
	answer := func(text string) string {
		if text == "ok" {
			return "OK"
		}
		bad++
		return "REQUEST FAILURE: " + text
	}
	b.WriteString("Checking trackers...\n")
	var view *trackerCheck
	for i, t := range r.Trackers {
		fmt.Fprintf(&b, "  %s ... %s\n", t.Tracker, answer(t.Answer))
		if t.Answer == "ok" && view == nil {
			view = &r.Trackers[i]
		}
	}
	if view == nil {
		if err := s.printf("%s", b.String()); err != nil {
			return err
		}
		return &failure{err: errors.New("no tracker answers"), hint: "start one ('mogile tracker'), or name those there are with --trackers", code: exitFailed}
	}
	web := &http.Client{Timeout: checkTimeout, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	r.askHosts(s.ctx(), web, view.hosts)
	r.askDevices(s.ctx(), web, view.hosts, view.devices)
	if err := s.ctx().Err(); err != nil {
		return err
	}
	b.WriteString("\nChecking hosts...\n")
	ids := make(map[string]int64)
	for i, h := range r.Hosts {
		ids[h.Host] = view.hosts[i].ID
	}
	slices.SortFunc(r.Hosts, func(a, b hostCheck) int { return cmp.Compare(ids[a.Host], ids[b.Host]) })
	for _, h := range r.Hosts {
		text := "skipping; status = " + h.Status
		if h.Answer != "not asked" {
			text = answer(h.Answer)
		}
		fmt.Fprintf(&b, "  [%2d] %s ... %s\n", ids[h.Host], h.Host, text)
	}
	b.WriteString("\nChecking devices...\n")
	fmt.Fprintf(&b, "  %-4s %-12s %10s %10s %10s %7s %-11s %5s\n", "host", "device", "size(G)", "used(G)", "free(G)", "use%", "ob state", "I/O%")
	rule := "  ---- ------------ ---------- ---------- ---------- -------"
	b.WriteString(rule + " ----------- -----\n")
	var total, used int64
	row := func(d deviceCheck) {
		name := fmt.Sprintf("  [%2d] %-12s ", d.HostID, "dev"+d.ID.String())
		switch {
		case d.Answer == "not asked":
			fmt.Fprintf(&b, "%sskipping; its host is not asked, or does not answer\n", name)
		case d.Answer != "ok":
			fmt.Fprintf(&b, "%s%s\n", name, answer(d.Answer))
		default:
			busy := d.Utilization
			if busy == "" || busy == "-" {
				busy = "N/A"
			}
			fmt.Fprintf(&b, "%s%10.3f %10.3f %10.3f %6.2f%% %-11s %5s\n", name, gigabytes(d.TotalMB), gigabytes(d.UsedMB),
				gigabytes(d.TotalMB-d.UsedMB), percent(d.UsedMB, d.TotalMB), d.Observed, busy)
			total, used = total+d.TotalMB, used+d.UsedMB
		}
	}
	for _, d := range r.Devices {
		if d.Status != "dead" && d.Status != "down" {
			row(d)
		}
	}
	fmt.Fprintf(&b, "%s\n  %17s %10.3f %10.3f %10.3f %6.2f%%\n", rule, "total:", gigabytes(total), gigabytes(used), gigabytes(total-used), percent(used, total))
	if err := s.printf("%s", b.String()); err != nil {
		return err
	}
	if bad > 0 {
		return &failure{err: fmt.Errorf("check: %d did not answer as they should", bad), hint: "the lines with REQUEST FAILURE say which, and why", code: exitFailed}
	}
	return nil
}

func percent(part, whole int64) float64 {
	if whole <= 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

func admHostList(s *session, _ []string) error {
	hosts, err := sortedHosts(s)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		var b strings.Builder
		fmt.Fprintf(&b, "%s [%d]: %s\n", h.Name, h.ID, h.Status)
		line := func(name, value string) { fmt.Fprintf(&b, "  %-9s %s\n", name+":", value) }
		line("IP", hostAddr(h))
		if h.GetPort != 0 {
			line("Get port", strconv.Itoa(h.GetPort))
		}
		if h.AltIP != "" {
			line("Alt IP", h.AltIP)
		}
		if h.AltMask != "" {
			line("Alt Mask", h.AltMask)
		}
		if err := s.printf("%s\n", b.String()); err != nil {
			return err
		}
	}
	return nil
}

// admHostAdd lets the port be mogstored's where none is given.
func admHostAdd(s *session, args []string) error {
	if !s.IsSet("port") {
		if err := s.Set("port", "7500"); err != nil {
			return err
		}
	}
	return hostAdd(s, args)
}

// hostDevices are a host and those of its devices that were asked for.
type hostDevices struct {
	protocol.Host
	devices []deviceRow
}

// chosenDevices are the devices that --all, --status and --name ask for.
func chosenDevices(s *session) ([]hostDevices, error) {
	hosts, err := sortedHosts(s)
	if err != nil {
		return nil, err
	}
	devs, err := s.client.Devices(s.ctx())
	if err != nil {
		return nil, err
	}
	list := func(flag string) []string {
		return strings.FieldsFunc(s.String(flag), func(r rune) bool { return r == ',' || r == ' ' })
	}
	statuses, names := list("status"), list("name")
	for _, name := range statuses {
		if !slices.Contains(deviceStatuses, name) {
			return nil, usageError(s.Context, "--status: a device is never %q; it is %s", name, orList(deviceStatuses))
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(hosts, func(h protocol.Host) bool { return h.Name == name }) {
			return nil, fmt.Errorf("list devices of host %q: %w", name, protocol.ErrHostNotFound)
		}
	}
	rows := deviceRows(hosts, devs)
	var chosen []hostDevices
	for _, h := range hosts {
		if len(names) > 0 && !slices.Contains(names, h.Name) {
			continue
		}
		one := hostDevices{Host: h}
		for _, d := range rows {
			wanted := d.Status != "dead" || s.Bool("all")
			if len(statuses) > 0 {
				wanted = slices.Contains(statuses, d.Status)
			}
			if d.HostID == h.ID && wanted {
				one.devices = append(one.devices, d)
			}
		}
		chosen = append(chosen, one)
	}
	return chosen, nil
}

func admDeviceList(s *session, _ []string) error {
	hosts, err := chosenDevices(s)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		var b strings.Builder
		fmt.Fprintf(&b, "%s [%d]: %s\n", h.Name, h.ID, h.Status)
		fmt.Fprintf(&b, "   %-8s %-8s %10s %10s %10s %10s\n", "", "", "used(G)", "free(G)", "total(G)", "weight(%)")
		for _, d := range h.devices {
			total, used := max(0, d.TotalMB), max(0, d.UsedMB)
			fmt.Fprintf(&b, "   %-8s %-8s %10.3f %10.3f %10.3f %10d\n", "dev"+d.ID.String()+":", d.Status, gigabytes(used), gigabytes(total-used), gigabytes(total), d.Weight)
		}
		if err := s.printf("%s\n", b.String()); err != nil {
			return err
		}
	}
	return nil
}

func admDeviceSummary(s *session, _ []string) error {
	hosts, err := chosenDevices(s)
	if err != nil {
		return err
	}
	var b strings.Builder
	line := func(host, id, status string, devices int, used, total int64) {
		fmt.Fprintf(&b, "%-20s %6s %-8s %8d %10.3f %10.3f %10.3f %6.2f%%\n", host, id, status, devices, gigabytes(used), gigabytes(total-used), gigabytes(total), percent(used, total))
	}
	fmt.Fprintf(&b, "%-20s %6s %-8s %8s %10s %10s %10s %7s\n", "host", "hostid", "status", "devices", "used(G)", "free(G)", "total(G)", "use%")
	var devices int
	var allUsed, allTotal int64
	for _, h := range hosts {
		var used, total int64
		for _, d := range h.devices {
			used, total = used+max(0, d.UsedMB), total+max(0, d.TotalMB)
		}
		line(h.Name, strconv.FormatInt(h.ID, 10), h.Status, len(h.devices), used, total)
		devices, allUsed, allTotal = devices+len(h.devices), allUsed+used, allTotal+total
	}
	line("total", "", "", devices, allUsed, allTotal)
	return s.printf("%s", b.String())
}

func admDeviceNext(s *session, _ []string) error {
	devs, err := s.client.Devices(s.ctx())
	if err != nil {
		return err
	}
	next := protocol.DevID(1)
	for _, d := range devs {
		next = max(next, d.ID+1)
	}
	return s.printf("%d\n", next)
}

func admClassList(s *session, args []string) error {
	rows, err := classRows(s, args)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, " %-20s %-20s %11s   %-18s %s\n", "domain", "class", "mindevcount", "replpolicy", "hashtype")
	fmt.Fprintf(&b, "%s\n", strings.Join([]string{strings.Repeat("-", 20), strings.Repeat("-", 20), strings.Repeat("-", 13), strings.Repeat("-", 18), strings.Repeat("-", 8)}, " "))
	for i, c := range rows {
		if i > 0 && rows[i-1].Domain != c.Domain {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, " %-20s %-20s %11d   %-18s %s\n", c.Domain, c.Name, c.MinDevCount, c.ReplPolicy, c.HashType)
	}
	return s.printf("%s\n", b.String())
}

// admClassAdd has MogileFS's default_mindevcount where none is given.
func admClassAdd(s *session, args []string) error {
	if !s.IsSet("mindevcount") {
		if err := s.Set("mindevcount", "2"); err != nil {
			return err
		}
	}
	return classAdd(s, args)
}

func admSettingsList(s *session, _ []string) error {
	return printSettings(s, func(string) bool { return true })
}

func printSettings(s *session, shown func(key string) bool) error {
	settings, err := sortedSettings(s)
	if err != nil {
		return err
	}
	for _, x := range settings {
		if !shown(x.Key) {
			continue
		}
		if err := s.printf("%25s = %s\n", x.Key, x.Value); err != nil {
			return err
		}
	}
	return nil
}

// replica is a read replica of the database, as MogileFS keeps it in the
// settings slave_keys ("key,key") and slave_<key> ("dsn|user|password").
type replica struct{ key, dsn, user, password string }

func replicas(s *session) ([]replica, error) {
	settings, err := s.client.Settings(s.ctx())
	if err != nil {
		return nil, err
	}
	values := make(map[string]string)
	for _, x := range settings {
		values[x.Key] = x.Value
	}
	var all []replica
	for key := range strings.SplitSeq(values["slave_keys"], ",") {
		if key = strings.TrimSpace(key); key == "" {
			continue
		}
		parts := append(strings.SplitN(values["slave_"+key], "|", 3), "", "")
		all = append(all, replica{key, parts[0], parts[1], parts[2]})
	}
	return all, nil
}

func setReplicas(s *session, all []replica) error {
	var keys []string
	for _, r := range all {
		keys = append(keys, r.key)
	}
	return setSetting(s, "slave_keys", strings.Join(keys, ","))
}

func setReplica(s *session, r replica) error {
	return setSetting(s, "slave_"+r.key, r.dsn+"|"+r.user+"|"+r.password)
}

// change takes the flags that were given.
func (r *replica) change(s *session) error {
	for name, to := range map[string]*string{"dsn": &r.dsn, "username": &r.user, "password": &r.password} {
		if s.IsSet(name) {
			*to = s.String(name)
		}
	}
	if r.dsn == "" {
		return usageError(s.Context, "slave: it needs --dsn")
	}
	if strings.Contains(r.dsn, "|") || strings.Contains(r.user, "|") {
		return usageError(s.Context, "slave: --dsn and --username may not have a \"|\"")
	}
	return nil
}

func slaveList(s *session, _ []string) error {
	all, err := replicas(s)
	if err != nil {
		return err
	}
	for _, r := range all {
		password := "none"
		if r.password != "" {
			password = "set"
		}
		if err := s.printf("%s\n  DSN:      %s\n  Username: %s\n  Password: %s\n\n", r.key, r.dsn, r.user, password); err != nil {
			return err
		}
	}
	return nil
}

// reserved are the settings that begin like a replica's and are none.
func reserved(key string) bool {
	return slices.Contains([]string{"keys", "version", "dead_retry_timeout", "connect_timeout", "skip_filtering"}, key)
}

func slaveAdd(s *session, args []string) error {
	r := replica{key: args[0]}
	if err := r.change(s); err != nil {
		return err
	}
	if r.key == "" || strings.ContainsAny(r.key, ", ") || reserved(r.key) {
		return usageError(s.Context, "slave add: %q cannot be a key: it has no comma or blank, and is not a setting's name", r.key)
	}
	all, err := replicas(s)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(x replica) bool { return x.key == r.key }) {
		return &failure{err: fmt.Errorf("add slave %q: there is one of that key", r.key), hint: "'mogadm slave modify' changes it", code: exitFailed}
	}
	if err := setReplica(s, r); err != nil {
		return err
	}
	if err := setReplicas(s, append(all, r)); err != nil {
		return err
	}
	return noteReplicas(s)
}

// findReplica is the replica of that key among all.
func findReplica(s *session, key string) (all []replica, i int, err error) {
	if all, err = replicas(s); err != nil {
		return nil, 0, err
	}
	if i = slices.IndexFunc(all, func(x replica) bool { return x.key == key }); i < 0 {
		return nil, 0, &failure{err: fmt.Errorf("slave %q: there is none of that key", key), hint: "'mogadm slave list' shows them", code: exitFailed}
	}
	return all, i, nil
}

func slaveModify(s *session, args []string) error {
	all, i, err := findReplica(s, args[0])
	if err != nil {
		return err
	}
	if !s.IsSet("dsn") && !s.IsSet("username") && !s.IsSet("password") {
		return usageError(s.Context, "slave modify: say what to change")
	}
	if err := all[i].change(s); err != nil {
		return err
	}
	if err := setReplica(s, all[i]); err != nil {
		return err
	}
	return noteReplicas(s)
}

func slaveDelete(s *session, args []string) error {
	all, i, err := findReplica(s, args[0])
	if err != nil {
		return err
	}
	if err := setReplicas(s, slices.Delete(all, i, i+1)); err != nil {
		return err
	}
	return setSetting(s, "slave_"+args[0], "")
}

func noteReplicas(s *session) error {
	return s.out.note("recorded for other trackers: Mogile reads from no replica")
}

// statistics are the parts of mogadm stats, in the order in which they are
// printed.
var statistics = []struct {
	name, usage string
	walk        bool // over all files
	print       func(*session, *fileCounts) error
}{
	{"devices", "status and space of the devices", false, statsDevices},
	{"fids", "the highest file number", false, statsFIDs},
	{"files", "files and bytes of each class (walks over all files)", true, statsFiles},
	{"domains", "files of each domain (walks over all files)", true, statsDomains},
	{"replication", "files by their copies (walks over all files)", true, statsReplication},
	{"general-queues", "requests and work that wait", false, statsQueues("pending_queries", "processing_queries", "bored_queryworkers", "work_queue_for_fsck", "work_queue_for_rebalance")},
	{"replication-queue", "work that waits for replication", false, statsQueues("work_queue_for_replicate")},
	{"delete-queue", "work that waits for deletion", false, statsQueues("work_queue_for_delete")},
}

func statsFlags() []cli.Flag {
	flags := []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "all of these", DisableDefaultText: true}}
	for _, x := range statistics {
		flags = append(flags, &cli.BoolFlag{Name: x.name, Usage: x.usage, DisableDefaultText: true})
	}
	return flags
}

// fileCounts is what a walk over all files counted.
type fileCounts struct {
	classes map[classKey]classCount
	copies  map[copiesKey]int64
}

type classKey struct{ domain, class string }

type classCount struct{ files, bytes, stored int64 }

type copiesKey struct {
	classKey
	devcount int
}

func admStats(s *session, _ []string) error {
	any := false
	for _, x := range statistics {
		any = any || s.Bool(x.name)
	}
	var names []string
	var counts *fileCounts
	wanted := func(name string, walk bool) bool { return s.Bool(name) || s.Bool("all") || !any && !walk }
	walk := false
	for _, x := range statistics {
		if wanted(x.name, x.walk) {
			names = append(names, x.name)
			walk = walk || x.walk
		}
	}
	if err := s.printf("Fetching statistics... (%s)\n", strings.Join(names, ", ")); err != nil {
		return err
	}
	if walk {
		var err error
		if counts, err = countFiles(s); err != nil {
			return err
		}
	}
	for _, x := range statistics {
		if !wanted(x.name, x.walk) {
			continue
		}
		if err := s.printf("\nStatistics for %s...\n", x.name); err != nil {
			return err
		}
		if err := x.print(s, counts); err != nil {
			return err
		}
	}
	return nil
}

// countFiles asks a tracker for all files, page by page.
func countFiles(s *session) (*fileCounts, error) {
	counts := &fileCounts{make(map[classKey]classCount), make(map[copiesKey]int64)}
	progress := s.out.newProgress("files", -1, false)
	defer progress.end()
	for after := protocol.FID(0); ; {
		files, err := s.client.FilesAfter(s.ctx(), after, 500)
		if err != nil || len(files) == 0 {
			return counts, err
		}
		for _, f := range files {
			key := classKey{f.Domain, f.Class}
			c := counts.classes[key]
			c.files, c.bytes, c.stored = c.files+1, c.bytes+f.Length, c.stored+f.Length*int64(f.DevCount)
			counts.classes[key] = c
			counts.copies[copiesKey{key, f.DevCount}]++
			after = f.FID
		}
		progress.set(progress.n + int64(len(files)))
	}
}

func compareClasses(a, b classKey) int {
	return cmp.Or(strings.Compare(a.domain, b.domain), strings.Compare(a.class, b.class))
}

func statsDevices(s *session, _ *fileCounts) error {
	rows, err := devices(s)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  %-10s %-20s %10s %10s %10s\n", "device", "host", "used(G)", "free(G)", "status")
	for _, d := range rows {
		total, used := max(0, d.TotalMB), max(0, d.UsedMB)
		fmt.Fprintf(&b, "  %-10s %-20s %10.3f %10.3f %10s\n", "dev"+d.ID.String(), d.Host, gigabytes(used), gigabytes(total-used), d.Status)
	}
	return s.printf("%s", b.String())
}

// statsFIDs finds the highest fid by asking whether there is one above a
// number, some 64 times.
func statsFIDs(s *session, _ *fileCounts) error {
	above := func(fid int64) (bool, error) {
		files, err := s.client.FilesAfter(s.ctx(), protocol.FID(fid), 1)
		return len(files) > 0, err
	}
	var low, high int64 = 0, 1 // the answer is in [low, high]
	for {
		more, err := above(high)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if low = high + 1; high > 1<<61 {
			return fmt.Errorf("the highest fid: %w: there seem to be files above fid %d", protocol.ErrBadReply, high)
		}
		high *= 2
	}
	for low < high {
		mid := low + (high-low)/2
		more, err := above(mid)
		if err != nil {
			return err
		}
		if more {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return s.printf("  Max file id: %d\n", low)
}

func statsFiles(s *session, counts *fileCounts) error {
	var b strings.Builder
	fmt.Fprintf(&b, "  %-20s %-20s %12s %12s %12s\n", "domain", "class", "files", "size (m)", "fullsize (m)")
	var sum classCount
	line := func(domain, class string, c classCount) {
		fmt.Fprintf(&b, "  %-20s %-20s %12d %12d %12d\n", domain, class, c.files, c.bytes>>20, c.stored>>20)
	}
	for _, key := range slices.SortedFunc(maps.Keys(counts.classes), compareClasses) {
		c := counts.classes[key]
		line(key.domain, key.class, c)
		sum = classCount{sum.files + c.files, sum.bytes + c.bytes, sum.stored + c.stored}
	}
	line("total", "", sum)
	return s.printf("%s", b.String())
}

func statsDomains(s *session, counts *fileCounts) error {
	files := make(map[string]int64)
	for key, c := range counts.classes {
		files[key.domain] += c.files
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  %-20s %12s\n", "domain", "files")
	for _, domain := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&b, "  %-20s %12d\n", domain, files[domain])
	}
	return s.printf("%s", b.String())
}

func statsReplication(s *session, counts *fileCounts) error {
	var b strings.Builder
	fmt.Fprintf(&b, "  %-20s %-20s %8s %12s\n", "domain", "class", "devcount", "files")
	keys := slices.SortedFunc(maps.Keys(counts.copies), func(a, b copiesKey) int {
		return cmp.Or(compareClasses(a.classKey, b.classKey), cmp.Compare(a.devcount, b.devcount))
	})
	for _, key := range keys {
		fmt.Fprintf(&b, "  %-20s %-20s %8d %12d\n", key.domain, key.class, key.devcount, counts.copies[key])
	}
	return s.printf("%s", b.String())
}

// statsQueues sums counters of all trackers.
func statsQueues(names ...string) func(*session, *fileCounts) error {
	return func(s *session, _ *fileCounts) error {
		all, _, err := trackerStats(s)
		if err != nil {
			return err
		}
		var b strings.Builder
		for _, name := range names {
			sum, known := 0.0, false
			for _, one := range all {
				n, ok := one.Counters[name]
				sum, known = sum+n, known || ok
			}
			value := "-" // counters appear when they are first used
			if known {
				value = strconv.FormatFloat(sum, 'f', -1, 64)
			}
			fmt.Fprintf(&b, "  %-26s %10s\n", name, value)
		}
		return s.printf("%s", b.String())
	}
}
