// Package volume keeps files on devices: the dev<N> folders of a storage
// host's docroot, each usually a disk of its own.
//
// # Promises
//
// A nil error of [Upload.Commit], [Update.Commit] or [Volume.Remove] means that
// the content, its name and every directory above it are on disk (unless
// [DurabilityNone] was asked for). A name that was committed has its complete
// content at all times: it is written nameless, flushed, and only then linked.
// [Update] is the exception: it writes in place, as Content-Range uploads do in
// MogileFS 2.73.
//
// # How a file lands
//
//  1. The content is written to a nameless file (O_TMPFILE) in its directory,
//     or, where the filesystem has none, to .mogile/tmp/<token>/<number>.
//  2. Length and CRC32C of the whole content are stored in an extended
//     attribute, and the file is flushed.
//  3. It is linked to its name. Where the name exists already it is linked
//     beside, below .mogile/tmp, and renamed over it.
//  4. The directory is flushed, and those above it that this process has not
//     yet flushed.
//
// Flushes of one directory are shared by all who wait for it. A volume that has
// its filesystem to itself, on Linux 5.8 or later, shares one syncfs(2) for both
// contents and names instead.
//
// After a failed flush nothing is flushed again and believed: the kernel throws
// pages away that it could not write, and tells so once. If the flush was of one
// file, its upload fails, and it goes. If it was of a directory or a whole
// filesystem, every upload fails that is not yet acknowledged, and the device
// takes no more writes until it is opened anew ([ErrFlush]); it is still read. A
// name that was linked already goes, unless it had replaced an older content,
// when the new content (which is complete) stays.
//
// # A folder's own files
//
// .mogile/device says which device this is ([Identity]). .mogile/tmp/<token>/
// belongs to one running process, which holds a lock (flock) on it; what dead
// processes left there is removed when the volume is opened. .mogile/trash/<hour>/
// has what [Volume.Trash] took out of service. Names below .mogile are refused
// to everybody else.
//
// # Sick disks
//
// System calls on a dying disk can hang for ever. Therefore each runs in a
// goroutine of the volume that holds one of its I/O slots, and the caller waits
// for it no longer than its context, or than [Options].StuckAfter without any
// sign of life from the disk. A call that returns after its caller went away is
// undone. While all slots are stuck the volume answers [ErrSick] at once and
// starts nothing. Other volumes do not notice.
//
// # Many uploads
//
// An upload of more than 64 KiB has one of [Options].Uploads places from when
// the first 64 KiB of it came. Who finds none waits in a row, and is answered
// [ErrBusy] after StuckAfter. Small uploads need no place: nothing of them
// reaches the disk before they are complete.
package volume
