package schema

// Versions of the schema, as stored in the setting schema_version.
const (
	// VersionOpen is MogileFS 2.73's: Perl trackers may run on the database too.
	VersionOpen = 17
	// VersionSealed is ours: Perl trackers refuse to start, and the features
	// that they would misread are permitted.
	VersionSealed = 18
)

// MigrateOptions say what a migration may do.
type MigrateOptions struct {
	// DryRun reports what would be done and changes nothing.
	DryRun bool
	// Seal sets schema version 18 and makes the changes that need it. New
	// databases are sealed unless Unseal is set.
	Seal bool
	// Unseal sets schema version 17, which works while nothing that needs 18 is
	// in use.
	Unseal bool
	// UnsealNew leaves a new database unsealed, and the others as they are.
	UnsealNew bool
	// KeepVersion makes the changes and leaves schema_version as it is, as
	// mogdbsetup does with --noschemabump.
	KeepVersion bool
	// Widen makes fid columns of 32 bits, as old databases have them, BIGINT. It
	// rewrites their tables while nobody can use them.
	Widen bool
}

// Migration is the outcome of a migration.
type Migration struct {
	// Steps describe what was done, or would be, in order. Empty where the
	// schema was up to date.
	Steps []string
	// Version is the schema version afterwards, or as it would be.
	Version int
	// Warnings are conditions that the operator should know of, such as
	// file.fid being a 32-bit column.
	Warnings []string
}
