package tracker

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/fsck"
)

// settingRule reads the value that a client gives a setting: nil deletes the
// setting. Errors are refusals.
type settingRule func(value string, given bool) (*string, error)

// ruleOf finds the rule of a setting, nil for one that clients may not write.
// Names and formats are MogileFS 2.73's, but for those of the path cache and of
// scrub.
func ruleOf(key string) settingRule {
	switch key {
	case "skip_devcount", "skip_mkcol", "case_sensitive_list_keys", settingDatabaseAway:
		return flag
	case "memcache_ttl", "internal_queue_limit":
		return number
	case schema.SettingPathCacheTTL:
		return pathCacheTTL
	case "memcache_servers", protocol.SettingZones:
		return anyText
	case fsck.SettingChecksum:
		return checksumMode
	case fsck.SettingScrubDays:
		return scrubDays
	case fsck.SettingBandwidth:
		return number
	}
	switch {
	case strings.HasPrefix(key, "slave_"):
		return textOrNothing
	case strings.HasPrefix(key, protocol.SettingZonePrefix):
		return netmasks
	case strings.HasPrefix(key, "queue_"):
		return anyText
	}
	return nil
}

func badFormat(format string, args ...any) *protocol.Error {
	return &protocol.Error{Code: "invalid_format", Text: fmt.Sprintf(format, args...)}
}

func anyText(v string, given bool) (*string, error) {
	if !given {
		return nil, nil
	}
	return &v, nil
}

func textOrNothing(v string, _ bool) (*string, error) {
	if v == "" {
		return nil, nil
	}
	return &v, nil
}

func flag(v string, _ bool) (*string, error) {
	begins := func(p string) bool { return len(v) >= len(p) && strings.EqualFold(v[:len(p)], p) }
	no, yes := "0", "1"
	switch {
	case v == "", begins("0"), begins("f"), begins("off"), begins("n"):
		return &no, nil
	case begins("1"), begins("t"), begins("on"), begins("y"):
		return &yes, nil
	}
	return nil, badFormat("Unknown format")
}

func number(v string, _ bool) (*string, error) {
	if v == "" {
		v = "0"
	}
	if strings.Trim(v, "0123456789") != "" {
		return nil, badFormat("Must be numeric")
	}
	return &v, nil
}

func pathCacheTTL(v string, given bool) (*string, error) {
	digits, err := number(v, given)
	if err != nil {
		return nil, err
	}
	most := int64(schema.MaxPathCacheTTL / time.Second)
	n, err := strconv.ParseInt(*digits, 10, 64)
	if err != nil || n > most {
		return nil, badFormat("Must be at most %d seconds", most)
	}
	plain := strconv.FormatInt(n, 10)
	return &plain, nil
}

func netmasks(v string, given bool) (*string, error) {
	if !given {
		return nil, nil
	}
	for _, mask := range strings.FieldsFunc(v, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }) {
		if _, ok := protocol.ParseNetmask(mask); !ok {
			return nil, badFormat("Must be netmasks such as 10.0.0.0/8, separated by commas or blanks: %.60q is none", mask)
		}
	}
	return &v, nil
}

func checksumMode(v string, _ bool) (*string, error) {
	if v == "class" {
		return nil, nil
	}
	if _, ok := protocol.ParseHashType(v); !ok && v != "off" {
		return nil, badFormat("Not a valid checksum algorithm")
	}
	return &v, nil
}

func scrubDays(v string, _ bool) (*string, error) {
	if v == "" {
		return nil, nil
	}
	days, err := strconv.ParseFloat(v, 64)
	if err != nil || strings.Trim(v, "0123456789.") != "" {
		return nil, badFormat("Must be numeric")
	}
	if days > fsck.MaxScrubDays {
		return nil, badFormat("Must be at most %d days", fsck.MaxScrubDays)
	}
	return &v, nil
}

// sealed reports whether MogileFS's trackers keep away from the database, which
// would misread some of what ours can do.
func (q *query) sealed() bool {
	return protocol.Number(q.at.Settings["schema_version"]) >= schema.VersionSealed
}

// setServerSetting writes or deletes a setting.
func (t *Tracker) setServerSetting(ctx context.Context, q *query) error {
	key := q.Get("key")
	if key == "" {
		return protocol.Err("bad_params")
	}
	rule := ruleOf(key)
	if rule == nil {
		return protocol.Err("not_writable")
	}
	if err := fits("The setting's name", key, maxSetting); err != nil {
		return err
	}
	given, isGiven := q.Lookup("value")
	if !utf8.ValidString(given) || strings.IndexByte(given, 0) >= 0 {
		return badFormat("Must be valid UTF-8 without NUL")
	}
	value, err := rule(given, isGiven)
	if err != nil {
		return err
	}
	if strings.HasPrefix(key, protocol.SettingZonePrefix) && strings.Contains(given, "::") && !q.sealed() {
		return badFormat("IPv6 netmasks need a sealed schema: see mogile migrate --seal")
	}
	if err := t.store.SetSetting(ctx, key, value); err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	if strings.HasPrefix(key, "slave_") {
		if err := t.store.IncrementSetting(ctx, "slave_version"); err != nil {
			return fmt.Errorf("increment slave_version: %w", err)
		}
	}
	if strings.HasPrefix(key, "memcache_") {
		t.log.Warn().Str("setting", key).Msg("memcached is not used: the setting is stored for other trackers only")
	}
	t.namespaceChanged(ctx)
	return nil
}

// serverSetting reads any setting from the database.
func (t *Tracker) serverSetting(ctx context.Context, q *query) error {
	key := q.Get("key")
	if key == "" {
		return protocol.Err("bad_params")
	}
	value := ""
	if fits("The setting's name", key, maxSetting) == nil {
		var err error
		if value, _, err = t.store.Setting(ctx, key); err != nil {
			return fmt.Errorf("read setting %s: %w", key, err)
		}
	}
	q.reply.Add("key", key)
	q.reply.Add("value", value)
	return nil
}

// serverSettings reads all settings but those in which fsck and scrub keep their
// books.
func (t *Tracker) serverSettings(ctx context.Context, q *query) error {
	all, err := t.store.Settings(ctx)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	maps.DeleteFunc(all, func(key, _ string) bool { return fsck.Books(key) })
	if len(all) == 0 {
		return nil
	}
	q.reply.AddInt("key_count", int64(len(all)))
	for i, key := range slices.Sorted(maps.Keys(all)) {
		n := strconv.Itoa(i + 1)
		q.reply.Add("key_"+n, key)
		q.reply.Add("value_"+n, all[key])
	}
	return nil
}
