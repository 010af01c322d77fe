package schema

import (
	"fmt"
	"time"

	"github.com/mogile/mogile/protocol"
)

// DMID is a domain's number.
type DMID int16

// ClassID is a class's number within its domain. 0 is the class "default",
// which exists in every domain whether it has a row or not.
type ClassID int16

// HostID is a host's number.
type HostID int16

// DefaultClass is the name of class 0.
const DefaultClass = "default"

// Domain is a row of table domain.
type Domain struct {
	ID   DMID
	Name string // column namespace; at most 255 characters
}

// Class is a row of table class.
type Class struct {
	DMID        DMID
	ID          ClassID
	Name        string // at most 50 characters
	MinDevCount int
	HashType    protocol.HashType // HashNone where the column is NULL
	ReplPolicy  string            // empty where the column is NULL, which means MultipleHosts()
}

// Host states, as stored in host.status.
const (
	HostAlive    = "alive"
	HostReadonly = "readonly"
	HostDown     = "down"
	HostDead     = "dead"
)

// Device states, as stored in device.status.
const (
	DeviceAlive    = "alive"
	DeviceDrain    = "drain"
	DeviceReadonly = "readonly"
	DeviceDown     = "down"
	DeviceDead     = "dead"
)

// Host is a row of table host.
type Host struct {
	ID      HostID
	Status  string // HostAlive, ...
	Name    string // column hostname
	IP      string // column hostip
	Port    int    // column http_port
	GetPort int    // column http_get_port; 0 where NULL: the same as Port
	AltIP   string // empty where NULL
	AltMask string // netmask such as "10.0.0.0/8"; empty where NULL
}

// HostChange names the columns to write; nil fields stay as they are. An empty
// AltIP, AltMask or a zero GetPort is stored as NULL.
type HostChange struct {
	Status  *string
	IP      *string
	Port    *int
	GetPort *int
	AltIP   *string
	AltMask *string
}

// Device is a row of table device.
type Device struct {
	ID      protocol.DevID
	HostID  HostID
	Status  string // DeviceAlive, ...
	Weight  int
	TotalMB *int64 // column mb_total, in MiB; nil unknown
	UsedMB  *int64 // column mb_used, in MiB; nil unknown
	AsOf    int64  // column mb_asof, when TotalMB and UsedMB were measured; 0 never
}

// Usage is what the monitor measured of one device.
type Usage struct {
	DevID           protocol.DevID
	TotalMB, UsedMB int64 // MiB
}

// File is a row of table file: a closed file.
type File struct {
	FID      protocol.FID
	DMID     DMID
	Key      string // column dkey
	Length   int64  // bytes
	ClassID  ClassID
	DevCount int // the number of locations as last counted
}

// Tempfile is a row of table tempfile: an upload that was opened and not yet
// closed.
type Tempfile struct {
	FID        protocol.FID
	CreateTime int64 // set by the database's clock
	DMID       DMID
	Key        string // may be empty
	ClassID    ClassID
	DevIDs     []protocol.DevID // the devices offered, in order; at most 60 bytes comma-joined
}

// Close is what [Files.CloseFile] needs to turn an upload into a file.
type Close struct {
	FID      protocol.FID
	DMID     DMID
	Key      string
	Length   int64 // bytes, as found on the device
	ClassID  ClassID
	DevID    protocol.DevID    // where the bytes are
	Tried    []protocol.DevID  // devices that may have them as well: there they are queued for deletion
	Checksum protocol.Checksum // stored unless zero

	// NoOverwrite refuses the close, by protocol.ErrKeyExists, where the key
	// names a file.
	NoOverwrite bool
	// IfFID refuses the close, by protocol.ErrFIDMismatch, unless the key names
	// this fid; 0 is no file. nil is no condition.
	IfFID *protocol.FID
}

// Queue names a table of work.
type Queue int

// The queues that workers lease from.
const (
	// QueueReplicate is file_to_replicate: fids to bring to their policy.
	QueueReplicate Queue = iota + 1
	// QueueDelete is file_to_delete2: fids whose every copy must go.
	QueueDelete
	// QueueCopyDelete is copy_to_delete: single copies that must go.
	QueueCopyDelete
	// QueueFsck is file_to_queue of type 1.
	QueueFsck
	// QueueRebalance is file_to_queue of type 2.
	QueueRebalance
)

// String is the queue's name in statistics: replicate, delete, copy_delete,
// fsck, rebalance.
func (q Queue) String() string {
	switch q {
	case QueueReplicate:
		return "replicate"
	case QueueDelete:
		return "delete"
	case QueueCopyDelete:
		return "copy_delete"
	case QueueFsck:
		return "fsck"
	case QueueRebalance:
		return "rebalance"
	}
	return "unknown"
}

// EndOfTime is the nexttry of a row that is never due by itself.
const EndOfTime = 1<<31 - 1

// What names the kind of bytes in a row of copy_to_delete.
type What string

const (
	// Raw is an ordinary file, FID.fid.
	Raw What = "fid"
	// Bad is an ordinary file whose content is not what it should be: its bytes
	// are to be put aside, not deleted, where the storage daemon can.
	Bad What = "bad"
)

// Job is one leased row of a queue. NextTry is the token of the lease: it is
// the time at which the lease ends unless it is renewed, and the calls that
// finish, renew and reschedule a job apply only while the row still has it.
type Job struct {
	Queue     Queue
	FID       protocol.FID
	DevID     protocol.DevID // QueueCopyDelete and QueueRebalance; part of the row's identity in the first
	What      What           // QueueCopyDelete; part of the row's identity
	From      protocol.DevID // QueueReplicate: preferred source, 0 none
	Arg       string         // QueueRebalance: permitted destinations, comma-joined; QueueFsck: empty, or [FsckContent]
	FailCount int
	NextTry   int64 // the lease's token and end
}

// FsckContent is the Arg of a row of QueueFsck for a file of whose copies all
// content is to be read, whatever else is looked at.
const FsckContent = "content"

// QueueRow is a row of a queue as file_debug shows it.
type QueueRow struct {
	Queue     Queue
	FID       protocol.FID
	DevID     *protocol.DevID // devid, or fromdevid of QueueReplicate; nil where NULL
	What      What            // of QueueCopyDelete
	NextTry   int64
	FailCount int
	Flags     int
	Arg       *string
}

// FileDebug is all that the database knows of a fid.
type FileDebug struct {
	File     *File     // nil where there is no row
	Tempfile *Tempfile // nil where there is no row
	Devices  []protocol.DevID
	Checksum protocol.Checksum // zero where there is none
	Queues   []QueueRow
}

// Expired is what one pass over abandoned uploads did.
type Expired struct {
	Closed  int // rows whose file exists: only the row went
	Discard int // uploads queued for deletion on every device that was offered
}

// Tracker is a tracker that registered with the database.
type Tracker struct {
	Name     string
	Address  string
	Version  string
	LastSeen time.Time // the database's clock
}

// ExplicitLead is how far above the last fid of the sequence an explicit fid
// may be: the sequence is raised to it, and what lies between is lost.
const ExplicitLead = 10_000_000

// CheckExplicitFID refuses an explicit fid that is more than [ExplicitLead]
// above last, the last fid of the sequence: a single request could use up the
// fids that the columns hold. The error matches protocol.ErrFIDInUse.
func CheckExplicitFID(fid, last protocol.FID) error {
	if highest := last + ExplicitLead; fid > highest {
		return &protocol.Error{
			Code: protocol.ErrFIDInUse.Code,
			Text: fmt.Sprintf("A fid must not be so far above those in use; the highest that can be chosen now is %d", highest),
		}
	}
	return nil
}
