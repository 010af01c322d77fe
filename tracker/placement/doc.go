// Package placement decides where files go: the devices offered to an upload,
// the order in which copies are read, and what a replication policy wants done
// about a file's copies.
//
// Everything here is a pure function of its arguments, chance included: it
// asks neither a database nor a device. The rules are MogileFS 2.73's; where
// ours differ the comment says so.
package placement
