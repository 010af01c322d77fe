package storaged

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

var benchSizes = []int{0, 4 << 10, 64 << 10, 1 << 20, 8 << 20}

// benchmark runs do on connections that are kept, as many as parallel says for
// each core, and reports what a client has of it.
func benchmark(b *testing.B, parallel, size int, do func(hc *http.Client) error) {
	hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1 << 10, WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10}}
	defer hc.CloseIdleConnections()
	b.SetBytes(int64(size))
	b.SetParallelism(parallel)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := do(hc); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// exchange sends a request whose answer must have that status and size.
func exchange(hc *http.Client, method, url string, body []byte, status int, size int64) error {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != status || n != size {
		return fmt.Errorf("%s %s: %s, %d bytes", method, url, res.Status, n)
	}
	return nil
}

func BenchmarkPut(b *testing.B) {
	for _, durability := range []volume.Durability{volume.DurabilityFsync, volume.DurabilityNone} {
		for _, size := range benchSizes {
			for _, parallel := range []int{1, 16} {
				b.Run(fmt.Sprintf("%v/size=%d/parallel=%d", durability, size, parallel), func(b *testing.B) {
					d := start(b, Options{Durability: durability}, 1)
					url := "http://" + d.HTTPAddr().String() + "/"
					body := pattern(size)
					var fid atomic.Uint64
					benchmark(b, parallel, size, func(hc *http.Client) error {
						// The disk is not to fill up: fids come again.
						path := protocol.FID(fid.Add(1)%256 + 1).Path(1)
						return exchange(hc, http.MethodPut, url+path, body, http.StatusCreated, 0)
					})
				})
			}
		}
	}
}

func BenchmarkGet(b *testing.B) {
	d := start(b, Options{}, 1)
	for i, size := range benchSizes {
		path := "/" + protocol.FID(i+1).Path(1)
		d.put(path, string(pattern(size)))
		url := "http://" + d.HTTPAddr().String() + path
		for _, parallel := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("size=%d/parallel=%d", size, parallel), func(b *testing.B) {
				benchmark(b, parallel, size, func(hc *http.Client) error {
					return exchange(hc, http.MethodGet, url, nil, http.StatusOK, int64(size))
				})
			})
		}
	}
}

func BenchmarkSize(b *testing.B) {
	d := start(b, Options{}, 1)
	d.put(fid42, "hello world")
	c := d.side()
	if err := c.SetDeadline(time.Time{}); err != nil {
		b.Fatal(err)
	}
	request := []byte("size " + fid42 + "\r\n")
	for b.Loop() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		if got := c.line(); got != fid42+" 11" {
			b.Fatal(got)
		}
	}
}
