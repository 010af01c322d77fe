// Package storetest is the conformance suite of [schema.Store]: what every
// engine must do, and the benchmarks that compare them.
//
// An engine's tests hand [Run] a function that makes a fresh database. Each
// case gets its own, so that cases run side by side. A bug found in one engine
// becomes a case for all.
//
// Cases that draw lots print their seed; MOGILE_TEST_SEED repeats one.
// MOGILE_TEST_SCALE multiplies the counts of those that repeat themselves; it
// is 1 where unset.
package storetest
