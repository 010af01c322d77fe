// Package work is what the workers of a tracker share: resizable pools,
// feeds of leased rows, locks on fids, limits for each device, and the times
// after which failed work is tried again.
//
// A row of a queue is leased, not taken: whoever claims it moves its nexttry
// ahead and works on it until then, or renews it. A worker that dies costs one
// lease. A [Feed] claims rows in batches and renews those that are being worked
// on.
//
// One worker at a time works on a fid: [FIDLocks]. Work whose lock is lost is
// cancelled; a lost lease alone cancels nothing, as a row that is queued again
// during a copy loses its lease, and the copy is still wanted. Neither locks nor leases
// make anything safe. They only save doing things twice; what keeps the
// namespace right are the store's statements, which apply only to what they
// were decided on.
package work
