// Package sqlite is the embedded store: [schema.Store] in one file, for one
// process on one machine.
//
// All writes pass through one goroutine, which takes whatever callers wait for,
// applies each under a savepoint of its own, commits once and flushes once. A
// lone caller waits for nobody; many callers share a flush. Readers are a pool
// of connections that see the last commit. The database is in WAL mode with
// synchronous=FULL: what was acknowledged survives the process and the machine.
//
// A lock file beside the database refuses a second process, because the
// fid locks and the tokens of leases live in memory.
//
// The tables are MogileFS's, so that a database made by its own setup opens
// after a migration. Fids come from the AUTOINCREMENT sequence of table
// tempfile.
package sqlite
