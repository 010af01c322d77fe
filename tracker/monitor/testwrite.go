package monitor

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
)

const (
	// testNames is among how many names a test write chooses (MogileFS 2.73):
	// trackers that write at the same time seldom meet.
	testNames = 100
	// testTries is how often it is tried where they do.
	testTries = 2
	// testLimit bounds what is read back, in bytes.
	testLimit = 1 << 10
)

var errTestDiffers = errors.New("what was written is not what is read back")

// testWrite finds out whether a device can be written to, and what was written
// read back through the port that files are read from. It is readable where
// not, for the reason that is returned.
func (m *Monitor) testWrite(ctx context.Context, d *cluster.Device) (cluster.DeviceState, error) {
	for range testTries {
		n := m.roll(testNames)
		path := "/test-write/test-write-" + strconv.Itoa(n)
		body := fmt.Sprintf("time=%d rand=%d", m.o.Now().Unix(), n)
		if err := m.put(ctx, deviceURL(d, d.Host.Port, path), []byte(body), nil); err != nil {
			return cluster.DeviceReadable, err
		}
		got, _, err := m.get(ctx, deviceURL(d, d.Host.ReadPort(), path), testLimit)
		if err != nil {
			return cluster.DeviceReadable, err
		}
		if string(got) == body {
			return cluster.DeviceWriteable, nil
		}
	}
	return cluster.DeviceReadable, errTestDiffers
}

// testMD5 finds out whether the device's daemon refuses a PUT with a wrong
// Content-MD5. It is nil where that cannot be said.
func (m *Monitor) testMD5(ctx context.Context, d *cluster.Device) *bool {
	wrong := md5.Sum([]byte("!"))
	err := m.put(ctx, deviceURL(d, d.Host.Port, "/test-write/test-md5"), []byte("."),
		http.Header{"Content-Md5": {base64.StdEncoding.EncodeToString(wrong[:])}})
	var status *storage.StatusError
	rejects := errors.As(err, &status) && status.Status/100 == 4
	if err != nil && !rejects {
		return nil
	}
	return &rejects
}

// put writes a small file, and the directories above it.
func (m *Monitor) put(ctx context.Context, url string, body []byte, h http.Header) error {
	within, cancel := context.WithTimeout(ctx, m.o.ConnTimeout)
	defer cancel()
	if err := m.o.Storage.MakeDirs(within, url); err != nil {
		// Most daemons make them by themselves. If this one does not, the PUT
		// fails and says so.
		m.o.Log.Debug().Str("url", url).Err(err).Msg("directories for a test write could not be made")
	}
	return m.o.Storage.Put(within, url, body, h)
}
