package mogile

import (
	"context"
	"errors"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/schema/open"
	"github.com/mogile/mogile/schema/postgres"
	"github.com/mogile/mogile/tools"
)

// namespace is the database as mogtool reaches it.
type namespace struct{}

var _ tools.Namespace = namespace{}

// Fill implements [tools.Namespace].
func (namespace) Fill(ctx context.Context, dsn string, r tools.Rows) error {
	return withPostgres(ctx, dsn, func(s *postgres.Store) error {
		return s.Fill(ctx, postgres.Fill{
			Domain: r.Domain, Class: r.Class, Files: r.Files, Copies: r.Copies, Length: r.Length, Prefix: r.Prefix, Progress: r.Progress,
		})
	})
}

// Clear implements [tools.Namespace].
func (namespace) Clear(ctx context.Context, dsn, domain, prefix string, progress func(int64)) (files int64, err error) {
	err = withPostgres(ctx, dsn, func(s *postgres.Store) (err error) {
		files, err = s.Unfill(ctx, domain, prefix, progress)
		return err
	})
	return files, err
}

func withPostgres(ctx context.Context, dsn string, do func(*postgres.Store) error) (err error) {
	store, err := open.Open(ctx, open.Options{DSN: dsn, MaxConns: 2, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	s, ok := store.(*postgres.Store)
	if !ok {
		return errors.New("rows are made on PostgreSQL only")
	}
	return do(s)
}
