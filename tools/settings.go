package tools

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

func settingsCommand() *cli.Command {
	return group("settings", "settings of the whole cluster", `mogtool settings list --all
mogtool settings set skip_mkcol 1
mogtool settings get skip_mkcol`,
		command("list", "list settings", "", `mogtool settings list
mogtool settings list --all            those that are not set, too`, need{0, 0, false}, []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "those that are not set, too", DisableDefaultText: true},
		}, settingsList),
		command("get", "print a setting", "KEY", `mogtool settings get memcache_ttl`, need{1, 1, false}, nil, settingsGet),
		command("set", "change a setting", "KEY VALUE", `mogtool settings set skip_mkcol 1`, need{2, 2, false}, nil, settingsSet),
		command("unset", "take a setting away, or back to its default", "KEY", `mogtool settings unset fsck_checksum`, need{1, 1, false}, nil, settingsUnset),
	)
}

// knownSetting is what there is to say of a setting.
type knownSetting struct {
	key   string // one that ends in "_" stands for all that begin so
	about string
	fixed bool   // clients may not write it
	idle  string // why setting it changes nothing here; "" where it does
}

const (
	idleMemcached = "Mogile does not ask memcached"
	idleReplicas  = "Mogile reads from no replica"
	idleBatches   = "workers take as many as they can work on"
)

var knownSettings = []knownSetting{
	{key: "skip_devcount", about: "1: the count of copies in the table file is not kept up to date"},
	{key: "skip_mkcol", about: "1: trackers make no directories on storage daemons"},
	{key: "case_sensitive_list_keys", about: "1: list_keys tells capitals from small letters", idle: "keys are always case-sensitive here"},
	{key: "memcache_servers", about: "memcached, HOST:PORT,…", idle: idleMemcached},
	{key: "memcache_ttl", about: "seconds that memcached keeps paths", idle: idleMemcached},
	{key: "path_cache_ttl", about: "seconds that trackers answer get_paths from memory; 0: never"},
	{key: "path_cache_database_away", about: "1: trackers answer from memory while the database is away"},
	{key: "internal_queue_limit", about: "most rows that a tracker takes from a queue at once", idle: idleBatches},
	{key: "network_zones", about: "names of networks, comma-separated"},
	{key: "zone_", about: "the netmasks of a network"},
	{key: "queue_rate_for_fsck", about: "files that fsck begins with in a second, on all trackers together"},
	{key: "queue_size_for_fsck", about: "files that fsck has begun with, or that wait to be checked again, at most (20000)"},
	{key: "queue_rate_for_reaper", about: "files that are taken off a dead device every 5 s"},
	{key: "queue_size_for_reaper", about: "rows of the replication queue at which the reaper waits (10000)"},
	{key: "queue_rate_for_rebal", about: "files that rebalance queues in a second (500)"},
	{key: "queue_size_for_rebal", about: "moves that rebalance and drains queue at most (10000)"},
	{key: "queue_", about: "rates and sizes of queues"},
	{key: "fsck_checksum", about: "checksums that fsck compares: class, off, MD5, SHA-1 or BLAKE3"},
	{key: "scrub_days", about: "days in which all content is read and verified once; 0: never by itself"},
	{key: "scrub_bandwidth", about: "bytes of content a second that fsck and scrub read, on all trackers together; 0: any"},
	{key: "slave_", about: "read replicas of the database (mogadm slave)", idle: idleReplicas},
	{key: "drain_devices", about: "devices that are being emptied ('mogtool drain')", fixed: true},
	{key: "drain_requests", about: "how often a drain was asked for", fixed: true},
	{key: "schema_version", about: "version of the database's tables ('mogile migrate')", fixed: true},
	{key: "rebal_", about: "policy and state of rebalancing ('mogadm rebalance')", fixed: true},
	{key: "fsck_", about: "the books of fsck ('mogtool fsck status')", fixed: true},
	{key: "scrub_", about: "the books of scrub ('mogtool fsck scrub status')", fixed: true},
	{key: "network_reload_interval", about: "seconds that zones are remembered by MogileFS; Mogile reads them anew every 4 s", fixed: true},
}

// knownAs finds what is known of a setting.
func knownAs(key string) (knownSetting, bool) {
	for _, k := range knownSettings {
		if k.key == key || strings.HasSuffix(k.key, "_") && strings.HasPrefix(key, k.key) && key != k.key {
			return k, true
		}
	}
	return knownSetting{}, false
}

// writableSettings are the names that clients may set.
func writableSettings() []string {
	var names []string
	for _, k := range knownSettings {
		if k.fixed {
			continue
		}
		name := k.key
		if strings.HasSuffix(name, "_") {
			name += "…"
		}
		names = append(names, name)
	}
	return names
}

func sortedSettings(s *session) ([]protocol.Setting, error) {
	settings, err := s.client.Settings(s.ctx())
	slices.SortFunc(settings, func(a, b protocol.Setting) int { return strings.Compare(a.Key, b.Key) })
	return settings, err
}

// settingRow is a setting with what is known of it.
type settingRow struct {
	protocol.Setting
	About string `json:"about,omitempty"`
	Idle  string `json:"without_effect,omitempty"`
	Unset bool   `json:"unset,omitempty"`
}

func settingsList(s *session, _ []string) error {
	settings, err := sortedSettings(s)
	if err != nil {
		return err
	}
	if !s.Bool("all") {
		return list(s.out, settings, []string{"key", "value"}, func(x protocol.Setting) []string { return []string{x.Key, x.Value} })
	}
	set := len(settings)
	for _, k := range knownSettings {
		if !strings.HasSuffix(k.key, "_") && !slices.ContainsFunc(settings, func(x protocol.Setting) bool { return x.Key == k.key }) {
			settings = append(settings, protocol.Setting{Key: k.key})
		}
	}
	rows := make([]settingRow, len(settings))
	for i, x := range settings {
		rows[i].Setting, rows[i].Unset = x, i >= set
		if k, ok := knownAs(x.Key); ok {
			rows[i].About, rows[i].Idle = k.about, k.idle
		}
	}
	return list(s.out, rows, []string{"key", "value", "?is"}, func(r settingRow) []string {
		is := r.About
		if r.Idle != "" {
			is += " (" + r.Idle + ")"
		}
		return []string{r.Key, r.Value, is}
	})
}

func settingsGet(s *session, args []string) error {
	reply, err := s.client.Do(s.ctx(), "server_setting", protocol.Args{{Name: "key", Value: args[0]}})
	if err != nil {
		return fmt.Errorf("get %s: %w", args[0], err)
	}
	value := reply.Get("value")
	if value == "" {
		hint := "'mogtool settings list' shows those that are set"
		if k, ok := knownAs(args[0]); ok {
			hint = "it would be: " + k.about
		}
		return &failure{err: fmt.Errorf("setting %q is not set", args[0]), hint: hint, code: exitFailed}
	}
	if s.out.json {
		return s.out.object(protocol.Setting{Key: args[0], Value: value})
	}
	return s.out.line(value)
}

func settingsSet(s *session, args []string) error {
	if err := setSetting(s, args[0], args[1]); err != nil {
		return err
	}
	if k, ok := knownAs(args[0]); ok && k.idle != "" {
		return s.out.note("%s is stored, without effect: %s", args[0], k.idle)
	}
	return nil
}

// settingsUnset leaves the value out: trackers then delete the setting, or
// store its default.
func settingsUnset(s *session, args []string) error {
	q := protocol.Args{{Name: "key", Value: args[0]}}
	if args[0] == "fsck_checksum" {
		q.Add("value", "class")
	}
	return writeSetting(s, "unset", q)
}

func setSetting(s *session, key, value string) error {
	return writeSetting(s, "set", protocol.Args{{Name: "key", Value: key}, {Name: "value", Value: value}})
}

func writeSetting(s *session, verb string, q protocol.Args) error {
	key := q.Get("key")
	err := do(s, "set_server_setting", q, "%s %s", verb, key)
	if !errors.Is(err, protocol.Err("not_writable")) {
		return err
	}
	hint := "'settings set' takes " + strings.Join(writableSettings(), ", ")
	if k, ok := knownAs(key); ok {
		hint = "that is " + k.about + "; " + hint
	}
	return &failure{err: err, hint: hint, code: exitFailed}
}
