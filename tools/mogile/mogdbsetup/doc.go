// Package mogdbsetup is MogileFS's program of that name: it makes the database
// and its user where they are missing, and its tables up to date.
//
// A database made by it is left unsealed (schema version 17), because whoever
// says mogdbsetup may mean MogileFS's trackers; `mogile migrate --seal` seals it.
package mogdbsetup
