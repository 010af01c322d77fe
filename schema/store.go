package schema

import (
	"context"
	"errors"
	"time"

	"github.com/mogile/mogile/protocol"
)

// Store is a namespace. Consumers ask for the smallest of its parts that they
// need.
type Store interface {
	Files
	Locations
	Encodings
	Accounts
	Queues
	Uploads
	Topology
	Settings
	Locks
	Members
	Upkeep

	// Ping reports whether the database answers.
	Ping(ctx context.Context) error
	// Close waits for running calls, gives up what is held, and closes the
	// connections.
	Close() error
}

var (
	// ErrStale is matched where a statement was not applied because what it
	// relied on has changed since it was read: read again and decide again.
	ErrStale = errors.New("changed since it was read")
	// ErrGone is matched where the file row of a fid no longer exists.
	ErrGone = errors.New("file is gone")
	// ErrUnavailable is matched where the database could not be reached, or
	// went away during the call. Nothing is known of the outcome of a write.
	ErrUnavailable = errors.New("database unavailable")
)

// FileFinder is what get_paths and file_info ask for.
type FileFinder interface {
	// FileByKey finds a closed file and the devices that hold it, ascending. No
	// devices is not an error. It returns an error matching
	// protocol.ErrUnknownKey where no file has the key.
	FileByKey(ctx context.Context, dmid DMID, key string) (File, []protocol.DevID, error)
	// FilesByFID finds files by number, with their devices, in no order. Fids
	// without a file row are left out.
	FilesByFID(ctx context.Context, fids []protocol.FID) ([]LocatedFile, error)
	// Checksum is the stored checksum of fid, zero where there is none.
	Checksum(ctx context.Context, fid protocol.FID) (protocol.Checksum, error)
}

// LocatedFile is a file and the devices that hold it, ascending.
type LocatedFile struct {
	File
	Devices []protocol.DevID
}

// Inspected is all that decides what a file needs.
type Inspected struct {
	LocatedFile
	Encoding *Encoding         // nil where the file is kept in copies
	Checksum protocol.Checksum // zero where none is recorded
	Pending  []protocol.DevID  // devices with an entry in copy_to_delete
}

// Files are keys and what they name.
type Files interface {
	FileFinder

	// CreateTempfile records an upload and returns its fid: t.FID, or a new one
	// where that is 0. CreateTime is ignored. An explicit fid that file,
	// tempfile, file_on or a queue of deletions knows is refused with an error
	// matching protocol.ErrFIDInUse; one above the sequence raises the sequence
	// first, so that it is never issued again, and is refused in the same way
	// where that is too far (see [CheckExplicitFID]). Keys that the database
	// cannot hold get protocol.ErrInvalidKey with the reason as text.
	CreateTempfile(ctx context.Context, t Tempfile) (protocol.FID, error)
	// Tempfile reads an upload's row, or returns an error matching
	// protocol.ErrNoTempfile.
	Tempfile(ctx context.Context, fid protocol.FID) (Tempfile, error)
	// CloseFile turns an upload into a file, in one transaction: the tempfile
	// row goes (protocol.ErrNoTempfile where it is not there), the key names the
	// new fid, the location and the checksum are recorded, the fid is queued for
	// replication at once, copies on the devices tried are entered in
	// copy_to_delete, and a fid that the key named before is queued for
	// deletion, due after [DeletionDelay]. Of several closes of one key the last to commit wins; every
	// other fid is queued for deletion exactly once. Keys that the database
	// cannot hold get protocol.ErrInvalidKey; a domain that is gone has the code
	// unreg_domain, a class that is gone unreg_class. A close that depends on
	// what the key names ([Close].NoOverwrite, IfFID) is decided under the lock of
	// that key. After a refusal the upload is as it was.
	CloseFile(ctx context.Context, c Close) error
	// DiscardUpload takes an upload back, in one transaction: the tempfile row
	// goes (protocol.ErrNoTempfile where it is not there), the location is
	// recorded and the fid queued for deletion at once. Copies on the other
	// devices that were offered are entered in copy_to_delete.
	DiscardUpload(ctx context.Context, fid protocol.FID, dev protocol.DevID) error
	// DeleteKey removes a key at once and queues its fid for deletion, due after
	// [DeletionDelay]. It returns the fid, or an error matching protocol.ErrUnknownKey.
	DeleteKey(ctx context.Context, dmid DMID, key string) (protocol.FID, error)
	// DeleteKeyIf does the same only if the key names fid at that moment; else
	// the error matches protocol.ErrFIDMismatch, or protocol.ErrUnknownKey.
	DeleteKeyIf(ctx context.Context, dmid DMID, key string, fid protocol.FID) error
	// RenameKey gives a file another key. Errors match protocol.ErrUnknownKey,
	// protocol.ErrKeyExists and protocol.ErrInvalidKey. Renaming a key to itself
	// is no error.
	RenameKey(ctx context.Context, dmid DMID, from, to string) error
	// RenameKeyIf does the same only if from names fid at that moment; else the
	// error matches protocol.ErrFIDMismatch, or protocol.ErrUnknownKey.
	RenameKeyIf(ctx context.Context, dmid DMID, from, to string, fid protocol.FID) error
	// SetFileClass moves the fid to another class and queues it for
	// replication, or returns an error matching ErrGone, or
	// protocol.ErrClassNotFound for a class that is gone.
	SetFileClass(ctx context.Context, fid protocol.FID, class ClassID) error
	// SetFileClassIf does the same only if the key names fid at that moment;
	// else the error matches protocol.ErrFIDMismatch, or protocol.ErrUnknownKey.
	SetFileClassIf(ctx context.Context, dmid DMID, key string, fid protocol.FID, class ClassID) error
	// ListKeys lists up to limit keys of a domain that begin with prefix and are
	// greater than after, in byte order.
	ListKeys(ctx context.Context, dmid DMID, prefix, after string, limit int) ([]string, error)
	// ListFIDs lists up to limit files with fids greater than after, ascending,
	// of all domains.
	ListFIDs(ctx context.Context, after protocol.FID, limit int) ([]File, error)
	// DebugFile collects all that the database knows of a fid.
	DebugFile(ctx context.Context, fid protocol.FID) (FileDebug, error)
	// SetChecksum stores or replaces the checksum of a fid, or returns an error
	// matching ErrGone where the file row is not there.
	SetChecksum(ctx context.Context, fid protocol.FID, sum protocol.Checksum) error
}

// Locations are the copies of files: table file_on, and copy_to_delete beside
// it.
type Locations interface {
	// AddLocation records a copy that has been made. It is applied only if the
	// file row exists (else ErrGone) and the fid's locations are exactly seen,
	// in any order (else ErrStale); in both cases the copy on dev, unless dev is
	// among the locations now, is entered in copy_to_delete in the same
	// transaction, so that its bytes go. Success removes entries for (fid, dev)
	// from copy_to_delete, and counts devcount anew unless the setting
	// skip_devcount is on.
	AddLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error
	// DropLocation takes a copy out of file_on and, in the same transaction,
	// enters it in copy_to_delete as due after [DeletionDelay]. It is applied only if the fid's
	// locations are exactly seen, in any order; else it returns ErrStale and
	// changes nothing. devcount is counted anew as for AddLocation.
	DropLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error
	// DropBadLocation does the same for a copy whose content is bad, and enters
	// it as [Bad], due at once. Where seen has no other device the error matches
	// [ErrLastCopy], and nothing changes.
	DropBadLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error
	// DeletedLocations forgets locations of a fid whose bytes are gone (or whose
	// device is): the rows of file_on go, nothing is queued.
	DeletedLocations(ctx context.Context, fid protocol.FID, devs []protocol.DevID) error
	// LocationsOf lists the devices recorded for each fid, whether or not it
	// has a file row, ascending.
	LocationsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error)
	// PendingDeletions lists the devices of each fid that have an entry in
	// copy_to_delete: placement avoids them.
	PendingDeletions(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error)
	// Inspect reads of each fid that has a file row, in no order, all that
	// decides what the file needs. What waits to be deleted is read no earlier
	// than the locations.
	Inspect(ctx context.Context, fids []protocol.FID) ([]Inspected, error)
}

// Queues are leases on rows of work. Claims take disjoint rows, however many
// trackers claim at once.
type Queues interface {
	// Claim leases up to limit due rows of q, the longest due first, by moving
	// their nexttry ahead by about lease (jittered upwards by up to a tenth, so
	// that a crashed worker's rows do not all return at once).
	Claim(ctx context.Context, q Queue, limit int, lease time.Duration) ([]Job, error)
	// Renew extends leases to lease from now and returns the jobs that are still
	// held, with their new tokens. Those left out have been lost.
	Renew(ctx context.Context, jobs []Job, lease time.Duration) ([]Job, error)
	// Finish removes the rows of jobs that still hold their token, and returns
	// how many it removed. A row that was queued again in the meantime stays.
	Finish(ctx context.Context, jobs []Job) (int, error)
	// Reschedule gives a job back: due again after delay (EndOfTime seconds or
	// more: never by itself), with failcount. It reports whether the row still
	// held its token; otherwise nothing changes.
	Reschedule(ctx context.Context, job Job, delay time.Duration, failcount int) (bool, error)

	// QueueReplication queues fids to be brought to their policy after delay.
	// A fid that is queued already becomes due at the earlier of the two times,
	// and loses its lease, so that nothing asked for during a copy is lost.
	// Times: 0 means at once (nexttry 0).
	QueueReplication(ctx context.Context, fids []protocol.FID, from protocol.DevID, delay time.Duration) error
	// QueueShards does the same for files that lack shards, and survive the loss of
	// spare more: they become due with the nexttry that [Urgency] says.
	QueueShards(ctx context.Context, fids []protocol.FID, spare int64) error
	// QueueCopyDeletion enters a copy in copy_to_delete as due now: bytes that
	// landed on dev and must go.
	QueueCopyDeletion(ctx context.Context, fid protocol.FID, dev protocol.DevID, what What) error
	// AnnounceCopy enters a copy in copy_to_delete before its bytes are sent to
	// dev. The entry is due after delay, so that the bytes go unless AddLocation
	// removes it before; one that is there already gets the new time, and loses
	// its lease.
	AnnounceCopy(ctx context.Context, fid protocol.FID, dev protocol.DevID, what What, delay time.Duration) error
	// ReplicateNow makes every row of file_to_replicate due that is not, those
	// parked at the end of time too, and returns how many there were.
	ReplicateNow(ctx context.Context) (int64, error)
	// AdoptOldDeletions moves up to limit rows of MogileFS's older tables
	// file_to_delete and (those due of) file_to_delete_later into
	// file_to_delete2, and returns how many it moved.
	AdoptOldDeletions(ctx context.Context, limit int) (int, error)
	// FinishDeletion forgets a fid whose every copy is gone, in one transaction:
	// its checksum, encoding, tempfile row and its row of file_to_delete2, if the job
	// still holds it and no location is left; it reports whether that was so.
	FinishDeletion(ctx context.Context, job Job) (bool, error)
	// QueueLengths counts the rows of each queue. It is not meant to be called
	// often.
	QueueLengths(ctx context.Context) (map[Queue]int64, error)
}

// Uploads are tempfiles that nobody closed.
type Uploads interface {
	// ExpireTempfiles handles up to limit tempfile rows older than age. Where a
	// file row with the fid exists only the tempfile row goes; else a location
	// is recorded on every device that was offered, and the fid is queued for
	// deletion.
	ExpireTempfiles(ctx context.Context, age time.Duration, limit int) (Expired, error)
	// UploadsOn counts the tempfile rows by the devices, of devs, that the upload
	// was offered.
	UploadsOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error)
}

// Topology is domains, classes, hosts and devices.
type Topology interface {
	// Topology reads all of it, and all settings, as of one moment.
	Topology(ctx context.Context) (TopologyRows, error)

	// CreateDomain gives the domain the number max+1, or returns an error
	// matching protocol.ErrDomainExists.
	CreateDomain(ctx context.Context, name string) (DMID, error)
	// DeleteDomain removes a domain and its stored class 0. Errors match
	// protocol.ErrDomainNotFound, protocol.ErrDomainHasFiles, or have the code
	// domain_has_classes. A file that is being closed at the same time is
	// either seen or refused, never orphaned.
	DeleteDomain(ctx context.Context, name string) error
	// CreateClass stores a class; "default" gets number 0, others max+1. The
	// class's ID and DMID are ignored. Errors match protocol.ErrDomainNotFound
	// and protocol.ErrClassExists.
	CreateClass(ctx context.Context, domain string, c Class) (ClassID, error)
	// UpdateClass changes a class by name; updating the class "default" stores
	// it where it has no row. Nil fields stay. Errors match
	// protocol.ErrDomainNotFound and protocol.ErrClassNotFound.
	UpdateClass(ctx context.Context, domain, class string, ch ClassChange) error
	// DeleteClass removes a class. Errors match protocol.ErrDomainNotFound,
	// protocol.ErrClassNotFound and protocol.ErrClassHasFiles, or have the code
	// nodel_default_class. Open uploads of the class count as files; a file that
	// is being closed into it at the same time is either seen or refused.
	DeleteClass(ctx context.Context, domain, class string) error

	// CreateHost stores a host; its ID is ignored and max+1 given. Errors match
	// protocol.ErrHostExists (the name) and protocol.ErrDup (an address).
	CreateHost(ctx context.Context, h Host) (HostID, error)
	// UpdateHost changes a host by name. Errors match protocol.ErrHostNotFound
	// and protocol.ErrDup.
	UpdateHost(ctx context.Context, name string, ch HostChange) (HostID, error)
	// DeleteHost removes a host. Errors match protocol.ErrUnknownHost and
	// protocol.ErrHostNotEmpty.
	DeleteHost(ctx context.Context, name string) error
	// CreateDevice stores a device, with weight 100 where d.Weight is 0. Errors
	// match protocol.ErrExistingDevID, and protocol.ErrUnknownHost or the code
	// unknown_hostid.
	CreateDevice(ctx context.Context, d Device) error
	// SetDeviceState writes device.status, or returns an error matching
	// protocol.ErrNoDevice. The step dead to alive gets the code
	// state_too_high.
	SetDeviceState(ctx context.Context, dev protocol.DevID, state string) error
	// SetDeviceWeight writes device.weight, or returns an error matching
	// protocol.ErrNoDevice.
	SetDeviceWeight(ctx context.Context, dev protocol.DevID, weight int) error
	// SetDeviceUsage writes what the monitor measured, with the database's
	// clock as mb_asof. Unknown devices are ignored.
	SetDeviceUsage(ctx context.Context, usage []Usage) error

	// Announce tells other trackers that an administrator changed something.
	Announce(ctx context.Context) error
	// Changes delivers a value soon after another tracker announced a change;
	// several may be merged into one. The channel is closed when ctx ends. A
	// store that only one process can use never delivers.
	Changes(ctx context.Context) <-chan struct{}
}

// ClassChange names the columns to write; nil fields stay as they are. An empty
// ReplPolicy and HashNone are stored as NULL.
type ClassChange struct {
	MinDevCount *int
	HashType    *protocol.HashType
	ReplPolicy  *string
}

// TopologyRows is the cluster as the database has it, each list ascending by
// number.
type TopologyRows struct {
	Domains  []Domain
	Classes  []Class
	Hosts    []Host
	Devices  []Device
	Settings map[string]string
	Now      time.Time // the database's clock
}

// Settings are rows of server_settings.
type Settings interface {
	// Setting reads one, and reports whether it is there.
	Setting(ctx context.Context, field string) (string, bool, error)
	// Settings reads all.
	Settings(ctx context.Context) (map[string]string, error)
	// SetSetting writes one; nil deletes it.
	SetSetting(ctx context.Context, field string, value *string) error
	// IncrementSetting adds 1 to a number; anything else becomes 1.
	IncrementSetting(ctx context.Context, field string) error
}

// Locks exclude workers of one fid, on all trackers, and give what must run
// once to one of them.
type Locks interface {
	// TryLock tries to take the named locks without waiting, and returns those
	// that it took. Names are as in MogileFS, "mgfs:fid:42:replicate". The locks
	// live on one session of this store: a lock that the store holds already is
	// not taken again. Lost is closed when that session, and every lock on it,
	// was lost: the work done under them must be cancelled.
	TryLock(ctx context.Context, names []string) (held []string, lost <-chan struct{}, err error)
	// Unlock gives locks back.
	Unlock(ctx context.Context, names []string) error

	// HoldLease takes or renews the named lease for owner, until ttl from now,
	// and reports whether owner holds it. It can be taken from another owner
	// only when its time is over.
	HoldLease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	// ReleaseLease gives the named lease up if owner holds it.
	ReleaseLease(ctx context.Context, name, owner string) error
}

// FIDLock is the name of the lock that work on a fid holds.
func FIDLock(fid protocol.FID) string { return "mgfs:fid:" + fid.String() + ":replicate" }

// Members are the trackers on this database.
type Members interface {
	// RegisterTracker writes or renews a tracker's row. LastSeen is ignored.
	RegisterTracker(ctx context.Context, t Tracker) error
	// Trackers lists them by name.
	Trackers(ctx context.Context) ([]Tracker, error)
}
