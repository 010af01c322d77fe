package storaged

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// inventory gives an order, and returns its lines.
func (d *daemon) inventory(verb string, args protocol.Args) (items []protocol.Args, end protocol.AnswerLine) {
	d.t.Helper()
	status, lines := give(d.t, d.HTTPAddr(), verb, protocol.NewOrder(verb, time.Now(), time.Minute, args).Sign(testKey))
	if status != http.StatusOK || len(lines) == 0 {
		d.t.Fatalf("%s: status %d, %d lines", verb, status, len(lines))
	}
	for _, l := range lines[:len(lines)-1] {
		if l.Kind == protocol.AnswerItem {
			items = append(items, l.Fields)
		}
	}
	return items, lines[len(lines)-1]
}

// listAll lists a device, a few files at a time.
func (d *daemon) listAll(dev protocol.DevID, limit int) (files []protocol.StoredFile, last protocol.Listing) {
	d.t.Helper()
	for {
		items, end := d.inventory(protocol.VerbList, protocol.ListOrder{Dev: dev, After: last.Next, Limit: limit, Shards: true}.Args())
		if end.Kind != protocol.AnswerOK {
			d.t.Fatalf("list: %v", end.Err)
		}
		for _, i := range items {
			f, err := protocol.ParseStoredFile(i.Get("file"))
			if err != nil {
				d.t.Fatal(err)
			}
			files = append(files, f)
		}
		foreign := last.Foreign
		var err error
		if last, err = protocol.ParseListing(end.Fields); err != nil {
			d.t.Fatal(err)
		}
		if last.Foreign += foreign; last.Next == "" {
			return files, last
		}
	}
}

// TestListAndTrash: a tracker learns what is on a device, and has files moved to
// the trash that are still as it was told.
func TestListAndTrash(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClusterKeys: [][]byte{testKey}, ClusterID: "here"}, 1)
	path := func(fid protocol.FID) string { return "/" + fid.Path(1) }
	for _, fid := range []protocol.FID{1, 2, 1001, 5000000} {
		d.put(path(fid), strings.Repeat("x", int(fid%10)))
	}
	if err := os.WriteFile(filepath.Join(d.docroot, "dev1", "note.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	files, last := d.listAll(1, 3)
	if fmt.Sprint(files[0].FID, files[1].FID, files[2].FID, files[3].FID) != "1 2 1001 5000000" || len(files) != 4 {
		t.Fatalf("listed %v", files)
	}
	if last.Foreign != 1 || last.Unreadable != 0 || last.Cluster != "here" || len(last.UUID) != 36 || last.Now.Before(began.Add(-time.Minute)) {
		t.Errorf("%+v", last)
	}
	d.put(path(2), "rewritten")
	items, end := d.inventory(protocol.VerbTrash, protocol.TrashOrder{Dev: 1, Files: []protocol.StoredFile{
		files[0], files[1], {FID: 7}, {FID: 1001},
	}}.Args())
	if end.Kind != protocol.AnswerOK {
		t.Fatal(end.Err)
	}
	var got []string
	for _, i := range items {
		r, err := protocol.ParseTrashResult(i)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%d %s", r.FID, r.What))
		if r.What == protocol.Trashed {
			if _, err := os.Stat(filepath.Join(d.docroot, "dev1", r.To)); err != nil {
				t.Error(err)
			}
		}
	}
	if want := "1 trashed, 2 changed, 7 missing, 1001 trashed"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
	for fid, status := range map[protocol.FID]int{1: 404, 2: 200, 1001: 404, 5000000: 200} {
		if r := d.get(path(fid)); r.StatusCode != status {
			t.Errorf("fid %d: %s", fid, r.Status)
		}
	}
	if n := metric(t, d, "mogile_storaged_trashed_files_total"); n != 2 {
		t.Errorf("%v files counted", n)
	}

	// Shards are told from copies; a bare fid has both.
	for _, fid := range []protocol.FID{2, 8} {
		name := filepath.Join(d.docroot, fid.ShardPath(1))
		if err := os.WriteFile(name, []byte("shard"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, _ = d.listAll(1, 1)
	if fmt.Sprint(files[0].FID, files[0].Shard, files[1].FID, files[1].Shard, files[2].FID, files[2].Shard) != "2 false 2 true 8 true" || len(files) != 4 {
		t.Fatalf("listed %v", files)
	}
	items, end = d.inventory(protocol.VerbList, protocol.ListOrder{Dev: 1, Limit: 10}.Args())
	if l, err := protocol.ParseListing(end.Fields); err != nil || len(items) != 2 || l.Foreign != 3 {
		t.Errorf("a tracker that knows of no shards is told %v, %+v, %v", items, l, err)
	}
	files[2].Size++
	items, _ = d.inventory(protocol.VerbTrash, protocol.TrashOrder{Dev: 1, Files: []protocol.StoredFile{{FID: 2}, files[2], {FID: 9}}}.Args())
	got = got[:0]
	for _, i := range items {
		r, err := protocol.ParseTrashResult(i)
		got = append(got, fmt.Sprint(r.FID, r.What, r.Shard, strings.Count(r.To, "trash/"), err))
	}
	if want := "2trashedfalse 2 <nil>, 8changedtrue 0 <nil>, 9missingfalse 0 <nil>"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
	files[2].Size--
	items, _ = d.inventory(protocol.VerbTrash, protocol.TrashOrder{Dev: 1, Files: files[2:3]}.Args())
	if r, err := protocol.ParseTrashResult(items[0]); err != nil || r.What != protocol.Trashed || !r.Shard || !strings.HasSuffix(r.To, "/0000000008.ec") {
		t.Errorf("%+v, %v", r, err)
	}

	for _, tt := range []struct {
		verb string
		args protocol.Args
		code string
	}{
		{protocol.VerbList, protocol.ListOrder{Dev: 2, Limit: 1}.Args(), "no_device"},
		{protocol.VerbTrash, protocol.TrashOrder{Dev: 2, Files: []protocol.StoredFile{{FID: 1}}}.Args(), "no_device"},
		{protocol.VerbList, protocol.ListOrder{Dev: 1, Limit: 1, After: "x"}.Args(), "bad_order"},
		{protocol.VerbList, nil, "bad_order"},
		{protocol.VerbTrash, nil, "bad_order"},
	} {
		if _, end := d.inventory(tt.verb, tt.args); end.Kind != protocol.AnswerErr || end.Err.Code != tt.code {
			t.Errorf("%s %v: %v", tt.verb, tt.args, end)
		}
	}
}

// A device of another cluster is not listed; a disk that fails is told from
// files that do.
func TestListTroubles(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{ClusterKeys: [][]byte{testKey}}, 1)
	d.put("/dev1/0/000/000/0000000001.fid", "x")
	d.put("/dev1/0/000/000/0000000002.fid", "x")
	clear := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpLink, simdisk.OpRename}, Path: docrootSim + "/dev1/.mogile/trash"})
	items, end := d.inventory(protocol.VerbTrash, protocol.TrashOrder{Dev: 1, Files: []protocol.StoredFile{{FID: 1}, {FID: 2}}}.Args())
	if r, err := protocol.ParseTrashResult(items[0]); err != nil || r.What != protocol.TrashFailed || r.To == "" || len(items) != 2 || end.Kind != protocol.AnswerOK {
		t.Errorf("%+v, %v, %v", r, err, end)
	}
	clear()
	clear = disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpList}, Path: docrootSim + "/dev1"})
	if _, end := d.inventory(protocol.VerbList, protocol.ListOrder{Dev: 1, Limit: 10}.Args()); end.Kind != protocol.AnswerErr || end.Err.Code != "failure" {
		t.Errorf("a folder that cannot be read: %v", end)
	}
	clear()
	if files, _ := d.listAll(1, 1); len(files) != 2 {
		t.Errorf("listed %v", files)
	}

	strange := t.TempDir()
	dir := filepath.Join(strange, "dev1", ".mogile")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "device"), []byte("mogile device 1\ncluster there\ndevice 1\nuuid 0d6dcb6c-3b4c-4d63-9a2e-2f3f0c6d7d55\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := start(t, Options{Docroot: strange, ClusterKeys: [][]byte{testKey}, ClusterID: "here"})
	if _, end := other.inventory(protocol.VerbList, protocol.ListOrder{Dev: 1, Limit: 10}.Args()); end.Kind != protocol.AnswerErr || end.Err.Code != "device_refused" {
		t.Errorf("a device of another cluster: %v", end)
	}
}

// What has been in the trash for a week goes when the daemon starts.
func TestTrashIsEmptied(t *testing.T) {
	t.Parallel()
	docroot := t.TempDir()
	old := filepath.Join(docroot, "dev1/.mogile/trash/1600000000/0000000001.fid")
	fresh := filepath.Join(docroot, "dev1/.mogile/trash", fmt.Sprint(time.Now().Unix()), "0000000002.fid")
	for _, p := range []string{old, fresh} {
		if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := start(t, Options{Docroot: docroot})
	eventually(t, "the old file goes", func() bool {
		_, err := os.Stat(filepath.Dir(old))
		return os.IsNotExist(err) && metric(t, d, "mogile_storaged_trash_removed_files_total") == 1
	})
	if _, err := os.Stat(fresh); err != nil {
		t.Error(err)
	}
}
