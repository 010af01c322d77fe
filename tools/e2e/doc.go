// Package e2e tests the whole product from outside: the real binary, as
// separate processes on loopback, on both stores, with files that go in, are
// copied, come out and vanish, while daemons and databases are killed.
//
// Counts are a tenth of what `make soak` runs; MOGILE_TEST_SCALE multiplies
// them. What a test chooses at random comes from a seed that it prints, and
// that MOGILE_TEST_SEED repeats.
package e2e
