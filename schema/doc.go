// Package schema is the namespace: what the database holds, as row types, and
// the small interfaces through which trackers use it.
//
// The tables are MogileFS's, schema version 17, extended by tables of our own.
// Two engines implement [Store]: PostgreSQL in schema/postgres, for any number
// of trackers, and the embedded SQLite in schema/sqlite, for one process.
// schema/open picks the engine that a DSN names, and schema/storetest is the
// suite that both must pass.
//
// # Rules that every store keeps
//
//   - A call that returns nil has been committed durably, with one exception:
//     a tempfile row that [Files.CreateTempfile] records may be lost in a crash
//     of the database. Its uploader then retries. The fid itself is never
//     issued again.
//   - Every time is the database's clock, in whole seconds since 1970.
//   - Calls are safe for concurrent use, honour their context, and may share a
//     statement and a commit with other callers of the same kind; each caller
//     gets its own outcome and never another's error.
//   - Refusals that a client should hear are errors matching a
//     [protocol.Error]; everything else is an internal failure.
package schema
