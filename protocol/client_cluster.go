package protocol

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"
)

// Host is a storage host as trackers list it.
type Host struct {
	ID      int64  `json:"hostid"`
	Name    string `json:"host"`
	Status  string `json:"status"` // alive, down, dead or readonly
	IP      string `json:"ip"`
	Port    int    `json:"port"`    // of HTTP
	GetPort int    `json:"getport"` // 0 is Port
	AltIP   string `json:"altip"`
	AltMask string `json:"altmask"`
}

// Device is a device as trackers list it.
type Device struct {
	ID          DevID  `json:"devid"`
	HostID      int64  `json:"hostid"`
	Status      string `json:"status"`         // alive, readonly, drain, down or dead
	Observed    string `json:"observed_state"` // writeable, readable, unreachable, or "" where not yet seen
	Weight      int64  `json:"weight"`
	TotalMB     int64  `json:"mb_total"`    // -1 unknown
	UsedMB      int64  `json:"mb_used"`     // -1 unknown
	Utilization string `json:"utilization"` // percent busy; "-" or "" unknown
	// RejectsBadMD5 is whether uploads with a wrong Content-MD5 are refused:
	// "1", "0", or "" where not yet seen.
	RejectsBadMD5 string `json:"reject_bad_md5"`
}

// Domain is a domain with its classes.
type Domain struct {
	Name    string  `json:"domain"`
	Classes []Class `json:"classes"`
}

// Class is a class as trackers list it.
type Class struct {
	Name        string `json:"class"`
	MinDevCount int    `json:"mindevcount"`
	ReplPolicy  string `json:"replpolicy"`
	HashType    string `json:"hashtype"` // MD5, SHA-1, NONE
}

// Setting is one server setting.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Hosts lists the cluster's hosts.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	reply, err := c.Do(ctx, "get_hosts", nil)
	if err != nil {
		return nil, fmt.Errorf("list hosts: %w", err)
	}
	return ParseHosts(reply)
}

// ParseHosts reads the reply to get_hosts.
func ParseHosts(reply Args) ([]Host, error) {
	f, n, err := records(reply, "hosts", "host")
	if err != nil {
		return nil, fmt.Errorf("list hosts: %w", err)
	}
	hosts := make([]Host, n)
	for i := range hosts {
		get := f.record("host", i+1)
		hosts[i] = Host{
			ID:      Number(get("_hostid")),
			Name:    get("_hostname"),
			Status:  get("_status"),
			IP:      get("_hostip"),
			Port:    int(Number(get("_http_port"))),
			GetPort: int(Number(get("_http_get_port"))),
			AltIP:   get("_altip"),
			AltMask: get("_altmask"),
		}
	}
	return hosts, nil
}

// Devices lists the cluster's devices.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	reply, err := c.Do(ctx, "get_devices", nil)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return ParseDevices(reply)
}

// ParseDevices reads the reply to get_devices.
func ParseDevices(reply Args) ([]Device, error) {
	f, n, err := records(reply, "devices", "dev")
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	devs := make([]Device, n)
	for i := range devs {
		get := f.record("dev", i+1)
		devs[i] = Device{
			ID:            DevID(Number(get("_devid"))),
			HostID:        Number(get("_hostid")),
			Status:        get("_status"),
			Observed:      get("_observed_state"),
			Weight:        Number(get("_weight")),
			TotalMB:       numberOr(get("_mb_total"), -1),
			UsedMB:        numberOr(get("_mb_used"), -1),
			Utilization:   get("_utilization"),
			RejectsBadMD5: get("_reject_bad_md5"),
		}
	}
	return devs, nil
}

// Domains lists the domains with their classes.
func (c *Client) Domains(ctx context.Context) ([]Domain, error) {
	reply, err := c.Do(ctx, "get_domains", nil)
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	return ParseDomains(reply)
}

// ParseDomains reads the reply to get_domains.
func ParseDomains(reply Args) ([]Domain, error) {
	f, n, err := records(reply, "domains", "domain")
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	domains := make([]Domain, n)
	for i := range domains {
		domains[i].Name = f.record("domain", i+1)("")
		classes := Number(f.record("domain", i+1)("classes"))
		if classes < 0 || classes > int64(len(reply)) {
			return nil, fmt.Errorf("list domains: reply has %d classes and %d fields: %w", classes, len(reply), ErrBadReply)
		}
		for j := range int(classes) {
			get := f.record("domain"+strconv.Itoa(i+1)+"class", j+1)
			if get("name") == "" {
				return nil, fmt.Errorf("list domains: class %d of domain %q has no name: %w", j+1, domains[i].Name, ErrBadReply)
			}
			domains[i].Classes = append(domains[i].Classes, Class{
				Name:        get("name"),
				MinDevCount: int(Number(get("mindevcount"))),
				ReplPolicy:  get("replpolicy"),
				HashType:    get("hashtype"),
			})
		}
	}
	return domains, nil
}

// Settings lists the server settings that trackers show.
func (c *Client) Settings(ctx context.Context) ([]Setting, error) {
	reply, err := c.Do(ctx, "server_settings", nil)
	if err != nil {
		return nil, fmt.Errorf("list settings: %w", err)
	}
	return ParseSettings(reply)
}

// ParseSettings reads the answer to server_settings.
func ParseSettings(reply Args) ([]Setting, error) {
	f, n, err := records(reply, "key_count", "key_")
	if err != nil {
		return nil, fmt.Errorf("list settings: %w", err)
	}
	settings := make([]Setting, n)
	for i := range settings {
		settings[i] = Setting{f.record("key_", i+1)(""), f.record("value_", i+1)("")}
	}
	return settings, nil
}

// fields are a reply's fields by name.
type fields map[string]string

// records checks that the number in the field count is possible, and that the
// last record is there.
func records(reply Args, count, prefix string) (fields, int, error) {
	n := reply.Number(count)
	f := make(fields, len(reply))
	for _, a := range reply {
		f[a.Name] = a.Value
	}
	last := prefix + strconv.FormatInt(n, 10)
	missing := n > 0
	for _, a := range reply {
		if strings.HasPrefix(a.Name, last) {
			missing = false
			break
		}
	}
	if n < 0 || n > int64(len(reply)) || missing {
		return nil, 0, fmt.Errorf("reply has %s=%d and %d fields: %w", count, n, len(reply), ErrBadReply)
	}
	return f, int(n), nil
}

// record reads fields of one record: f.record("host", 3)("_status") is
// host3_status.
func (f fields) record(prefix string, n int) func(name string) string {
	prefix += strconv.Itoa(n)
	return func(name string) string { return f[prefix+name] }
}

func numberOr(s string, missing int64) int64 {
	if s == "" {
		return missing
	}
	return Number(s)
}

// maxConsole bounds the lines of one answer of the console.
const maxConsole = 1 << 20

// Console sends a command of the administration port, such as "!stats", to one
// of the client's trackers and yields the lines of the answer, without the "."
// that ends it. After "!watch" it goes on until ctx is cancelled; nothing at all
// after "!shutdown" is not an error.
//
// The connection is the call's own.
func (c *Client) Console(ctx context.Context, tracker, command string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		fail := func(err error) {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			yield("", fmt.Errorf("tracker %s: %s: %w", tracker, command, err))
		}
		name, _, _ := strings.Cut(command, " ")
		if !strings.HasPrefix(command, "!") || strings.ContainsAny(command, "\r\n") {
			fail(errors.New("not a console command such as !stats"))
			return
		}
		if _, err := c.tracker(tracker); err != nil {
			fail(err)
			return
		}
		k, err := c.dial(ctx, tracker)
		if err != nil {
			fail(err)
			return
		}
		defer k.Close()
		stop := context.AfterFunc(ctx, func() { _ = k.Close() })
		defer stop()
		if err = k.SetDeadline(time.Now().Add(c.o.Timeout)); err == nil {
			_, err = k.Write([]byte(command + "\r\n"))
		}
		if err != nil {
			fail(err)
			return
		}
		for n := 0; ; n++ {
			line, err := readLine(k.r, MaxLine)
			switch {
			case err != nil && n == 0 && name == "!shutdown" && errors.Is(err, errHungUp):
				return
			case err != nil:
				fail(err)
				return
			case line == "." && name != "!watch":
				return
			case line == ".":
				if err := k.SetDeadline(time.Time{}); err != nil {
					fail(err)
					return
				}
				continue
			case n == maxConsole && name != "!watch":
				fail(fmt.Errorf("%w: it does not end", ErrBadReply))
				return
			}
			if !yield(line, nil) {
				return
			}
		}
	}
}
