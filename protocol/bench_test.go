package protocol_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

func BenchmarkParseRequest(b *testing.B) {
	line := "get_paths domain=toast&key=photos/2026/11/22/cat%20%26+dog.jpg&noverify=1&zone=&pathcount=2"
	b.ReportAllocs()
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if _, err := protocol.ParseRequest(line); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendOK(b *testing.B) {
	fields := protocol.Args{{"paths", "2"},
		{"path1", "http://10.0.0.3:7500/dev3/0/000/000/0000000042.fid"},
		{"path2", "http://10.0.0.1:7500/dev1/0/000/000/0000000042.fid"}}
	buf := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		buf = protocol.AppendOK(buf[:0], fields)
	}
}

func BenchmarkParseReply(b *testing.B) {
	for _, c := range []struct{ name, line string }{
		{"get_paths", "OK paths=2&path1=http://10.0.0.3:7500/dev3/0/000/000/0000000042.fid&path2=http://10.0.0.1:7500/dev1/0/000/000/0000000042.fid"},
		{"list_fids", longReply()},
		{"refusal", "ERR none_match No+keys+match+that+pattern+and+after-value+%28if+any%29."},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(c.line)))
			for b.Loop() {
				_, _ = protocol.ParseReply(c.line)
			}
		})
	}
}

// longReply is the longest that servers send: list_fids of 500 fids.
func longReply() string {
	fields := protocol.Args{{"fid_count", "500"}}
	for i := range 500 {
		p := fmt.Sprintf("fid_%d_", i+1)
		fields.Add(p+"fid", "123456789")
		fields.Add(p+"domain", "toast")
		fields.Add(p+"class", "default")
		fields.Add(p+"key", fmt.Sprintf("photos/2026/cat %d.jpg", i))
		fields.Add(p+"length", "1048576")
		fields.Add(p+"devcount", "2")
	}
	return "OK " + fields.String()
}

func BenchmarkEscape(b *testing.B) {
	for _, c := range []struct{ name, s string }{{"plain", "photos/2026/11/22/cat.jpg"}, {"mixed", "Fotos 2026/Kätzchen & Hund.jpg"}} {
		b.Run(c.name, func(b *testing.B) {
			buf := make([]byte, 0, 256)
			b.ReportAllocs()
			for b.Loop() {
				buf = protocol.AppendEscaped(buf[:0], c.s)
			}
		})
	}
}

func BenchmarkFIDPath(b *testing.B) {
	buf := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		buf = protocol.FID(1234567890).AppendPath(buf[:0], 42)
	}
}

func BenchmarkParsePath(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := protocol.ParsePath("/dev42/1/234/567/1234567890.fid"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClientDo is a request to a tracker that does nothing, over loopback.
func BenchmarkClientDo(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			tr := protocoltest.NewTracker(b, echo, nil)
			c := newClient(b, protocol.ClientOptions{Trackers: []string{tr.Addr()}, MaxConns: clients})
			args := protocol.Args{{"domain", "toast"}, {"key", "photos/2026/cat.jpg"}, {"noverify", "1"}}
			b.ReportAllocs()
			b.SetParallelism(clients)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := c.Do(b.Context(), "get_paths", args); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkClientFiles stores and reads files, against a cluster in memory.
func BenchmarkClientFiles(b *testing.B) {
	cluster := protocoltest.NewCluster(b, 1, 1)
	c := newClient(b, protocol.ClientOptions{Trackers: cluster.Addrs()})
	for _, size := range []int{4 << 10, 8 << 20} {
		content := pattern(size)
		b.Run(fmt.Sprintf("create/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := c.Create(b.Context(), "test", "k", protocol.CreateOptions{}, bytes.NewReader(content)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("open/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				r, err := c.Open(b.Context(), "test", "k")
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != int64(size) {
					b.Fatal(n, err)
				}
				r.Close()
			}
		})
	}
}
