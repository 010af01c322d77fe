package tools

import (
	"bytes"
	"crypto/md5"
	"reflect"
	"strings"
	"testing"
)

const emptyMD5 = "d41d8cd98f00b204e9800998ecf8427e"

func TestBigInfo(t *testing.T) {
	t.Parallel()
	f := bigInfo{Description: "a\nfilm", Type: "file", Filename: "film.mpg", Size: 11, Chunks: []bigChunk{
		{Length: 7, MD5: md5.Sum([]byte("a chunk")), Paths: []string{"http://10.0.0.1:7500/dev1/0/000/000/0000000001.fid", "http://10.0.0.2:7500/dev2/0/000/000/0000000001.fid"}},
		{Length: 4, MD5: md5.Sum([]byte("more"))},
	}}
	const want = `des a film
type file
compressed 0
filename film.mpg
chunks 2
size 11

part 1 bytes=7 md5=36c8d3cbbc7a8e0ae8ba06f5de7f82a1 paths: http://10.0.0.1:7500/dev1/0/000/000/0000000001.fid, http://10.0.0.2:7500/dev2/0/000/000/0000000001.fid
part 2 bytes=4 md5=c3b4d5e0f2c0e8ba1e3a6f0ba4e8bd4f paths: 
`
	got := string(appendBigInfo(nil, f))
	// The digests are md5's business; the rest is compared as it is written.
	if cut := func(s string) string {
		var lines []string
		for line := range strings.Lines(s) {
			if i := strings.Index(line, "md5="); i >= 0 {
				line = line[:i+4] + line[i+4+32:]
			}
			lines = append(lines, line)
		}
		return strings.Join(lines, "")
	}; cut(got) != cut(want) {
		t.Errorf("written:\n%s\nwant:\n%s", got, want)
	}
	back, err := parseBigInfo(strings.NewReader(got))
	f.Description = "a film"
	if err != nil || !reflect.DeepEqual(back, f) || !back.sameContent(f) {
		t.Errorf("read: %+v, %v", back, err)
	}
}

func TestParseBigInfo(t *testing.T) {
	t.Parallel()
	part := func(n string) string { return "part " + n + " bytes=0 md5=" + emptyMD5 + " paths: \n" }
	for text, want := range map[string]bigInfo{
		"chunks 0\nsize 0\n":     {Type: "file"},
		"chunks 1\n" + part("1"): {Type: "file", Chunks: []bigChunk{{MD5: md5.Sum(nil)}}},
		"\n\n size   0 \r\nCHUNKS 2\r\n\r\n" + part("2") + part("1") + "type tarball\ncompressed 1\nlater what comes later": {
			Type: "tarball", Compressed: true, Chunks: []bigChunk{{MD5: md5.Sum(nil)}, {MD5: md5.Sum(nil)}}},
		"chunks 1\nsize 99\ncompressed 1\npart 1 md5=" + strings.ToUpper(emptyMD5) + "  bytes=5": {
			Type: "file", Compressed: true, Size: 99, Chunks: []bigChunk{{Length: 5, MD5: md5.Sum(nil)}}},
		"chunks 1\ndes of a thing\nfilename with blanks.txt\npart 1 bytes=1 md5=" + emptyMD5 + " paths: a, b,c": {
			Type: "file", Description: "of a thing", Filename: "with blanks.txt", Size: 1, Chunks: []bigChunk{{Length: 1, MD5: md5.Sum(nil), Paths: []string{"a", "b", "c"}}}},
	} {
		if got, err := parseBigInfo(strings.NewReader(text)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n%+v, %v\nwant\n%+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"",
		"size 0",
		"chunks 1",
		"chunks x",
		"chunks -1",
		"chunks 1\n" + part("2"),
		"chunks 2\n" + part("1") + part("1"),
		"chunks 1\nchunks 1\n" + part("1"),
		"chunks 1\n" + part("0"),
		"chunks 1\nsize 5\n" + part("1"),
		"chunks 1\npart 1 bytes=-1 md5=" + emptyMD5,
		"chunks 1\npart 1 bytes=1 md5=00",
		"chunks 1\npart 1 md5=" + emptyMD5,
		"chunks 1\npart\n",
		"chunks 2\npart 1 bytes=9223372036854775807 md5=" + emptyMD5 + "\npart 2 bytes=9223372036854775807 md5=" + emptyMD5,
		"chunks 0\ncompressed perhaps",
		"chunks 0\ndes " + strings.Repeat("x", 2<<20),
	} {
		if got, err := parseBigInfo(strings.NewReader(text)); err == nil {
			t.Errorf("%.60q: %+v", text, got)
		}
	}
}

func FuzzParseBigInfo(f *testing.F) {
	f.Add([]byte("des no description\ntype file\ncompressed 0\nfilename f\nchunks 1\nsize 0\n\npart 1 bytes=0 md5=" + emptyMD5 + " paths: http://10.0.0.1:7500/dev1/0/000/000/0000000001.fid\n"))
	f.Add([]byte("chunks 2\npart 2 bytes=1 md5=" + emptyMD5 + "\npart 1 md5=" + emptyMD5 + " bytes=0 paths: , ,"))
	f.Add([]byte("size 9\nchunks 0\ncompressed 1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := parseBigInfo(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := parseBigInfo(bytes.NewReader(appendBigInfo(nil, info)))
		if err != nil {
			t.Fatalf("%+v is not read back: %v", info, err)
		}
		if !again.sameContent(info) || again.Size != info.Size {
			t.Errorf("%+v is read back as %+v", info, again)
		}
	})
}

func TestBigSpans(t *testing.T) {
	t.Parallel()
	f := bigInfo{Chunks: []bigChunk{{Length: 10}, {Length: 0}, {Length: 10}, {Length: 5}}}
	for _, c := range []struct {
		off, n int64
		want   []span
	}{
		{0, -1, []span{{0, 0, 10}, {2, 0, 10}, {3, 0, 5}}},
		{0, 1, []span{{0, 0, 1}}},
		{9, 2, []span{{0, 9, 1}, {2, 0, 1}}},
		{10, 10, []span{{2, 0, 10}}},
		{12, 100, []span{{2, 2, 8}, {3, 0, 5}}},
		{24, -1, []span{{3, 4, 1}}},
		{25, -1, nil},
		{99, 1, nil},
		{3, 0, nil},
	} {
		if got := f.spans(c.off, c.n); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%d bytes from %d: %v, want %v", c.n, c.off, got, c.want)
		}
	}
}
