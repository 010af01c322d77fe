package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Topology reads domains, classes, hosts, devices and settings as of one
// moment.
func (s *Store) Topology(ctx context.Context) (schema.TopologyRows, error) {
	var t schema.TopologyRows
	err := s.do(ctx, "read topology", func(ctx context.Context) error {
		t = schema.TopologyRows{Settings: make(map[string]string)}
		return s.pipeline(ctx, beginSnapshot, func(b *pgx.Batch) {
			b.Queue(`SELECT `+now, s.offset()).QueryRow(func(row pgx.Row) error {
				var seconds int64
				err := row.Scan(&seconds)
				t.Now = time.Unix(seconds, 0)
				return err
			})
			b.Queue(`SELECT dmid, coalesce(namespace, '') FROM domain ORDER BY dmid`).Query(func(rows pgx.Rows) error {
				var d schema.Domain
				_, err := pgx.ForEachRow(rows, []any{&d.ID, &d.Name}, func() error {
					t.Domains = append(t.Domains, d)
					return nil
				})
				return err
			})
			b.Queue(readClasses).Query(func(rows pgx.Rows) error {
				var c schema.Class
				_, err := pgx.ForEachRow(rows, []any{&c.DMID, &c.ID, &c.Name, &c.MinDevCount, &c.HashType, &c.ReplPolicy}, func() error {
					t.Classes = append(t.Classes, c)
					return nil
				})
				return err
			})
			b.Queue(readHosts).Query(func(rows pgx.Rows) error {
				var h schema.Host
				_, err := pgx.ForEachRow(rows, []any{&h.ID, &h.Status, &h.Name, &h.IP, &h.Port, &h.GetPort, &h.AltIP, &h.AltMask}, func() error {
					t.Hosts = append(t.Hosts, h)
					return nil
				})
				return err
			})
			b.Queue(readDevices).Query(func(rows pgx.Rows) error {
				var d schema.Device
				var id int64
				_, err := pgx.ForEachRow(rows, []any{&id, &d.HostID, &d.Status, &d.Weight, &d.TotalMB, &d.UsedMB, &d.AsOf}, func() error {
					device := d
					device.ID = protocol.DevID(id)
					t.Devices = append(t.Devices, device)
					d.TotalMB, d.UsedMB = nil, nil
					return nil
				})
				return err
			})
			b.Queue(readSettings).Query(func(rows pgx.Rows) error { return scanSettings(rows, t.Settings) })
		})
	})
	if err == nil {
		// An operator may have sealed the schema meanwhile.
		if v, ok := t.Settings["schema_version"]; ok {
			s.version.Store(int64(number(&v)))
		}
	}
	return t, err
}

const (
	readClasses = `SELECT dmid, classid, coalesce(classname, ''), mindevcount, coalesce(hashtype, 0), coalesce(replpolicy, '')
		FROM class ORDER BY dmid, classid`
	readHosts = `SELECT hostid, coalesce(status, ''), coalesce(hostname, ''), coalesce(hostip, ''), coalesce(http_port, 7500),
		coalesce(http_get_port, 0), coalesce(altip, ''), coalesce(altmask, '') FROM host ORDER BY hostid`
	readDevices = `SELECT devid, hostid, coalesce(status, ''), coalesce(weight, 100), mb_total::int8, mb_used::int8, coalesce(mb_asof, 0)::int8
		FROM device ORDER BY devid`
)

// topologyTx runs f in a transaction that no other change of the topology runs
// beside.
func (s *Store) topologyTx(ctx context.Context, what string, f func(ctx context.Context, tx pgx.Tx) error) error {
	return s.do(ctx, what, func(ctx context.Context) error {
		return s.tx(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, lockInternal, schemaSpace, topologyLock); err != nil {
				return err
			}
			return f(ctx, tx)
		})
	})
}

// exists runs a query for one boolean.
func exists(ctx context.Context, tx pgx.Tx, sql string, args ...any) (yes bool, err error) {
	err = tx.QueryRow(ctx, sql, args...).Scan(&yes)
	return yes, err
}

// checkName refuses names that a column of width characters cannot hold.
func (s *Store) checkName(what, name string, width int) error {
	if err := schema.CheckKey(name, s.ascii, false); err != nil || len([]rune(name)) > width {
		return &protocol.Error{Code: "bad_params", Text: fmt.Sprintf("The name of a %s is 1 to %d characters of UTF-8", what, width)}
	}
	return nil
}

// CreateDomain makes a domain.
func (s *Store) CreateDomain(ctx context.Context, name string) (schema.DMID, error) {
	if err := s.checkName("domain", name, 255); err != nil {
		return 0, err
	}
	var dmid schema.DMID
	err := s.topologyTx(ctx, "create domain "+name, func(ctx context.Context, tx pgx.Tx) error {
		there, err := exists(ctx, tx, `SELECT EXISTS (SELECT FROM domain WHERE namespace = $1)`, name)
		if err != nil {
			return err
		}
		if there {
			return protocol.ErrDomainExists
		}
		n, err := nextNumber(ctx, tx, schema.HighestDMID, `SELECT coalesce(max(dmid), 0) FROM domain`)
		if err != nil {
			return err
		}
		dmid = schema.DMID(n)
		_, err = tx.Exec(ctx, insertDomain, n, name)
		return err
	})
	return dmid, err
}

const (
	insertDomain = `INSERT INTO domain (dmid, namespace) VALUES ($1, $2)`

	// keepNumber remembers a number that was deleted.
	keepNumber = `INSERT INTO mogile_meta AS m (name, value) VALUES ($1, $2::int4::text)
		ON CONFLICT (name) DO UPDATE SET value = greatest(m.value::int, EXCLUDED.value::int)::text`

	deletedNumber = `SELECT coalesce(max(value::int), 0) FROM mogile_meta WHERE name = $1`
)

// nextNumber is that of a new row, where live queries the highest that there is
// and deleted names the highest that was deleted.
func nextNumber(ctx context.Context, tx pgx.Tx, deleted, live string, args ...any) (int, error) {
	var gone, highest int
	if err := tx.QueryRow(ctx, deletedNumber, deleted).Scan(&gone); err != nil {
		return 0, err
	}
	if err := tx.QueryRow(ctx, live, args...).Scan(&highest); err != nil {
		return 0, err
	}
	return schema.NextNumber(highest, gone), nil
}

// domainID finds a domain by name.
func domainID(ctx context.Context, tx pgx.Tx, name string) (schema.DMID, error) {
	var dmid schema.DMID
	err := tx.QueryRow(ctx, `SELECT dmid FROM domain WHERE namespace = $1`, name).Scan(&dmid)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, protocol.ErrDomainNotFound
	}
	return dmid, err
}

// DeleteDomain removes a domain that has neither files nor classes.
func (s *Store) DeleteDomain(ctx context.Context, name string) error {
	if s.checkName("domain", name, 255) != nil {
		return protocol.ErrDomainNotFound
	}
	return s.topologyTx(ctx, "delete domain "+name, func(ctx context.Context, tx pgx.Tx) error {
		dmid, err := domainID(ctx, tx, name)
		if err != nil {
			return err
		}
		// Closes that run are waited for; later ones find the domain gone.
		if _, err := tx.Exec(ctx, lockInternal, domainSpace, int32(dmid)); err != nil {
			return err
		}
		files, err := exists(ctx, tx, `SELECT EXISTS (SELECT FROM file WHERE dmid = $1)`, int16(dmid))
		if err != nil {
			return err
		}
		if files {
			return protocol.ErrDomainHasFiles
		}
		classes, err := exists(ctx, tx, `SELECT EXISTS (SELECT FROM class WHERE dmid = $1 AND classid <> 0)`, int16(dmid))
		if err != nil {
			return err
		}
		if classes {
			return protocol.Err("domain_has_classes")
		}
		if _, err := tx.Exec(ctx, `DELETE FROM class WHERE dmid = $1`, int16(dmid)); err != nil {
			return err
		}
		if _, err = tx.Exec(ctx, `DELETE FROM domain WHERE dmid = $1`, int16(dmid)); err != nil {
			return err
		}
		if _, err = tx.Exec(ctx, `DELETE FROM mogile_meta WHERE name = $1`, schema.HighestClassID(dmid)); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, keepNumber, schema.HighestDMID, int(dmid))
		return err
	})
}

// nullable is NULL for an empty string.
func nullable(v string) *string {
	if v == "" {
		return nil
	}
	return &v
}

// checkPolicy keeps what Perl trackers would misread out of a database that
// they may use.
func (s *Store) checkPolicy(policy string, hash protocol.HashType) error {
	return cmp.Or(schema.CheckPolicy(policy, s.sealed()), schema.CheckHash(hash, s.sealed()))
}

// CreateClass stores a class.
func (s *Store) CreateClass(ctx context.Context, domain string, c schema.Class) (schema.ClassID, error) {
	if err := s.checkName("class", c.Name, 50); err != nil {
		return 0, err
	}
	if err := s.checkPolicy(c.ReplPolicy, c.HashType); err != nil {
		return 0, err
	}
	if s.checkName("domain", domain, 255) != nil {
		return 0, protocol.ErrDomainNotFound
	}
	var id schema.ClassID
	err := s.topologyTx(ctx, "create class "+c.Name, func(ctx context.Context, tx pgx.Tx) error {
		dmid, err := domainID(ctx, tx, domain)
		if err != nil {
			return err
		}
		there, err := exists(ctx, tx, `SELECT EXISTS (SELECT FROM class WHERE dmid = $1 AND (classname = $2 OR classid = 0 AND $2 = 'default'))`, int16(dmid), c.Name)
		if err != nil {
			return err
		}
		if there {
			return protocol.ErrClassExists
		}
		n := 0
		if c.Name != schema.DefaultClass {
			const live = `SELECT coalesce(max(greatest(classid, 0)), 0) FROM class WHERE dmid = $1`
			if n, err = nextNumber(ctx, tx, schema.HighestClassID(dmid), live, int16(dmid)); err != nil {
				return err
			}
		}
		id = schema.ClassID(n)
		_, err = tx.Exec(ctx, insertClass, int16(dmid), n, c.Name, c.MinDevCount, int16(c.HashType), nullable(c.ReplPolicy))
		return err
	})
	return id, err
}

const insertClass = `INSERT INTO class (dmid, classid, classname, mindevcount, hashtype, replpolicy)
	VALUES ($1, $2, $3, $4, nullif($5::int2, 0), $6)`

// defaultMinDevCount is that of a class "default" that is stored first by an
// update which does not say (the default of MogileFS 2.73).
const defaultMinDevCount = 2

// UpdateClass changes a class.
func (s *Store) UpdateClass(ctx context.Context, domain, class string, ch schema.ClassChange) error {
	var hash protocol.HashType
	var policy string
	if ch.HashType != nil {
		hash = *ch.HashType
	}
	if ch.ReplPolicy != nil {
		policy = *ch.ReplPolicy
	}
	if err := s.checkPolicy(policy, hash); err != nil {
		return err
	}
	if s.checkName("domain", domain, 255) != nil {
		return protocol.ErrDomainNotFound
	}
	return s.topologyTx(ctx, "update class "+class, func(ctx context.Context, tx pgx.Tx) error {
		dmid, err := domainID(ctx, tx, domain)
		if err != nil {
			return err
		}
		if s.checkName("class", class, 50) != nil {
			return protocol.ErrClassNotFound
		}
		if class == schema.DefaultClass {
			const store = `INSERT INTO class (dmid, classid, classname, mindevcount) SELECT $1, 0, 'default', $2
				WHERE NOT EXISTS (SELECT FROM class WHERE dmid = $1 AND (classid = 0 OR classname = 'default'))`
			if _, err := tx.Exec(ctx, store, int16(dmid), defaultMinDevCount); err != nil {
				return err
			}
		}
		tag, err := tx.Exec(ctx, updateClass, int16(dmid), class, ch.MinDevCount, ch.HashType != nil, int16(hash), ch.ReplPolicy != nil, nullable(policy))
		if err == nil && tag.RowsAffected() == 0 {
			return protocol.ErrClassNotFound
		}
		return err
	})
}

const updateClass = `UPDATE class SET mindevcount = coalesce($3, mindevcount),
	hashtype = CASE WHEN $4 THEN nullif($5::int2, 0) ELSE hashtype END,
	replpolicy = CASE WHEN $6 THEN $7 ELSE replpolicy END WHERE dmid = $1 AND classname = $2`

// DeleteClass removes a class without files and open uploads. A close makes a
// file of an upload in one transaction, so that one of the two is seen; one that
// comes later finds the class gone.
func (s *Store) DeleteClass(ctx context.Context, domain, class string) error {
	if class == schema.DefaultClass {
		return protocol.Err("nodel_default_class")
	}
	if s.checkName("domain", domain, 255) != nil {
		return protocol.ErrDomainNotFound
	}
	return s.topologyTx(ctx, "delete class "+class, func(ctx context.Context, tx pgx.Tx) error {
		dmid, err := domainID(ctx, tx, domain)
		if err != nil {
			return err
		}
		if s.checkName("class", class, 50) != nil {
			return protocol.ErrClassNotFound
		}
		if _, err := tx.Exec(ctx, lockInternal, domainSpace, int32(dmid)); err != nil {
			return err
		}
		var id int16
		err = tx.QueryRow(ctx, `SELECT classid FROM class WHERE dmid = $1 AND classname = $2 FOR UPDATE`, int16(dmid), class).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return protocol.ErrClassNotFound
		}
		if err != nil {
			return err
		}
		if id == 0 {
			return protocol.Err("nodel_default_class")
		}
		used, err := exists(ctx, tx, classUsed, int16(dmid), id)
		if err != nil {
			return err
		}
		if used {
			return protocol.ErrClassHasFiles
		}
		if _, err = tx.Exec(ctx, `DELETE FROM class WHERE dmid = $1 AND classid = $2`, int16(dmid), id); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, keepNumber, schema.HighestClassID(dmid), int(id))
		return err
	})
}

const classUsed = `SELECT EXISTS (SELECT FROM file WHERE dmid = $1 AND classid = $2)
	OR EXISTS (SELECT FROM tempfile WHERE dmid = $1 AND classid = $2)`

// checkAddresses keeps addresses of IPv6 out of a database that Perl trackers
// may use.
func (s *Store) checkAddresses(addresses ...string) error {
	for _, a := range addresses {
		if !s.sealed() && strings.Contains(a, ":") {
			return &protocol.Error{Code: "bad_params", Text: "IPv6 addresses need a sealed schema: see mogile migrate --seal"}
		}
		if a != "" && schema.CheckKey(a, s.ascii, false) != nil || len(a) > 45 {
			return &protocol.Error{Code: "bad_params", Text: "Not an address"}
		}
	}
	return nil
}

// addressError turns the server's refusals of a host's row into ours.
func addressError(err error) error {
	switch state(err) {
	case stateUnique:
		return protocol.ErrDup
	case stateTooLong:
		return &protocol.Error{Code: "bad_params", Text: "An address is too long for its column"}
	}
	return err
}

// CreateHost stores a host.
func (s *Store) CreateHost(ctx context.Context, h schema.Host) (schema.HostID, error) {
	if err := s.checkName("host", h.Name, 40); err != nil {
		return 0, err
	}
	if err := s.checkAddresses(h.IP, h.AltIP, h.AltMask); err != nil {
		return 0, err
	}
	var id schema.HostID
	err := s.topologyTx(ctx, "create host "+h.Name, func(ctx context.Context, tx pgx.Tx) error {
		there, err := exists(ctx, tx, `SELECT EXISTS (SELECT FROM host WHERE hostname = $1)`, h.Name)
		if err != nil {
			return err
		}
		if there {
			return protocol.ErrHostExists
		}
		return addressError(tx.QueryRow(ctx, insertHost, h.Status, h.Name, h.IP, h.Port, h.GetPort, nullable(h.AltIP), nullable(h.AltMask)).Scan(&id))
	})
	return id, err
}

const insertHost = `INSERT INTO host (hostid, status, hostname, hostip, http_port, http_get_port, altip, altmask)
	SELECT coalesce(max(hostid), 0) + 1, $1, $2, nullif($3::text, ''), $4, nullif($5::int4, 0), $6, $7 FROM host RETURNING hostid`

// UpdateHost changes a host.
func (s *Store) UpdateHost(ctx context.Context, name string, ch schema.HostChange) (schema.HostID, error) {
	text := func(p *string) string {
		if p == nil {
			return ""
		}
		return *p
	}
	if err := s.checkAddresses(text(ch.IP), text(ch.AltIP), text(ch.AltMask)); err != nil {
		return 0, err
	}
	if s.checkName("host", name, 40) != nil {
		return 0, protocol.ErrHostNotFound
	}
	var id schema.HostID
	err := s.topologyTx(ctx, "update host "+name, func(ctx context.Context, tx pgx.Tx) error {
		err := tx.QueryRow(ctx, updateHost, name, ch.Status, ch.IP, ch.Port, ch.GetPort, ch.AltIP, ch.AltMask).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return protocol.ErrHostNotFound
		}
		return addressError(err)
	})
	return id, err
}

const updateHost = `UPDATE host SET status = coalesce($2, status), hostip = coalesce($3, hostip), http_port = coalesce($4, http_port),
	http_get_port = CASE WHEN $5::int4 IS NULL THEN http_get_port ELSE nullif($5::int4, 0) END,
	altip = CASE WHEN $6::text IS NULL THEN altip ELSE nullif($6::text, '') END,
	altmask = CASE WHEN $7::text IS NULL THEN altmask ELSE nullif($7::text, '') END
	WHERE hostname = $1 RETURNING hostid`

// DeleteHost removes a host that has no devices.
func (s *Store) DeleteHost(ctx context.Context, name string) error {
	if s.checkName("host", name, 40) != nil {
		return protocol.ErrUnknownHost
	}
	return s.topologyTx(ctx, "delete host "+name, func(ctx context.Context, tx pgx.Tx) error {
		var id int16
		err := tx.QueryRow(ctx, `SELECT hostid FROM host WHERE hostname = $1`, name).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return protocol.ErrUnknownHost
		}
		if err != nil {
			return err
		}
		there, err := exists(ctx, tx, `SELECT EXISTS (SELECT FROM device WHERE hostid = $1)`, id)
		if err != nil {
			return err
		}
		if there {
			return protocol.ErrHostNotEmpty
		}
		_, err = tx.Exec(ctx, `DELETE FROM host WHERE hostid = $1`, id)
		return err
	})
}

// CreateDevice stores a device.
func (s *Store) CreateDevice(ctx context.Context, d schema.Device) error {
	if d.ID == 0 || d.ID > protocol.MaxDevID {
		return &protocol.Error{Code: "invalid_devid", Text: fmt.Sprintf("A device's number is 1 to %d", protocol.MaxDevID)}
	}
	if d.Weight == 0 {
		d.Weight = 100
	}
	return s.topologyTx(ctx, fmt.Sprintf("create device %d", d.ID), func(ctx context.Context, tx pgx.Tx) error {
		there, err := exists(ctx, tx, `SELECT EXISTS (SELECT FROM host WHERE hostid = $1)`, int16(d.HostID))
		if err != nil {
			return err
		}
		if !there {
			return protocol.Err("unknown_hostid")
		}
		const insert = `INSERT INTO device (devid, hostid, status, weight, mb_total, mb_used, mb_asof) VALUES ($1, $2, $3, $4, $5, $6, nullif($7::int8, 0))`
		_, err = tx.Exec(ctx, insert, int64(d.ID), int16(d.HostID), d.Status, d.Weight, d.TotalMB, d.UsedMB, d.AsOf)
		if state(err) == stateUnique {
			return protocol.ErrExistingDevID
		}
		return err
	})
}

// SetDeviceState writes a device's status.
func (s *Store) SetDeviceState(ctx context.Context, dev protocol.DevID, status string) error {
	return s.topologyTx(ctx, fmt.Sprintf("set state of device %d", dev), func(ctx context.Context, tx pgx.Tx) error {
		var was string
		err := tx.QueryRow(ctx, `SELECT coalesce(status, '') FROM device WHERE devid = $1 FOR UPDATE`, int64(dev)).Scan(&was)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return protocol.ErrNoDevice
		case err != nil:
			return err
		case was == schema.DeviceDead && status == schema.DeviceAlive:
			return protocol.Err("state_too_high")
		}
		_, err = tx.Exec(ctx, `UPDATE device SET status = $2 WHERE devid = $1`, int64(dev), status)
		return err
	})
}

// SetDeviceWeight writes a device's weight.
func (s *Store) SetDeviceWeight(ctx context.Context, dev protocol.DevID, weight int) error {
	return s.do(ctx, fmt.Sprintf("set weight of device %d", dev), func(ctx context.Context) error {
		tag, err := s.pool.Exec(ctx, `UPDATE device SET weight = $2 WHERE devid = $1`, int64(dev), weight)
		if err == nil && tag.RowsAffected() == 0 {
			return protocol.ErrNoDevice
		}
		return err
	})
}

// SetDeviceUsage writes what the monitor measured.
func (s *Store) SetDeviceUsage(ctx context.Context, usage []schema.Usage) error {
	if len(usage) == 0 {
		return nil
	}
	mb := func(n int64) int64 { return min(max(n, 0), math.MaxInt32) } // what the columns hold
	var ids, totals, useds []int64
	for _, u := range usage {
		ids, totals, useds = append(ids, int64(u.DevID)), append(totals, mb(u.TotalMB)), append(useds, mb(u.UsedMB))
	}
	return s.do(ctx, "record usage", func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, setUsage, s.offset(), ids, totals, useds)
		return err
	})
}

const setUsage = `WITH known AS MATERIALIZED (SELECT devid FROM device WHERE devid = ANY ($2::int8[]) ORDER BY devid FOR NO KEY UPDATE)
	UPDATE device d SET mb_total = u.total, mb_used = u.used, mb_asof = ` + now + `
	FROM unnest($2::int8[], $3::int8[], $4::int8[]) u (devid, total, used), known
	WHERE d.devid = u.devid AND known.devid = u.devid`
