// Package mogilefsd reads the configuration of MogileFS 2.73's tracker, its file
// and its command line, and says it in the flags of `mogile tracker`.
//
// It is pure: what it asks for of the process (files, environment) is passed in.
// A directive of MogileFS's is one row of a table, which holds its names, what
// it takes, its default, and the flag or the advice that stands for it here.
package mogilefsd
