// Package open picks the store that a DSN names, so that package schema need
// not know the engines.
package open

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres"
	"github.com/mogile/mogile/schema/sqlite"
)

// Options name a database and how to use it.
type Options struct {
	// DSN is in one of the forms of schema.ParseDSN; User and Password are used
	// where it names none.
	DSN, User, Password string
	// SessionDSN names a direct connection to PostgreSQL, for locks and
	// notifications, where DSN goes through PgBouncer. Empty means DSN.
	SessionDSN string
	// MaxConns bounds the connections to PostgreSQL. Zero means a default.
	MaxConns int
	Log      zerolog.Logger
	// ClockOffset is added to the database's clock; tests set it.
	ClockOffset func() time.Duration
	// AnyVersion opens a database of an unknown schema version too.
	AnyVersion bool
}

// Open opens the namespace, whose schema must be of version 17 or 18. The error
// says what to do where it is not.
func Open(ctx context.Context, o Options) (schema.Store, error) {
	pg, lite, err := o.engine()
	switch {
	case err != nil:
		return nil, err
	case pg != nil:
		return store(postgres.Open(ctx, *pg))
	}
	return store(sqlite.Open(ctx, *lite))
}

// store keeps a nil pointer from becoming a Store that is not nil.
func store[S schema.Store](s S, err error) (schema.Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Migrate creates, upgrades, seals or unseals the schema.
func Migrate(ctx context.Context, o Options, mo schema.MigrateOptions) (schema.Migration, error) {
	pg, lite, err := o.engine()
	switch {
	case err != nil:
		return schema.Migration{}, err
	case pg != nil:
		return postgres.Migrate(ctx, *pg, mo)
	}
	return sqlite.Migrate(ctx, *lite, mo)
}

// engine is the options of the engine that the DSN names; the other's are nil.
func (o Options) engine() (*postgres.Options, *sqlite.Options, error) {
	dsn, err := schema.ParseDSN(o.DSN, o.User, o.Password)
	if err != nil {
		return nil, nil, err
	}
	if dsn.Engine == schema.EngineSQLite {
		return nil, &sqlite.Options{Path: dsn.Path, Log: o.Log, ClockOffset: o.ClockOffset, AnyVersion: o.AnyVersion}, nil
	}
	session := ""
	if o.SessionDSN != "" {
		s, err := schema.ParseDSN(o.SessionDSN, o.User, o.Password)
		if err != nil {
			return nil, nil, fmt.Errorf("session DSN: %w", err)
		}
		if s.Engine != schema.EnginePostgres {
			return nil, nil, fmt.Errorf("session DSN: %s is not PostgreSQL", s)
		}
		session = s.Postgres
	}
	return &postgres.Options{
		DSN: dsn.Postgres, SessionDSN: session, MaxConns: o.MaxConns, Log: o.Log, ClockOffset: o.ClockOffset, AnyVersion: o.AnyVersion,
	}, nil, nil
}
