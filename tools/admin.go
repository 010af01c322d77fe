package tools

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

// The states of hosts and devices that an operator sets.
var (
	hostStatuses   = []string{"alive", "readonly", "down", "dead"}
	deviceStatuses = []string{"alive", "readonly", "drain", "down", "dead"}
)

func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "ip", Usage: "`ADDRESS` of the host"},
		&cli.StringFlag{Name: "port", Usage: "`PORT` of HTTP"},
		&cli.StringFlag{Name: "getport", Usage: "`PORT` of HTTP for reading, where another"},
		&cli.StringFlag{Name: "altip", Usage: "`ADDRESS` for clients in --altmask"},
		&cli.StringFlag{Name: "altmask", Usage: "`NETWORK` of the clients that get --altip"},
		&cli.StringFlag{Name: "status", Usage: "`STATUS`: " + orList(hostStatuses)},
	}
}

func classFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "mindevcount", Usage: "`N` copies of each file"},
		&cli.StringFlag{Name: "replpolicy", Usage: "`POLICY` of replication, such as 'MultipleHosts(3)'"},
		&cli.StringFlag{Name: "hashtype", Usage: "`TYPE` of checksums kept: MD5, SHA-1, BLAKE3 or NONE"},
	}
}

// orList is "a, b or c".
func orList(names []string) string {
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// adminCommands have the verbs of MogileFS's mogadm.
func adminCommands() []*cli.Command {
	return []*cli.Command{
		group("host", "storage hosts", `mogtool host add store1 --ip 10.0.0.1 --port 7500 --status alive
mogtool host mark store1 down
mogtool host list`,
			command("list", "list hosts", "", `mogtool host list`, need{0, 0, false}, nil, hostList),
			command("add", "register a host", "HOST", `mogtool host add store1 --ip 10.0.0.1 --port 7500 --status alive`, need{1, 1, false}, hostFlags(), hostAdd),
			command("mark", "set a host's status", "HOST STATUS", `mogtool host mark store1 alive      also down, dead, readonly`, need{2, 2, false}, nil, hostMark),
			command("modify", "change a host", "HOST", `mogtool host modify store1 --ip 10.0.0.9`, need{1, 1, false}, hostFlags(), hostModify),
			command("delete", "forget a host that has no devices", "HOST", `mogtool host delete store1`, need{1, 1, false}, nil, hostDelete),
		),
		group("device", "disks of storage hosts", `mogtool device add store1 7
mogtool device mark store1 7 drain
mogtool device list --all`,
			command("list", "list devices", "[HOST…]", `mogtool device list                  all but dead ones
mogtool device list --all store1`, need{0, -1, false}, []cli.Flag{
				&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "dead ones too", DisableDefaultText: true},
			}, deviceList),
			command("add", "register a device", "HOST DEVID", `mogtool device add store1 7          it is the folder dev7 there`, need{2, 2, false}, []cli.Flag{
				&cli.StringFlag{Name: "status", Usage: "`STATUS`: alive, down, dead, readonly or drain", Value: "alive"},
			}, deviceAdd),
			command("mark", "set a device's status", "HOST DEVID STATUS", `mogtool device mark store1 7 readonly  no new files
mogtool device mark store1 7 drain     no new files, to be emptied
mogtool device mark store1 7 down      not to be used for now
mogtool device mark store1 7 dead      lost for good: its copies no longer count`, need{3, 3, false}, nil, deviceMark),
			command("modify", "change a device", "HOST DEVID", `mogtool device modify store1 7 --weight 50`, need{2, 2, false}, []cli.Flag{
				&cli.StringFlag{Name: "status", Usage: "`STATUS`: alive, down, dead, readonly or drain"},
				&cli.IntFlag{Name: "weight", Usage: "`N`; how much it is read from, others having 100"},
			}, deviceModify),
			command("delete", "explain how a device goes", "HOST DEVID", `mogtool device mark store1 7 dead      is what there is`, need{0, -1, false}, nil, deviceDelete),
		),
		group("domain", "namespaces of keys", `mogtool domain add photos
mogtool domain list`,
			command("list", "list domains", "", `mogtool domain list`, need{0, 0, false}, nil, domainList),
			command("add", "make a domain", "DOMAIN", `mogtool domain add photos`, need{1, 1, false}, nil, domainDo("create_domain")),
			command("delete", "delete a domain without files and classes", "DOMAIN", `mogtool domain delete photos`, need{1, 1, false}, nil, domainDo("delete_domain")),
		),
		group("class", "rules for the files of a domain", `mogtool class add photos thumbs --mindevcount 2
mogtool class list photos`,
			command("list", "list classes", "[DOMAIN…]", `mogtool class list photos`, need{0, -1, false}, nil, classList),
			command("add", "make a class", "DOMAIN CLASS", `mogtool class add photos thumbs --mindevcount 2
mogtool class add photos originals --mindevcount 3 --replpolicy 'MultipleHosts(3)' --hashtype MD5
mogtool class add photos archive --replpolicy 'ErasureCode(6,3)'`, need{2, 2, false}, classFlags(), classAdd),
			command("modify", "change a class", "DOMAIN CLASS", `mogtool class modify photos thumbs --mindevcount 3`, need{2, 2, false}, classFlags(), classModify),
			command("delete", "delete a class without files", "DOMAIN CLASS", `mogtool class delete photos thumbs`, need{2, 2, false}, nil, classDelete),
		),
		settingsCommand(),
	}
}

func hostList(s *session, _ []string) error {
	hosts, err := sortedHosts(s)
	if err != nil {
		return err
	}
	return list(s.out, hosts, []string{">hostid", "host", "status", "ip", ">port", ">?getport", "?altip", "?altmask"}, func(h protocol.Host) []string {
		getPort := ""
		if h.GetPort != 0 {
			getPort = strconv.Itoa(h.GetPort)
		}
		return []string{strconv.FormatInt(h.ID, 10), h.Name, h.Status, h.IP, strconv.Itoa(h.Port), getPort, h.AltIP, h.AltMask}
	})
}

func sortedHosts(s *session) ([]protocol.Host, error) {
	hosts, err := s.client.Hosts(s.ctx())
	slices.SortFunc(hosts, func(a, b protocol.Host) int { return cmp.Compare(a.ID, b.ID) })
	return hosts, err
}

// hostArgs are the flags that were given, if they can be.
func hostArgs(s *session, host string) (protocol.Args, error) {
	args := protocol.Args{{Name: "host", Value: host}}
	for _, name := range []string{"ip", "port", "getport", "altip", "altmask", "status"} {
		if !s.IsSet(name) {
			continue
		}
		value := strings.TrimSpace(s.String(name))
		if err := checkHostArg(name, value); err != nil {
			return nil, usageError(s.Context, "invalid --%s %q: %w", name, value, err)
		}
		args.Add(name, value)
	}
	return args, nil
}

// checkHostArg says what is wrong with a flag of "host add" or "host modify".
// getport, altip and altmask may be empty, which takes them away.
func checkHostArg(name, value string) error {
	switch name {
	case "ip", "altip":
		if value == "" && name == "altip" {
			return nil
		}
		a, err := netip.ParseAddr(value)
		if err != nil || a.Zone() != "" {
			return errors.New("it is no address such as 10.0.0.1; names are not looked up")
		}
		if a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return errors.New("nobody can be reached there; give the address that clients and trackers connect to")
		}
	case "port", "getport":
		if value == "" && name == "getport" {
			return nil
		}
		if n, err := strconv.ParseUint(value, 10, 16); err != nil || n == 0 {
			return errors.New("a port is a number from 1 to 65535")
		}
	case "altmask":
		if value == "" {
			return nil
		}
		if _, err := netip.ParsePrefix(value); err != nil {
			if a, err := netip.ParseAddr(value); err != nil || a.Zone() != "" {
				return errors.New("it is no network such as 10.0.0.0/8, and no address")
			}
		}
	case "status":
		if !slices.Contains(hostStatuses, value) {
			return errors.New("a host is " + orList(hostStatuses))
		}
	}
	return nil
}

func hostAdd(s *session, args []string) error {
	if s.String("ip") == "" || s.String("port") == "" {
		return usageError(s.Context, "host add: it needs --ip and --port")
	}
	q, err := hostArgs(s, args[0])
	if err != nil {
		return err
	}
	return do(s, "create_host", q, "add host %q", args[0])
}

func hostModify(s *session, args []string) error {
	q, err := hostArgs(s, args[0])
	if err != nil {
		return err
	}
	if len(q) == 1 {
		return usageError(s.Context, "host modify: say what to change")
	}
	return do(s, "update_host", q, "modify host %q", args[0])
}

func hostMark(s *session, args []string) error {
	if !slices.Contains(hostStatuses, args[1]) {
		return usageError(s.Context, "host mark: a host is never %q; it is %s", args[1], orList(hostStatuses))
	}
	return do(s, "update_host", protocol.Args{{Name: "host", Value: args[0]}, {Name: "status", Value: args[1]}}, "mark host %q %s", args[0], args[1])
}

func hostDelete(s *session, args []string) error {
	return do(s, "delete_host", protocol.Args{{Name: "host", Value: args[0]}}, "delete host %q", args[0])
}

// do executes a command that changes the cluster.
func do(s *session, command string, args protocol.Args, format string, operands ...any) error {
	reply, err := s.client.Do(s.ctx(), command, args)
	if err != nil {
		return fmt.Errorf(format+": %w", append(operands, err)...)
	}
	return s.out.done(reply)
}

// deviceRow is a device with its host's name.
type deviceRow struct {
	protocol.Device
	Host string `json:"host"`
}

func devices(s *session) ([]deviceRow, error) {
	hosts, err := s.client.Hosts(s.ctx())
	if err != nil {
		return nil, err
	}
	devs, err := s.client.Devices(s.ctx())
	if err != nil {
		return nil, err
	}
	return deviceRows(hosts, devs), nil
}

// deviceRows joins devices with their hosts, ordered by host and number.
func deviceRows(hosts []protocol.Host, devs []protocol.Device) []deviceRow {
	rows := make([]deviceRow, len(devs))
	for i, d := range devs {
		rows[i].Device = d
		for _, h := range hosts {
			if h.ID == d.HostID {
				rows[i].Host = h.Name
			}
		}
	}
	slices.SortFunc(rows, func(a, b deviceRow) int {
		return cmp.Or(cmp.Compare(a.HostID, b.HostID), cmp.Compare(a.ID, b.ID))
	})
	return rows
}

func deviceList(s *session, args []string) error {
	rows, err := devices(s)
	if err != nil {
		return err
	}
	for _, host := range args {
		if !slices.ContainsFunc(rows, func(d deviceRow) bool { return d.Host == host }) {
			return fmt.Errorf("list devices: host %q has none, or is not known", host)
		}
	}
	rows = slices.DeleteFunc(rows, func(d deviceRow) bool {
		return d.Status == "dead" && !s.Bool("all") || len(args) > 0 && !slices.Contains(args, d.Host)
	})
	return list(s.out, rows, []string{"host", ">device", "status", "seen as", ">size", ">?used", ">free", ">use%", ">?io%", ">?weight"}, func(d deviceRow) []string {
		return append(append([]string{d.Host, "dev" + d.ID.String(), d.Status, d.Observed}, usage(d.TotalMB, d.UsedMB)...),
			d.Utilization, strconv.FormatInt(d.Weight, 10))
	})
}

// usage is size, used, free and percentage of a device.
func usage(totalMB, usedMB int64) []string {
	if totalMB <= 0 || usedMB < 0 {
		return []string{"", "", "", ""}
	}
	return []string{size(totalMB << 20), size(usedMB << 20), size(max(0, totalMB-usedMB) << 20), strconv.FormatInt(100*usedMB/totalMB, 10) + "%"}
}

func devID(s *session, arg string) (string, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(arg, "dev"), 10, 32)
	if err != nil || n == 0 {
		return "", usageError(s.Context, "%q is not a device number such as 7", arg)
	}
	return strconv.FormatUint(n, 10), nil
}

func deviceAdd(s *session, args []string) error {
	id, err := devID(s, args[1])
	if err != nil {
		return err
	}
	if err := deviceStatus(s, s.String("status")); err != nil {
		return err
	}
	return do(s, "create_device", protocol.Args{{Name: "hostname", Value: args[0]}, {Name: "devid", Value: id}, {Name: "state", Value: s.String("status")}},
		"add dev%s of host %q", id, args[0])
}

func deviceMark(s *session, args []string) error {
	id, err := devID(s, args[1])
	if err != nil {
		return err
	}
	if err := deviceStatus(s, args[2]); err != nil {
		return err
	}
	return mark(s, args[0], id, args[2])
}

func deviceStatus(s *session, status string) error {
	if !slices.Contains(deviceStatuses, status) {
		return usageError(s.Context, "a device is never %q; it is %s", status, orList(deviceStatuses))
	}
	return nil
}

func mark(s *session, host, id, status string) error {
	return do(s, "set_state", protocol.Args{{Name: "host", Value: host}, {Name: "device", Value: id}, {Name: "state", Value: status}},
		"mark dev%s of host %q %s", id, host, status)
}

func deviceModify(s *session, args []string) error {
	id, err := devID(s, args[1])
	if err != nil {
		return err
	}
	if !s.IsSet("status") && !s.IsSet("weight") {
		return usageError(s.Context, "device modify: say what to change")
	}
	if s.IsSet("weight") && s.Int("weight") < 0 {
		return usageError(s.Context, "device modify: --weight is 0 or more")
	}
	if s.IsSet("status") {
		if err := deviceStatus(s, s.String("status")); err != nil {
			return err
		}
		if err := mark(s, args[0], id, s.String("status")); err != nil {
			return err
		}
	}
	if s.IsSet("weight") {
		return do(s, "set_weight", protocol.Args{{Name: "host", Value: args[0]}, {Name: "device", Value: id}, {Name: "weight", Value: strconv.Itoa(s.Int("weight"))}},
			"set the weight of dev%s of host %q", id, args[0])
	}
	return nil
}

func deviceDelete(*session, []string) error {
	return &failure{
		err:  errors.New("devices are never deleted, so that their numbers are not used twice"),
		hint: "mark it dead: 'mogtool device mark HOST DEVID dead'",
		code: exitFailed,
	}
}

func domainList(s *session, _ []string) error {
	domains, err := s.client.Domains(s.ctx())
	if err != nil {
		return err
	}
	slices.SortFunc(domains, func(a, b protocol.Domain) int { return strings.Compare(a.Name, b.Name) })
	return list(s.out, domains, []string{"domain", "classes"}, func(d protocol.Domain) []string {
		var names []string
		for _, c := range d.Classes {
			names = append(names, c.Name)
		}
		slices.Sort(names)
		return []string{d.Name, strings.Join(names, " ")}
	})
}

func domainDo(command string) func(*session, []string) error {
	verb, _, _ := strings.Cut(command, "_")
	return func(s *session, args []string) error {
		return do(s, command, protocol.Args{{Name: "domain", Value: args[0]}}, "%s domain %q", verb, args[0])
	}
}

// classRow is a class with its domain's name.
type classRow struct {
	Domain string `json:"domain"`
	protocol.Class
}

func classList(s *session, args []string) error {
	rows, err := classRows(s, args)
	if err != nil {
		return err
	}
	return list(s.out, rows, []string{"domain", "class", ">mindevcount", "replpolicy", "hashtype"}, func(c classRow) []string {
		return []string{c.Domain, c.Name, strconv.Itoa(c.MinDevCount), c.ReplPolicy, c.HashType}
	})
}

// classRows are the classes of the domains named, or of all, by name.
func classRows(s *session, args []string) ([]classRow, error) {
	domains, err := s.client.Domains(s.ctx())
	if err != nil {
		return nil, err
	}
	var rows []classRow
	for _, d := range domains {
		if len(args) > 0 && !slices.Contains(args, d.Name) {
			continue
		}
		for _, c := range d.Classes {
			rows = append(rows, classRow{d.Name, c})
		}
	}
	for _, name := range args {
		if !slices.ContainsFunc(domains, func(d protocol.Domain) bool { return d.Name == name }) {
			return nil, fmt.Errorf("list classes of domain %q: %w", name, protocol.ErrDomainNotFound)
		}
	}
	slices.SortFunc(rows, func(a, b classRow) int {
		return cmp.Or(strings.Compare(a.Domain, b.Domain), strings.Compare(a.Name, b.Name))
	})
	return rows, nil
}

// classArgs are the flags that were given, if they can be. Policies are the
// tracker's to judge.
func classArgs(s *session, args []string) (protocol.Args, error) {
	if s.IsSet("mindevcount") && (s.Int("mindevcount") < 1 || s.Int("mindevcount") > maxMinDevCount) {
		return nil, usageError(s.Context, "invalid --mindevcount %d: it is from 1 to %d", s.Int("mindevcount"), maxMinDevCount)
	}
	if h := s.String("hashtype"); s.IsSet("hashtype") && h != "NONE" {
		if _, ok := protocol.ParseHashType(h); !ok {
			return nil, usageError(s.Context, "invalid --hashtype %q: it is MD5, SHA-1, BLAKE3 or NONE", h)
		}
	}
	q := protocol.Args{{Name: "domain", Value: args[0]}, {Name: "class", Value: args[1]}}
	if s.IsSet("mindevcount") {
		q.AddInt("mindevcount", int64(s.Int("mindevcount")))
	} else if policy, coded := classCode(s); coded {
		q.AddInt("mindevcount", int64(policy.M)+1)
	}
	for _, name := range []string{"replpolicy", "hashtype"} {
		if s.IsSet(name) {
			q.Add(name, s.String(name))
		}
	}
	return q, nil
}

// maxMinDevCount is what the column class.mindevcount holds.
const maxMinDevCount = math.MaxInt16

func classAdd(s *session, args []string) error {
	if !s.IsSet("mindevcount") {
		if _, err := protocol.ParsePolicy(s.String("replpolicy")); err != nil {
			return fmt.Errorf("add class %q to domain %q: %w", args[1], args[0], err)
		}
		if _, coded := classCode(s); !coded {
			return usageError(s.Context, "class add: it needs --mindevcount")
		}
	}
	q, err := classArgs(s, args)
	if err != nil {
		return err
	}
	if err := do(s, "create_class", q, "add class %q to domain %q", args[1], args[0]); err != nil {
		return err
	}
	return warnOfHosts(s, args)
}

// classCode is the policy ErasureCode where that is what --replpolicy gives. Such
// classes need no mindevcount: it is one more than there are parity shards.
func classCode(s *session) (protocol.PolicyCall, bool) {
	policy, err := protocol.ParsePolicy(s.String("replpolicy"))
	return policy, err == nil && policy.Name == protocol.PolicyErasureCode
}

// warnOfHosts says what the cluster lacks for shards of the class just written.
// That it cannot be found out is no failure: the class is there.
func warnOfHosts(s *session, args []string) error {
	policy, coded := classCode(s)
	if !coded {
		return nil
	}
	const notKnown = "class %s: not known whether its shards can be spread well: %v"
	hosts, err := s.client.Hosts(s.ctx())
	if err != nil {
		return s.out.note(notKnown, args[1], err)
	}
	devices, err := s.client.Devices(s.ctx())
	if err != nil {
		return s.out.note(notKnown, args[1], err)
	}
	var l layout
	for _, d := range devices {
		for _, h := range hosts {
			if h.ID == d.HostID {
				l.takesShards(h, d)
			}
		}
	}
	for _, p := range l.lacksForShards(policy) {
		if err := s.out.note("class %s of domain %s wants %s", args[1], args[0], p.What); err != nil {
			return err
		}
	}
	return nil
}

func classModify(s *session, args []string) error {
	q, err := classArgs(s, args)
	if err != nil {
		return err
	}
	if len(q) == 2 {
		return usageError(s.Context, "class modify: say what to change")
	}
	if _, coded := classCode(s); !coded && !s.IsSet("mindevcount") { // trackers insist on it
		domains, err := s.client.Domains(s.ctx())
		if err != nil {
			return err
		}
		for _, d := range domains {
			for _, c := range d.Classes {
				if d.Name == args[0] && c.Name == args[1] {
					q.AddInt("mindevcount", int64(c.MinDevCount))
				}
			}
		}
	}
	if err := do(s, "update_class", q, "modify class %q of domain %q", args[1], args[0]); err != nil {
		return err
	}
	return warnOfHosts(s, args)
}

func classDelete(s *session, args []string) error {
	return do(s, "delete_class", protocol.Args{{Name: "domain", Value: args[0]}, {Name: "class", Value: args[1]}}, "delete class %q of domain %q", args[1], args[0])
}
