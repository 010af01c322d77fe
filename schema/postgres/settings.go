package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/schema"
)

const readSettings = `SELECT field, coalesce(value, '') FROM server_settings`

func scanSettings(rows pgx.Rows, settings map[string]string) error {
	var field, value string
	_, err := pgx.ForEachRow(rows, []any{&field, &value}, func() error {
		settings[field] = value
		return nil
	})
	return err
}

// Setting reads one setting.
func (s *Store) Setting(ctx context.Context, field string) (string, bool, error) {
	var value *string
	err := s.do(ctx, "read setting "+field, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, `SELECT max(value) FROM server_settings WHERE field = $1`, field).Scan(&value)
	})
	if err != nil || value == nil {
		return "", false, err
	}
	return *value, true, nil
}

// Settings reads all settings.
func (s *Store) Settings(ctx context.Context) (map[string]string, error) {
	settings := make(map[string]string)
	err := s.do(ctx, "read settings", func(ctx context.Context) error {
		clear(settings)
		rows, err := s.pool.Query(ctx, readSettings)
		if err != nil {
			return err
		}
		return scanSettings(rows, settings)
	})
	return settings, err
}

// SetSetting writes one setting; nil deletes it.
func (s *Store) SetSetting(ctx context.Context, field string, value *string) error {
	return s.do(ctx, "write setting "+field, func(ctx context.Context) error {
		if value == nil {
			_, err := s.pool.Exec(ctx, `DELETE FROM server_settings WHERE field = $1`, field)
			return err
		}
		_, err := s.pool.Exec(ctx, setSetting, field, *value)
		return err
	})
}

const (
	setSetting = `INSERT INTO server_settings (field, value) VALUES ($1, $2) ON CONFLICT (field) DO UPDATE SET value = EXCLUDED.value`

	// lockRows locks settings, those too that are not there: until the end of
	// the transaction they have rows without a value, which nobody else sees and
	// at which everybody waits who wants to make them.
	lockRows = `INSERT INTO server_settings AS s (field, value) SELECT field, NULL FROM unnest($1::text[]) field ORDER BY field
		ON CONFLICT (field) DO UPDATE SET value = s.value RETURNING field, value`

	// dropUnset deletes the rows without a value.
	dropUnset = `DELETE FROM server_settings WHERE field = ANY ($1::text[]) AND value IS NULL`

	setSettings = `UPDATE server_settings s SET value = c.value FROM unnest($1::text[], $2::text[]) c (field, value) WHERE s.field = c.field`
)

// lockSettings locks settings until the end of the transaction, and returns
// those that are there.
func lockSettings(ctx context.Context, tx pgx.Tx, fields []string) (map[string]string, error) {
	rows, err := tx.Query(ctx, lockRows, fields)
	if err != nil {
		return nil, err
	}
	settings := make(map[string]string, len(fields))
	var field string
	var value *string
	_, err = pgx.ForEachRow(rows, []any{&field, &value}, func() error {
		if value != nil {
			settings[field] = *value
		}
		return nil
	})
	return settings, err
}

// ChangeSettings changes settings if they are as expected.
func (s *Store) ChangeSettings(ctx context.Context, change schema.SettingsChange) error {
	return s.changeSettings(ctx, "change settings", change, func(context.Context, pgx.Tx) error { return nil })
}

// changeSettings does so, and with it what else is to be done in the
// transaction.
func (s *Store) changeSettings(ctx context.Context, what string, change schema.SettingsChange, with func(ctx context.Context, tx pgx.Tx) error) error {
	fields := change.Fields()
	var set []string
	var values []*string // nil deletes
	for field, value := range change.Set {
		set, values = append(set, field), append(values, value)
	}
	return s.do(ctx, what, func(ctx context.Context) error {
		return s.tx(ctx, func(tx pgx.Tx) error {
			settings, err := lockSettings(ctx, tx, fields)
			if err != nil {
				return err
			}
			if !change.Holds(settings) {
				return schema.ErrStale
			}
			if change.Forget != "" {
				if _, err := tx.Exec(ctx, `DELETE FROM mogile_range WHERE sweep = $1`, string(change.Forget)); err != nil {
					return err
				}
			}
			if err := with(ctx, tx); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, setSettings, set, values); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, dropUnset, fields)
			return err
		})
	})
}

// IncrementSetting adds 1 to a number.
func (s *Store) IncrementSetting(ctx context.Context, field string) error {
	return s.do(ctx, "increment setting "+field, func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, incrementSetting, field)
		return err
	})
}

const incrementSetting = `INSERT INTO server_settings AS s (field, value) VALUES ($1, '1')
	ON CONFLICT (field) DO UPDATE SET value = CASE WHEN s.value ~ '^-?[0-9]{1,18}$' THEN (s.value::int8 + 1)::text ELSE '1' END`
