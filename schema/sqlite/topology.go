package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Topology reads the cluster; see [schema.Topology].
func (s *Store) Topology(ctx context.Context) (top schema.TopologyRows, err error) {
	defer wrap(&err, "read the topology")
	top.Settings = make(map[string]string)
	err = s.snapshot(ctx, func(q querier) error {
		top.Now = s.o.now()
		for _, part := range []struct {
			query string
			each  func(*sql.Rows) error
		}{
			{"SELECT dmid, coalesce(namespace, '') FROM domain ORDER BY dmid", func(rows *sql.Rows) error {
				var d schema.Domain
				err := rows.Scan(&d.ID, &d.Name)
				top.Domains = append(top.Domains, d)
				return err
			}},
			{`SELECT dmid, classid, coalesce(classname, ''), mindevcount, coalesce(hashtype, 0), coalesce(replpolicy, '')
				FROM class ORDER BY dmid, classid`, func(rows *sql.Rows) error {
				var c schema.Class
				err := rows.Scan(&c.DMID, &c.ID, &c.Name, &c.MinDevCount, &c.HashType, &c.ReplPolicy)
				top.Classes = append(top.Classes, c)
				return err
			}},
			{`SELECT hostid, coalesce(status, ''), coalesce(hostname, ''), coalesce(hostip, ''), coalesce(http_port, 0),
				coalesce(http_get_port, 0), coalesce(altip, ''), coalesce(altmask, '') FROM host ORDER BY hostid`, func(rows *sql.Rows) error {
				var h schema.Host
				err := rows.Scan(&h.ID, &h.Status, &h.Name, &h.IP, &h.Port, &h.GetPort, &h.AltIP, &h.AltMask)
				top.Hosts = append(top.Hosts, h)
				return err
			}},
			{`SELECT devid, hostid, coalesce(status, ''), coalesce(weight, 0), mb_total, mb_used, coalesce(mb_asof, 0)
				FROM device ORDER BY devid`, func(rows *sql.Rows) error {
				var d schema.Device
				err := rows.Scan(&d.ID, &d.HostID, &d.Status, &d.Weight, &d.TotalMB, &d.UsedMB, &d.AsOf)
				top.Devices = append(top.Devices, d)
				return err
			}},
			{selectSettings, scanSettings(top.Settings)},
		} {
			if err := readRows(ctx, q, part.query, nil, part.each); err != nil {
				return err
			}
		}
		return nil
	})
	return top, err
}

const selectSettings = "SELECT field, coalesce(value, '') FROM server_settings"

func scanSettings(into map[string]string) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var field, value string
		err := rows.Scan(&field, &value)
		into[field] = value
		return err
	}
}

// CreateDomain gives a domain its number; see [schema.Topology].
func (s *Store) CreateDomain(ctx context.Context, name string) (_ schema.DMID, err error) {
	defer wrap(&err, "create domain %q", name)
	return write(ctx, s, func(t *tx) (schema.DMID, error) {
		n, err := t.nextNumber(schema.HighestDMID, "SELECT coalesce(max(dmid), 0) FROM domain")
		if err != nil {
			return 0, err
		}
		_, err = t.exec("INSERT INTO domain (dmid, namespace) VALUES (?, ?)", n, name)
		if isDuplicate(err) {
			return 0, protocol.ErrDomainExists
		}
		return schema.DMID(n), err
	})
}

// nextNumber is that of a new row, where live queries the highest that there is
// and deleted names the highest that was deleted.
func (t *tx) nextNumber(deleted, live string, args ...any) (int, error) {
	var gone, highest int // gone stays 0 where there is none
	if _, err := t.row("SELECT CAST(value AS INT) FROM mogile_meta WHERE name = ?", []any{deleted}, &gone); err != nil {
		return 0, err
	}
	if _, err := t.row(live, args, &highest); err != nil {
		return 0, err
	}
	return schema.NextNumber(highest, gone), nil
}

// keepNumber remembers a number that was deleted.
func (t *tx) keepNumber(name string, n int) error {
	_, err := t.exec(`INSERT INTO mogile_meta (name, value) VALUES (?1, ?2)
		ON CONFLICT (name) DO UPDATE SET value = max(CAST(value AS INT), ?2)`, name, n)
	return err
}

// domain finds a domain by name.
func (t *tx) domain(name string) (schema.DMID, error) {
	var id schema.DMID
	ok, err := t.row("SELECT dmid FROM domain WHERE namespace = ?", []any{name}, &id)
	if err == nil && !ok {
		err = protocol.ErrDomainNotFound
	}
	return id, err
}

// exists reports whether query finds a row.
func (t *tx) exists(query string, args ...any) (bool, error) {
	var yes bool
	_, err := t.row("SELECT EXISTS ("+query+")", args, &yes)
	return yes, err
}

// DeleteDomain removes a domain; see [schema.Topology].
func (s *Store) DeleteDomain(ctx context.Context, name string) (err error) {
	defer wrap(&err, "delete domain %q", name)
	return change(ctx, s, func(t *tx) error {
		id, err := t.domain(name)
		if err != nil {
			return err
		}
		if has, err := t.exists("SELECT 1 FROM file WHERE dmid = ?", id); err != nil {
			return err
		} else if has {
			return protocol.ErrDomainHasFiles
		}
		if has, err := t.exists("SELECT 1 FROM class WHERE dmid = ? AND classid <> 0", id); err != nil {
			return err
		} else if has {
			return protocol.Err("domain_has_classes")
		}
		if _, err := t.exec("DELETE FROM class WHERE dmid = ?", id); err != nil {
			return err
		}
		if _, err = t.exec("DELETE FROM domain WHERE dmid = ?", id); err != nil {
			return err
		}
		if _, err = t.exec("DELETE FROM mogile_meta WHERE name = ?", schema.HighestClassID(id)); err != nil {
			return err
		}
		return t.keepNumber(schema.HighestDMID, int(id))
	})
}

// hashColumn and textColumn are NULL for what is none.
func hashColumn(t protocol.HashType) sql.NullInt16 {
	return sql.NullInt16{Int16: int16(t), Valid: t != protocol.HashNone}
}

func textColumn(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }

func portColumn(port int) sql.NullInt64 {
	return sql.NullInt64{Int64: int64(port), Valid: port != 0}
}

// checkClass refuses what MogileFS would misread, in a database that it may use.
func (s *Store) checkClass(policy string, hash protocol.HashType) error {
	return cmp.Or(schema.CheckPolicy(policy, s.sealed), schema.CheckHash(hash, s.sealed))
}

// CreateClass stores a class; see [schema.Topology].
func (s *Store) CreateClass(ctx context.Context, domain string, c schema.Class) (_ schema.ClassID, err error) {
	defer wrap(&err, "create class %q of domain %q", c.Name, domain)
	if err := s.checkClass(c.ReplPolicy, c.HashType); err != nil {
		return 0, err
	}
	return write(ctx, s, func(t *tx) (schema.ClassID, error) {
		id, err := t.domain(domain)
		if err != nil {
			return 0, err
		}
		return t.insertClass(id, c)
	})
}

func (t *tx) insertClass(dmid schema.DMID, c schema.Class) (schema.ClassID, error) {
	n := 0
	if c.Name != schema.DefaultClass {
		var err error
		if n, err = t.nextNumber(schema.HighestClassID(dmid), "SELECT coalesce(max(classid), 0) FROM class WHERE dmid = ?", dmid); err != nil {
			return 0, err
		}
	}
	_, err := t.exec("INSERT INTO class (dmid, classid, classname, mindevcount, hashtype, replpolicy) VALUES (?, ?, ?, ?, ?, ?)",
		dmid, n, c.Name, c.MinDevCount, hashColumn(c.HashType), textColumn(c.ReplPolicy))
	if isDuplicate(err) {
		return 0, protocol.ErrClassExists
	}
	return schema.ClassID(n), err
}

// class finds a class that has a row.
func (t *tx) class(domain, class string) (schema.DMID, schema.ClassID, error) {
	dmid, err := t.domain(domain)
	if err != nil {
		return 0, 0, err
	}
	var id schema.ClassID
	ok, err := t.row("SELECT classid FROM class WHERE dmid = ? AND classname = ?", []any{dmid, class}, &id)
	if err == nil && !ok {
		err = protocol.ErrClassNotFound
	}
	return dmid, id, err
}

// defaultMinDevCount is MogileFS 2.73's for a class that is stored without one.
const defaultMinDevCount = 2

// UpdateClass changes a class; see [schema.Topology].
func (s *Store) UpdateClass(ctx context.Context, domain, class string, ch schema.ClassChange) (err error) {
	defer wrap(&err, "update class %q of domain %q", class, domain)
	var policy string
	var hash protocol.HashType
	if ch.ReplPolicy != nil {
		policy = *ch.ReplPolicy
	}
	if ch.HashType != nil {
		hash = *ch.HashType
	}
	if err := s.checkClass(policy, hash); err != nil {
		return err
	}
	return change(ctx, s, func(t *tx) error {
		dmid, id, err := t.class(domain, class)
		if class == schema.DefaultClass && errors.Is(err, protocol.ErrClassNotFound) {
			id, err = t.insertClass(dmid, schema.Class{Name: class, MinDevCount: defaultMinDevCount})
		}
		if err != nil {
			return err
		}
		var set columns
		if ch.MinDevCount != nil {
			set.add("mindevcount", *ch.MinDevCount)
		}
		if ch.HashType != nil {
			set.add("hashtype", hashColumn(*ch.HashType))
		}
		if ch.ReplPolicy != nil {
			set.add("replpolicy", textColumn(*ch.ReplPolicy))
		}
		return set.update(t, "class", "dmid = ? AND classid = ?", dmid, id)
	})
}

// columns are those that an UPDATE sets.
type columns struct {
	set  []string
	args []any
}

func (c *columns) add(name string, value any) {
	c.set, c.args = append(c.set, name+" = ?"), append(c.args, value)
}

// update sets the columns, if any, where the condition holds.
func (c *columns) update(t *tx, table, where string, args ...any) error {
	if len(c.set) == 0 {
		return nil
	}
	_, err := t.exec("UPDATE "+table+" SET "+strings.Join(c.set, ", ")+" WHERE "+where, append(c.args, args...)...)
	return err
}

// DeleteClass removes a class; see [schema.Topology].
func (s *Store) DeleteClass(ctx context.Context, domain, class string) (err error) {
	defer wrap(&err, "delete class %q of domain %q", class, domain)
	if class == schema.DefaultClass {
		return protocol.Err("nodel_default_class")
	}
	return change(ctx, s, func(t *tx) error {
		dmid, id, err := t.class(domain, class)
		if err != nil {
			return err
		}
		for _, table := range []string{"file", "tempfile"} {
			if has, err := t.exists("SELECT 1 FROM "+table+" WHERE dmid = ? AND classid = ?", dmid, id); err != nil {
				return err
			} else if has {
				return protocol.ErrClassHasFiles
			}
		}
		if _, err = t.exec("DELETE FROM class WHERE dmid = ? AND classid = ?", dmid, id); err != nil {
			return err
		}
		return t.keepNumber(schema.HighestClassID(dmid), int(id))
	})
}

// host finds a host by name.
func (t *tx) host(name string) (id schema.HostID, ok bool, err error) {
	ok, err = t.row("SELECT hostid FROM host WHERE hostname = ?", []any{name}, &id)
	return id, ok, err
}

// CreateHost stores a host; see [schema.Topology].
func (s *Store) CreateHost(ctx context.Context, h schema.Host) (_ schema.HostID, err error) {
	defer wrap(&err, "create host %q", h.Name)
	return write(ctx, s, func(t *tx) (id schema.HostID, err error) {
		if _, ok, err := t.host(h.Name); err != nil {
			return 0, err
		} else if ok {
			return 0, protocol.ErrHostExists
		}
		_, err = t.row(`INSERT INTO host (hostid, status, hostname, hostip, http_port, http_get_port, altip, altmask)
			SELECT coalesce(max(hostid), 0) + 1, ?, ?, ?, ?, ?, ?, ? FROM host RETURNING hostid`,
			[]any{h.Status, h.Name, textColumn(h.IP), h.Port, portColumn(h.GetPort), textColumn(h.AltIP), textColumn(h.AltMask)}, &id)
		if isDuplicate(err) {
			return 0, protocol.ErrDup
		}
		return id, err
	})
}

// UpdateHost changes a host; see [schema.Topology].
func (s *Store) UpdateHost(ctx context.Context, name string, ch schema.HostChange) (_ schema.HostID, err error) {
	defer wrap(&err, "update host %q", name)
	return write(ctx, s, func(t *tx) (schema.HostID, error) {
		id, ok, err := t.host(name)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, protocol.ErrHostNotFound
		}
		var set columns
		if ch.Status != nil {
			set.add("status", *ch.Status)
		}
		if ch.IP != nil {
			set.add("hostip", textColumn(*ch.IP))
		}
		if ch.Port != nil {
			set.add("http_port", *ch.Port)
		}
		if ch.GetPort != nil {
			set.add("http_get_port", portColumn(*ch.GetPort))
		}
		if ch.AltIP != nil {
			set.add("altip", textColumn(*ch.AltIP))
		}
		if ch.AltMask != nil {
			set.add("altmask", textColumn(*ch.AltMask))
		}
		err = set.update(t, "host", "hostid = ?", id)
		if isDuplicate(err) {
			return 0, protocol.ErrDup
		}
		return id, err
	})
}

// DeleteHost removes a host; see [schema.Topology].
func (s *Store) DeleteHost(ctx context.Context, name string) (err error) {
	defer wrap(&err, "delete host %q", name)
	return change(ctx, s, func(t *tx) error {
		id, ok, err := t.host(name)
		if err != nil {
			return err
		}
		if !ok {
			return protocol.ErrUnknownHost
		}
		if has, err := t.exists("SELECT 1 FROM device WHERE hostid = ?", id); err != nil {
			return err
		} else if has {
			return protocol.ErrHostNotEmpty
		}
		_, err = t.exec("DELETE FROM host WHERE hostid = ?", id)
		return err
	})
}

// defaultWeight is a device's weight where none is given.
const defaultWeight = 100

// CreateDevice stores a device; see [schema.Topology].
func (s *Store) CreateDevice(ctx context.Context, d schema.Device) (err error) {
	defer wrap(&err, "create device %d", d.ID)
	if d.ID == 0 || d.ID > protocol.MaxDevID {
		return &protocol.Error{Code: "invalid_devid", Text: fmt.Sprintf("Device numbers go from 1 to %d", protocol.MaxDevID)}
	}
	if d.Weight == 0 {
		d.Weight = defaultWeight
	}
	return change(ctx, s, func(t *tx) error {
		if ok, err := t.exists("SELECT 1 FROM host WHERE hostid = ?", d.HostID); err != nil {
			return err
		} else if !ok {
			return protocol.Err("unknown_hostid")
		}
		_, err := t.exec("INSERT INTO device (devid, hostid, status, weight) VALUES (?, ?, ?, ?)", d.ID, d.HostID, d.Status, d.Weight)
		if isDuplicate(err) {
			return protocol.ErrExistingDevID
		}
		return err
	})
}

// SetDeviceState writes device.status; see [schema.Topology].
func (s *Store) SetDeviceState(ctx context.Context, dev protocol.DevID, state string) (err error) {
	defer wrap(&err, "set state of dev%d", dev)
	return change(ctx, s, func(t *tx) error {
		var before string
		ok, err := t.row("SELECT coalesce(status, '') FROM device WHERE devid = ?", []any{dev}, &before)
		switch {
		case err != nil:
			return err
		case !ok:
			return protocol.ErrNoDevice
		case before == schema.DeviceDead && state == schema.DeviceAlive:
			return protocol.Err("state_too_high")
		}
		_, err = t.exec("UPDATE device SET status = ? WHERE devid = ?", state, dev)
		return err
	})
}

// SetDeviceWeight writes device.weight; see [schema.Topology].
func (s *Store) SetDeviceWeight(ctx context.Context, dev protocol.DevID, weight int) (err error) {
	defer wrap(&err, "set weight of dev%d", dev)
	return change(ctx, s, func(t *tx) error {
		n, err := t.exec("UPDATE device SET weight = ? WHERE devid = ?", weight, dev)
		if err == nil && n == 0 {
			return protocol.ErrNoDevice
		}
		return err
	})
}

// SetDeviceUsage writes what the monitor measured; see [schema.Topology].
func (s *Store) SetDeviceUsage(ctx context.Context, usage []schema.Usage) (err error) {
	if len(usage) == 0 {
		return nil
	}
	defer wrap(&err, "set usage of %d devices", len(usage))
	return change(ctx, s, func(t *tx) error {
		for _, u := range usage {
			if _, err := t.exec("UPDATE device SET mb_total = ?, mb_used = ?, mb_asof = ? WHERE devid = ?", u.TotalMB, u.UsedMB, s.now(), u.DevID); err != nil {
				return err
			}
		}
		return nil
	})
}

// Announce does nothing: there is no other tracker.
func (s *Store) Announce(ctx context.Context) error { return ctx.Err() }

// Changes delivers nothing; the channel is closed when ctx ends.
func (s *Store) Changes(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{})
	context.AfterFunc(ctx, func() { close(ch) })
	return ch
}

// Setting reads a setting; see [schema.Settings].
func (s *Store) Setting(ctx context.Context, field string) (value string, ok bool, err error) {
	defer wrap(&err, "read setting %s", field)
	err = s.readRow(ctx, "SELECT coalesce(value, '') FROM server_settings WHERE field = ?", []any{field}, &value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	return value, err == nil, err
}

// Settings reads all settings; see [schema.Settings].
func (s *Store) Settings(ctx context.Context) (_ map[string]string, err error) {
	defer wrap(&err, "read settings")
	settings := make(map[string]string)
	err = s.read(ctx, selectSettings, nil, scanSettings(settings))
	return settings, err
}

// SetSetting writes a setting; see [schema.Settings].
func (s *Store) SetSetting(ctx context.Context, field string, value *string) (err error) {
	defer wrap(&err, "set setting %s", field)
	return change(ctx, s, func(t *tx) error { return t.changeSetting(field, value) })
}

// changeSetting writes a setting; nil deletes it.
func (t *tx) changeSetting(field string, value *string) error {
	if value == nil {
		_, err := t.exec("DELETE FROM server_settings WHERE field = ?", field)
		return err
	}
	return t.setSetting(field, *value)
}

func (t *tx) setSetting(field, value string) error {
	_, err := t.exec("INSERT INTO server_settings (field, value) VALUES (?, ?) ON CONFLICT (field) DO UPDATE SET value = excluded.value", field, value)
	return err
}

// IncrementSetting counts; see [schema.Settings].
func (s *Store) IncrementSetting(ctx context.Context, field string) (err error) {
	defer wrap(&err, "increment setting %s", field)
	return change(ctx, s, func(t *tx) error {
		var value string
		if _, err := t.row("SELECT coalesce(value, '') FROM server_settings WHERE field = ?", []any{field}, &value); err != nil {
			return err
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			n = 0 // anything else becomes 1
		}
		return t.setSetting(field, strconv.FormatInt(n+1, 10))
	})
}
