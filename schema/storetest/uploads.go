package storetest

import (
	"fmt"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var uploadCases = []testCase{
	{"ExpireTempfiles", checkExpire},
	{"ExpireTempfiles/limit", checkExpireLimit},
	{"Tempfile/devids", checkTempfileDevices},
}

func checkExpire(e *env) {
	abandoned := e.open("abandoned")
	nowhere, err := e.CreateTempfile(e.ctx, schema.Tempfile{DMID: e.dmid, Key: "nowhere"})
	e.must(err)
	closed := e.put("closed")
	// A crash of an older tracker between the two rows of a close.
	e.db.Exec(e, fmt.Sprintf("INSERT INTO tempfile (fid, createtime, classid, dmid, dkey, devids) VALUES (%d, 1, 0, %d, 'closed', '1,2')", closed, e.dmid))

	x, err := e.ExpireTempfiles(e.ctx, time.Hour, 100)
	e.must(err)
	e.same("only the old one", x, schema.Expired{Closed: 1})
	e.advance(50 * time.Minute)
	fresh := e.open("fresh")
	e.advance(20 * time.Minute)
	x, err = e.ExpireTempfiles(e.ctx, time.Hour, 100)
	e.must(err)
	e.same("expired", x, schema.Expired{Discard: 2})

	e.located(abandoned, devs(1, 2), nil)
	e.located(nowhere, nil, nil)
	e.located(closed, devs(1), nil)
	e.queued(schema.QueueDelete, closed, false)
	got := jobFIDs(e.claim(schema.QueueDelete))
	if len(got) != 2 {
		e.Errorf("due for deletion: %v; want %d and %d", got, abandoned, nowhere)
	}
	e.want(e.CloseFile(e.ctx, e.closing(abandoned, "abandoned")), protocol.ErrNoTempfile)
	_, err = e.Tempfile(e.ctx, closed)
	e.want(err, protocol.ErrNoTempfile)
	e.must(e.CloseFile(e.ctx, e.closing(fresh, "fresh")))
	x, err = e.ExpireTempfiles(e.ctx, time.Hour, 100)
	e.must(err)
	e.same("nothing is left", x, schema.Expired{})
}

func checkExpireLimit(e *env) {
	for i := range 5 {
		e.open(fmt.Sprint(i))
	}
	e.advance(2 * time.Hour)
	for _, want := range []int{2, 2, 1, 0} {
		x, err := e.ExpireTempfiles(e.ctx, time.Hour, 2)
		e.must(err)
		e.same("expired", x, schema.Expired{Discard: want})
	}
}

// checkTempfileDevices stores as many devices as the column holds, and no more.
func checkTempfileDevices(e *env) {
	t := e.upload("k")
	t.DevIDs = nil
	for range 10 {
		t.DevIDs = append(t.DevIDs, protocol.MaxDevID)
	}
	t.DevIDs = append(t.DevIDs, 1) // 10 x 6 bytes + "1" is 61
	if _, err := e.CreateTempfile(e.ctx, t); err == nil {
		e.Error("61 bytes of devices were taken")
	}
	t.DevIDs = t.DevIDs[:10]
	fid, err := e.CreateTempfile(e.ctx, t)
	e.must(err)
	got, err := e.Tempfile(e.ctx, fid)
	e.must(err)
	e.same("devices", got.DevIDs, t.DevIDs)
}
