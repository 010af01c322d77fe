package tools

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

// straysOn are the files on devices of a tracker that answers "strays": fid and
// kind by device.
type straysOn map[string][]string

// answer is a page of one stray at a time, among a hundred files each.
func (s straysOn) answer(t *testing.T, req protocol.Request) *protocoltest.Reply {
	if req.Command != "strays" {
		return nil
	}
	dev := req.Args.Get("devid")
	all, known := s[dev]
	if !known {
		return &protocoltest.Reply{Err: &protocol.Error{Code: "no_orders", Text: "dev" + dev + " cannot be listed"}}
	}
	if req.Args.Get("age") != "86400" {
		t.Errorf("asked with age %s", req.Args.Get("age"))
	}
	at := int(req.Args.Number("after"))
	var a protocol.Args
	next := ""
	if at+1 < len(all) {
		next = fmt.Sprint(at + 1)
	}
	a.Add("next", next)
	for _, n := range []string{"files", "bytes", "young", "pending", "foreign", "unreadable"} {
		a.AddInt(n, map[string]int64{"files": 100, "bytes": 4096, "young": 1}[n])
	}
	if at >= len(all) {
		a.AddInt("strays", 0)
		return &protocoltest.Reply{Fields: a}
	}
	fid, kind, _ := strings.Cut(all[at], " ")
	a.AddInt("strays", 1)
	a.Add("stray1_fid", fid)
	a.AddInt("stray1_size", 10)
	a.AddInt("stray1_mtime", 1_700_000_000)
	a.Add("stray1_kind", kind)
	if req.Args.True("delete") {
		switch kind {
		case "gone", "copy":
			a.Add("stray1_result", "trashed")
			a.Add("stray1_note", "there")
		default:
			a.Add("stray1_result", "kept")
		}
	}
	return &protocoltest.Reply{Fields: a}
}

func TestStrays(t *testing.T) {
	for name, tt := range map[string]struct {
		on      straysOn
		args    []string
		code    int
		want    []string // in what it writes
		not     []string
		deletes int // requests that delete
	}{
		"none": {
			on:   straysOn{"1": nil, "2": nil},
			want: []string{"all: strays: 0 (0 B) in 200 files (8.0 KiB), 2 too young to tell\n"},
		},
		"one device": {
			on: straysOn{"1": nil, "2": {"42 gone"}}, args: []string{"--device", "2"},
			want: []string{"2023-11-14T22:13:20Z  gone      dev2/0/000/000/0000000042.fid\n", "dev2: strays: 1 (10 B) in 100 files"},
			not:  []string{"all:"},
		},
		"every kind": {
			on:   straysOn{"1": {"42 gone", "43 rescue", "44 doubtful"}, "2": {"45 copy", "1099511627776 above"}},
			want: []string{"dev1: strays: 3", "dev2: strays: 2", "all: strays: 5 (50 B) in 500 files", "note: 1 files have no copy that is known to be good but one", "restored from an old backup"},
		},
		"JSON": {
			on: straysOn{"1": {"42 gone"}, "2": nil}, args: []string{"--json"},
			want: []string{`{"device":1,"fid":42,"size":10,"mtime":1700000000,"kind":"gone","path":"dev1/0/000/000/0000000042.fid"}` + "\n",
				`{"files":200,"bytes":8192,"strays":1,"stray_bytes":10,"kinds":{"gone":1},"young":2,"pending":0,"foreign":0,"unreadable":0}` + "\n"},
		},
		"a device that cannot be listed": {
			on: straysOn{"1": {"42 gone"}}, code: exitFailed,
			want: []string{"gone      dev1/", "mogtool: strays: strays on dev2: no_orders: dev2 cannot be listed\n"},
		},
		"no such device": {on: straysOn{}, args: []string{"--device", "77"}, code: exitFailed, want: []string{"there is no device 77"}},
		"nonsense":       {on: straysOn{}, args: []string{"--age", "-1h"}, code: exitUsage, want: []string{"--age"}},
		"more than all":  {on: straysOn{}, args: []string{"--up-to", "101"}, code: exitUsage, want: []string{"--up-to"}},
		"nobody to ask": {
			on: straysOn{"1": {"42 gone"}, "2": nil}, args: []string{"--delete"}, code: exitFailed,
			want: []string{"there are 1 strays on 1 devices, and nobody can be asked", "--yes"}, not: []string{"dev1/0/000"},
		},
		"deleted": {
			on: straysOn{"1": {"42 gone"}, "2": {"43 rescue"}}, args: []string{"--delete", "--yes"},
			want: []string{"dev1/0/000/000/0000000042.fid  trashed: there\n", "all: strays: 2 (20 B) in 200 files (8.0 KiB), 1 moved to the trash"}, deletes: 1,
		},
		"too many": {
			on: straysOn{"1": {"42 gone"}, "2": {"42 gone", "43 gone", "44 gone"}}, args: []string{"--delete", "--yes", "--up-to", "0.5"}, code: exitFailed,
			want: []string{"dev1: 1 of 100 files (1 %) are strays", "--up-to 1.01", "dev2: 3 of 300 files"}, not: []string{"trashed"},
		},
		"as many as were permitted": {
			on: straysOn{"1": {"42 gone"}, "2": nil}, args: []string{"--delete", "--yes", "--up-to", "1.01"},
			want: []string{"trashed"}, deletes: 1,
		},
		"a database that is too old": {
			on: straysOn{"1": {"42 gone", "1099511627776 above"}, "2": nil}, args: []string{"--delete", "--yes"}, code: exitFailed,
			want: []string{"dev1: 1 files have numbers above the highest"}, not: []string{"trashed"},
		},
		"a database that is too old, and known to be": {
			on: straysOn{"1": {"42 gone", "1099511627776 above"}, "2": nil}, args: []string{"--delete", "--yes", "--up-to", "1"},
			want: []string{"1 moved to the trash, 1 kept"}, deletes: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := protocoltest.NewCluster(t, 1, 2)
			deletes := 0
			cluster.Before(func(req protocol.Request) *protocoltest.Reply {
				if req.Args.True("delete") {
					deletes++
				}
				return tt.on.answer(t, req)
			})
			code, stdout, stderr := run(t.Context(), cluster, append([]string{"fsck", "strays"}, tt.args...)...)
			if code != tt.code || deletes != tt.deletes {
				t.Errorf("exit code %d, want %d; %d requests to delete, want %d", code, tt.code, deletes, tt.deletes)
			}
			for _, want := range tt.want {
				if !strings.Contains(stdout+stderr, want) {
					t.Errorf("it does not say %q:\n%s%s", want, stdout, stderr)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(stdout+stderr, not) {
					t.Errorf("it says %q:\n%s%s", not, stdout, stderr)
				}
			}
		})
	}
}

// A tracker that does not know the command is told from a device's trouble.
func TestStraysOfOldTracker(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	code, _, stderr := run(t.Context(), cluster, "fsck", "strays")
	if code != exitFailed || !strings.Contains(stderr, "older version") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
