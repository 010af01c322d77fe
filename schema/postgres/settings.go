package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
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
		const set = `INSERT INTO server_settings (field, value) VALUES ($1, $2) ON CONFLICT (field) DO UPDATE SET value = EXCLUDED.value`
		_, err := s.pool.Exec(ctx, set, field, *value)
		return err
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
