// Package protocol is the language that trackers, storage daemons and clients
// share: the framing and encoding of the tracker's text protocol, its error
// codes with their texts, checksums, and the mapping between a file's number
// and its path on a device.
//
// It also holds [Client], a pool of connections to several trackers with
// failover, for any Go program that wants to store and fetch files.
//
// The wire format is MogileFS 2.73's. A request is one line
//
//	command SP name=value&name=value LF
//
// with percent-encoded names and values, and is answered by exactly one line,
// "OK " and fields or "ERR code text". Requests on one connection are answered
// in the order in which they were sent.
//
// The package depends on nothing else in this module.
package protocol
