package tracker_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// inventory answers orders about what is on a device.
func (h *fakeHost) inventory(w http.ResponseWriter, body []byte) {
	o, err := protocol.ParseOrder(body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	device := "/dev" + o.Args.Get("devid") + "/"
	answer := func(kind protocol.AnswerKind, fields protocol.Args) {
		_, _ = w.Write(protocol.AnswerLine{Kind: kind, Fields: fields}.Append(nil))
	}
	switch o.Verb {
	case protocol.VerbList:
		for path, content := range h.files {
			if _, fid, err := protocol.ParsePath(path); err == nil && strings.HasPrefix(path, device) {
				f := protocol.StoredFile{FID: fid, Size: int64(len(content)), ModTime: time.Unix(1_700_000_000, 0)}
				answer(protocol.AnswerItem, protocol.Args{{Name: "file", Value: f.String()}})
			}
		}
		answer(protocol.AnswerOK, protocol.Listing{Now: time.Now(), Foreign: 1}.Args())
	case protocol.VerbTrash:
		t, err := protocol.ParseTrashOrder(o.Args)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		for _, f := range t.Files {
			delete(h.files, "/"+f.FID.Path(t.Dev))
			answer(protocol.AnswerItem, protocol.TrashResult{FID: f.FID, What: protocol.Trashed, To: "there"}.Args())
		}
		answer(protocol.AnswerOK, nil)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// TestStraysCommand: what lies on a device without a row is told, and goes when
// it is asked for.
func TestStraysCommand(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.talk([]exchange{
		{"strays", "no_device"},
		{"strays devid=0", "no_device"},
		{"strays devid=99999", "no_device"},
		{"strays devid=77", "no_device"},
		{"strays devid=1&age=-1", "bad_params"},
		{"strays devid=1&age=1d", "bad_params"},
		{"strays devid=1", "no_orders"}, // a daemon of another make
	})
	for _, h := range e.farm.hosts {
		h.orders.Store(true)
	}
	c.store("kept", "content", "&fid=5000")
	const stray = protocol.FID(42)
	host := e.farm.hosts[0]
	host.mu.Lock()
	host.files["/"+stray.Path(1)] = []byte("stray")
	host.files["/"+protocol.FID(1<<40).Path(1)] = []byte("above")
	host.mu.Unlock()
	cl, err := protocol.NewClient(protocol.ClientOptions{Trackers: []string{e.tracker.Addrs()[0].String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	page, err := cl.Strays(t.Context(), protocol.StrayQuery{Dev: 1, Age: time.Hour})
	if err != nil || len(page.Strays) != 2 || page.Next != "" || page.Foreign != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	for _, s := range page.Strays {
		want := protocol.Stray{FID: stray, Size: 5, ModTime: time.Unix(1_700_000_000, 0), Kind: "gone"}
		if s.FID != stray {
			want.FID, want.Kind = 1<<40, "above"
		}
		if s != want {
			t.Errorf("%+v, want %+v", s, want)
		}
	}
	page, err = cl.Strays(t.Context(), protocol.StrayQuery{Dev: 1, Age: time.Hour, Limit: 10, Delete: true})
	if err != nil || len(page.Strays) != 2 {
		t.Fatalf("%+v, %v", page, err)
	}
	for _, s := range page.Strays {
		if want := map[string]string{"gone": "trashed", "above": "kept"}[s.Kind]; s.Result != want {
			t.Errorf("%+v, want %s", s, want)
		}
	}
	host.mu.Lock()
	defer host.mu.Unlock()
	if _, there := host.files["/"+stray.Path(1)]; there {
		t.Error("the stray is still there")
	}
}
