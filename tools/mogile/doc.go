// Package mogile holds the binary's own commands: the daemons (tracker,
// storaged), migrate, and dev, which runs a whole cluster in one process.
//
// Beside main it is the only package that knows the tracker, the storage daemon
// and the stores at once: it turns flags and environment into their options,
// serves the status port for each, and decides what an exit code means.
package mogile
