package tools

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

func fileCommands() []*cli.Command {
	return []*cli.Command{
		command("put", "store a file", "FILE [KEY]",
			`mogtool put cat.jpg cat               store cat.jpg under the key cat
mogtool put cat.jpg                   the key is the file's name
tar c dir | mogtool put - dir.tar     "-" is standard input
mogtool put --class thumbs --verify cat.jpg cat
mogtool put -r photos                 all files below photos, under keys photos/…
mogtool put -r photos old/photos      under keys old/photos/…
mogtool put --big film.mpg            in chunks`,
			need{1, 2, true}, slices.Concat(treeFlags(), compareFlags(), []cli.Flag{
				&cli.StringFlag{Name: "class", Usage: "`CLASS` of the file; without, the default class"},
				&cli.BoolFlag{Name: "verify", Usage: "have the stored bytes read back and compared (MD5)", DisableDefaultText: true},
				&cli.BoolFlag{Name: "no-clobber", Aliases: []string{"n"}, Usage: "keep what a key has already", DisableDefaultText: true},
				&cli.DurationFlag{Name: "wait", Usage: "wait up to `TIME`, such as 30s, until the file has all its copies"},
				&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "store a directory", DisableDefaultText: true},
				&cli.BoolFlag{Name: "big", Usage: "store in chunks, as MogileFS's mogtool does", DisableDefaultText: true},
				&cli.StringFlag{Name: "chunk-size", Usage: "`BYTES` of each chunk, such as 64M", Value: "64M"},
			}), put),
		command("get", "fetch a file", "KEY [FILE]",
			`mogtool get cat cat.jpg               fetch the key cat into cat.jpg
mogtool get photos/cat                into ./cat
mogtool get dir.tar - | tar x         "-" is standard output
mogtool get -r photos                 keys photos/… into the directory photos
mogtool get -r photos/2024 backup     keys photos/2024/… into backup`,
			need{1, 2, true}, slices.Concat(treeFlags(), compareFlags(), []cli.Flag{
				&cli.BoolFlag{Name: "verify", Usage: "read back what was written, and compare; with -r, also what is there already", DisableDefaultText: true},
				&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "fetch all keys under a prefix", DisableDefaultText: true},
			}), get),
		command("cat", "write files to standard output", "KEY…",
			`mogtool cat readme license            one after the other
mogtool cat --range 0-99 log          the first 100 bytes
mogtool cat --range 1000- log         all from byte 1000
mogtool cat --range -500 log          the last 500 bytes`,
			need{1, -1, true}, []cli.Flag{
				&cli.StringFlag{Name: "range", Usage: "`FIRST-LAST` bytes only, from 0; FIRST- is all from there, -COUNT the last"},
			}, cat),
		command("ls", "list keys", "[PREFIX]",
			`mogtool ls                            all keys, in byte order
mogtool ls -l photos/                 with class, length and copies
mogtool ls --after photos/m --limit 10`,
			need{0, 1, true}, []cli.Flag{
				&cli.BoolFlag{Name: "long", Aliases: []string{"l"}, Usage: "also fid, class, length and copies (one request a key)", DisableDefaultText: true},
				&cli.StringFlag{Name: "after", Usage: "begin behind `KEY`"},
				&cli.IntFlag{Name: "limit", Usage: "at most `N` keys"},
				&cli.BoolFlag{Name: "big", Usage: "list the files that are stored in chunks, under their own keys", DisableDefaultText: true},
			}, ls),
		command("rm", "delete files", "KEY…",
			`mogtool rm cat dog
mogtool rm --force cat                a missing key is no error`,
			need{1, -1, true}, []cli.Flag{
				&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "a missing key is no error", DisableDefaultText: true},
			}, rm),
		command("mv", "rename a key", "FROM TO",
			`mogtool mv cat old/cat`,
			need{2, 2, true}, nil, mv),
		command("info", "describe files", "KEY…",
			`mogtool info cat
mogtool --json info cat | jq .length`,
			need{1, -1, true}, nil, info),
		command("paths", "print the URLs where a file can be read", "KEY",
			`curl -s $(mogtool paths cat | head -n 1)
mogtool paths --noverify cat          without a look at the first device`,
			need{1, 1, true}, []cli.Flag{
				&cli.BoolFlag{Name: "noverify", Usage: "do not have the tracker check the first path", DisableDefaultText: true},
				&cli.IntFlag{Name: "count", Usage: "at most `N` paths", Value: 8},
			}, paths),
		command("updateclass", "move files to another class", "CLASS KEY…",
			`mogtool updateclass important cat     copies are made or removed later`,
			need{2, -1, true}, nil, updateClass),
		command("debug", "print all that trackers know of a file, queues included", "[KEY]",
			`mogtool debug cat
mogtool debug --fid 42`,
			need{0, 1, false}, []cli.Flag{
				&cli.Int64Flag{Name: "fid", Usage: "`FID` instead of a key"},
			}, debug),
		syncCommand(), duCommand(), touchClassCommand(),
	}
}

type storedJSON struct {
	Key      string         `json:"key"`
	FID      protocol.FID   `json:"fid"`
	Length   int64          `json:"length"`
	Checksum string         `json:"checksum,omitempty"`
	DevID    protocol.DevID `json:"devid,omitempty"`
	Path     string         `json:"path,omitempty"`
}

func put(s *session, args []string) error {
	if wait := s.Duration("wait"); s.IsSet("wait") {
		switch {
		case s.Bool("recursive") || s.Bool("big"):
			return usageError(s.Context, "put: --wait is for single files")
		case wait < time.Second || wait > time.Hour:
			return usageError(s.Context, "put: --wait must be from 1s to 1h")
		}
	}
	if s.Bool("recursive") {
		if s.Bool("big") {
			return usageError(s.Context, "put: --big and --recursive exclude each other")
		}
		return putTree(s, args)
	}
	if err := onlyForTrees(s, "dry-run", "checksum", "size-only"); err != nil {
		return err
	}
	file := args[0]
	key := filepath.Base(file)
	if len(args) == 2 {
		key = args[1]
	}
	if key == "" {
		return usageError(s.Context, "put: the key is empty")
	}
	var r io.Reader = s.App.Reader
	length := int64(-1)
	if file == "-" {
		if len(args) < 2 {
			return usageError(s.Context, "put: standard input needs a KEY")
		}
	} else {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if fi.IsDir() {
			return &failure{err: fmt.Errorf("put %s: it is a directory", file), hint: "mogtool put -r " + file + " stores the files in it", code: exitFailed}
		}
		if fi.Mode().IsRegular() {
			length = fi.Size()
		}
		r = f
	}
	if s.Bool("big") {
		return putBig(s, r, length, file, key)
	}
	if s.Bool("no-clobber") { // trackers of old overwrite nevertheless
		_, err := s.client.FileInfo(s.ctx(), s.domain, key)
		if err == nil {
			return fmt.Errorf("store key %q in domain %q: %w", key, s.domain, protocol.ErrKeyExists)
		}
		if !errors.Is(err, protocol.ErrUnknownKey) {
			return err
		}
	}
	p := s.out.newProgress("put "+key, length, true)
	defer p.end()
	if seeker, ok := r.(io.Seeker); ok {
		r = &countedSeeker{counted{r, p}, seeker}
	} else {
		r = &counted{r, p}
	}
	created, err := s.client.Create(s.ctx(), s.domain, key, protocol.CreateOptions{
		Class: s.String("class"), Verify: s.Bool("verify"), NoOverwrite: s.Bool("no-clobber"), WaitReplicated: s.Duration("wait"),
	}, r)
	if err != nil {
		return err
	}
	if s.out.json {
		j := storedJSON{Key: key, FID: created.FID, Length: created.Size, DevID: created.DevID, Path: created.Path}
		if !created.Checksum.IsZero() {
			j.Checksum = created.Checksum.String()
		}
		return s.out.object(j)
	}
	return nil
}

// onlyForTrees refuses flags that a single file has no use for.
func onlyForTrees(s *session, flags ...string) error {
	for _, name := range flags {
		if s.IsSet(name) {
			return usageError(s.Context, "%s: --%s is for --recursive", s.Command.Name, name)
		}
	}
	return nil
}

func get(s *session, args []string) error {
	if s.Bool("recursive") {
		return getTree(s, args)
	}
	if err := onlyForTrees(s, "dry-run", "checksum", "size-only"); err != nil {
		return err
	}
	key := args[0]
	file := path.Base(key)
	if len(args) == 2 {
		file = args[1]
	}
	if file == "-" {
		return write(s, key, s.App.Writer)
	}
	fi, err := os.Stat(file)
	if err == nil && fi.IsDir() {
		file = filepath.Join(file, path.Base(key))
		fi, err = os.Stat(file)
	}
	if err == nil && !fi.Mode().IsRegular() && !fi.IsDir() { // a pipe or a device stays one
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(s, key, f), f.Close())
	}
	if big, ok, err := chunked(s, key); ok || err != nil {
		if err != nil {
			return err
		}
		return getBig(s, key, file, big)
	}
	// A file of that name is either the old one or the whole new one.
	tmp, err := createBeside(file)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it has its name
	defer tmp.Close()
	f, err := fetch(s, key, tmp)
	if err != nil {
		return err
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return err
	}
	if s.out.json {
		return s.out.object(f)
	}
	return nil
}

// createBeside makes a new file in file's directory, with the mode that file
// has or would get.
func createBeside(file string) (*os.File, error) {
	name := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+"."+rand.Text()[:8])
	tmp, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return nil, err
	}
	if fi, err := os.Stat(file); err == nil {
		if err := tmp.Chmod(fi.Mode().Perm()); err != nil {
			return nil, errors.Join(err, tmp.Close(), os.Remove(name))
		}
	}
	return tmp, nil
}

// fetch writes the file under key to w, and checks what it got against what the
// tracker knows.
func fetch(s *session, key string, w io.Writer) (storedJSON, error) {
	// Replaced in between, the file is another than the one described: once more.
	for try := 0; ; try++ {
		info, err := s.client.FileInfo(s.ctx(), s.domain, key)
		if err != nil {
			return storedJSON{}, err
		}
		r, err := s.client.Open(s.ctx(), s.domain, key)
		if err != nil {
			return storedJSON{}, err
		}
		if r.FID() != 0 && r.FID() != info.FID && try < 3 {
			r.Close()
			continue
		}
		got, err := receive(s, info, r, w)
		r.Close()
		return got, err
	}
}

func receive(s *session, info protocol.FileInfo, r *protocol.Reader, w io.Writer) (storedJSON, error) {
	p := s.out.newProgress("get "+info.Key, info.Length, true)
	defer p.end()
	var sum hash.Hash
	if sum = info.Checksum.Type.New(); sum != nil {
		w = io.MultiWriter(w, sum)
	}
	n, err := io.Copy(w, &counted{r, p})
	if err != nil {
		return storedJSON{}, fmt.Errorf("read key %q: after %d of %d bytes: %w", info.Key, n, info.Length, err)
	}
	got := storedJSON{Key: info.Key, FID: info.FID, Length: n, Path: r.Path()}
	if n != info.Length {
		return got, fmt.Errorf("key %q has %d bytes at %s, the tracker says %d: that copy is damaged", info.Key, n, r.Path(), info.Length)
	}
	if sum != nil {
		if have := (protocol.Checksum{Type: info.Checksum.Type, Sum: sum.Sum(nil)}); !have.Equal(info.Checksum) {
			return got, fmt.Errorf("key %q is %v at %s, the tracker says %v: that copy is damaged", info.Key, have, r.Path(), info.Checksum)
		}
		got.Checksum = info.Checksum.String()
	}
	return got, nil
}

// chunked reports whether key is that of a big file, and of nothing else.
func chunked(s *session, key string) (bigInfo, bool, error) {
	_, err := s.client.FileInfo(s.ctx(), s.domain, key)
	if !errors.Is(err, protocol.ErrUnknownKey) {
		return bigInfo{}, false, err
	}
	info, bigErr := bigKey(s.ctx(), s, key)
	if errors.Is(bigErr, protocol.ErrUnknownKey) {
		return bigInfo{}, false, err
	}
	return info, bigErr == nil, bigErr
}

// write writes the file under key, in chunks or in one, to w.
func write(s *session, key string, w io.Writer) error {
	_, err := fetch(s, key, w)
	if !errors.Is(err, protocol.ErrUnknownKey) {
		return err
	}
	big, ok, bigErr := chunked(s, key)
	switch {
	case bigErr != nil:
		return bigErr
	case !ok: // it has come in between
		return err
	}
	return catBig(s, key, big, 0, -1, w)
}

// byteRange is bytes from off: n of them, or all where n is negative. Where off
// is negative it is the last so many.
type byteRange struct{ off, n int64 }

// parseRange reads "FIRST-LAST", "FIRST-" and "-COUNT", which is the last COUNT
// bytes.
func parseRange(s string) (r byteRange, ok bool) {
	first, last, found := strings.Cut(s, "-")
	if !found || first == "" && last == "" {
		return r, false
	}
	var err error
	r.n = -1
	if first == "" {
		r.off, err = strconv.ParseInt(last, 10, 64)
		r.off = -r.off
		return r, err == nil && r.off < 0 && last[0] != '+'
	}
	if r.off, err = strconv.ParseInt(first, 10, 64); err != nil || first[0] == '+' {
		return r, false
	}
	if last == "" {
		return r, true
	}
	end, err := strconv.ParseInt(last, 10, 64)
	if err != nil || end < r.off || last[0] == '+' {
		return r, false
	}
	if r.n = end - r.off + 1; r.n < 0 { // all that 63 bits can count
		r.n = -1
	}
	return r, true
}

// of is the range in a file of so many bytes, with nothing negative but n.
func (r byteRange) of(length int64) byteRange {
	if r.off < 0 {
		return byteRange{max(0, length+r.off), -1}
	}
	return r
}

func cat(s *session, args []string) error {
	if !s.IsSet("range") {
		for _, key := range args {
			if err := write(s, key, s.App.Writer); err != nil {
				return err
			}
		}
		return nil
	}
	want, ok := parseRange(s.String("range"))
	if !ok {
		return usageError(s.Context, "cat: --range is FIRST-LAST, FIRST- or -COUNT, not %q", s.String("range"))
	}
	for _, key := range args {
		if err := catRange(s, key, want); err != nil {
			return err
		}
	}
	return nil
}

func catRange(s *session, key string, want byteRange) error {
	if want.off < 0 {
		info, err := s.client.FileInfo(s.ctx(), s.domain, key)
		if err == nil {
			want = want.of(info.Length)
		} else if !errors.Is(err, protocol.ErrUnknownKey) {
			return err
		}
	}
	if want.off >= 0 {
		r, err := s.client.OpenRange(s.ctx(), s.domain, key, want.off, want.n)
		if err == nil {
			_, err = io.Copy(s.App.Writer, r)
			r.Close()
			if err != nil {
				return fmt.Errorf("read key %q: %w", key, err)
			}
			return nil
		}
		if !errors.Is(err, protocol.ErrUnknownKey) {
			return err
		}
	}
	big, ok, err := chunked(s, key)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("read key %q in domain %q: it was stored a moment ago", key, s.domain)
	case want.off < 0 && big.Compressed:
		return fmt.Errorf("key %q is compressed: where its last bytes begin is not known before all are read", key)
	}
	want = want.of(big.Size)
	return catBig(s, key, big, want.off, want.n, s.App.Writer)
}

// infoJobs is how many keys are looked up at once.
const infoJobs = 8

func ls(s *session, args []string) error {
	prefix := ""
	if len(args) > 0 {
		prefix = args[0]
	}
	limit, after := s.Int("limit"), s.String("after")
	if limit < 0 || s.IsSet("limit") && limit == 0 {
		return usageError(s.Context, "ls: --limit must be above 0")
	}
	if s.Bool("big") {
		if limit > 0 || after != "" {
			return usageError(s.Context, "ls: --big goes with neither --after nor --limit")
		}
		return lsBig(s, prefix)
	}
	p := s.out.newProgress("keys", -1, false)
	defer p.end()
	for left := limit; ; {
		page := 1000
		if limit > 0 {
			page = min(page, left)
		}
		keys, err := s.client.KeysAfter(s.ctx(), s.domain, prefix, after, page)
		if err != nil {
			return err
		}
		if s.Bool("long") {
			err = lsLong(s, keys)
		} else {
			err = lsShort(s, keys)
		}
		if err != nil {
			return err
		}
		p.set(p.n + int64(len(keys)))
		left -= len(keys)
		if len(keys) < page || limit > 0 && left <= 0 {
			return nil
		}
		if next := keys[len(keys)-1]; next > after {
			after = next
			continue
		}
		return fmt.Errorf("the tracker's listing does not go on after key %q", after)
	}
}

func lsShort(s *session, keys []string) error {
	for _, key := range keys {
		var err error
		if s.out.json {
			err = s.out.object(struct {
				Key string `json:"key"`
			}{key})
		} else {
			err = s.out.line(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func lsLong(s *session, keys []string) error {
	infos := make([]protocol.FileInfo, len(keys))
	g, ctx := errgroup.WithContext(s.ctx())
	g.SetLimit(infoJobs)
	for i, key := range keys {
		g.Go(func() error {
			var err error
			infos[i], err = s.client.FileInfo(ctx, s.domain, key)
			if errors.Is(err, protocol.ErrUnknownKey) {
				return nil // deleted meanwhile
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, f := range infos {
		if f.FID == 0 {
			continue
		}
		var err error
		if s.out.json {
			err = s.out.object(toInfoJSON(f))
		} else {
			err = s.out.line(fmt.Sprintf("%10d  %-12s %2d  %14d  %s", f.FID, f.Class, f.DevCount, f.Length, f.Key))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func rm(s *session, args []string) error {
	return each(args, func(key string) error {
		err := s.client.Delete(s.ctx(), s.domain, key)
		if errors.Is(err, protocol.ErrUnknownKey) {
			if bigErr := rmBig(s.ctx(), s, key); !errors.Is(bigErr, protocol.ErrUnknownKey) {
				return bigErr
			}
		}
		if s.Bool("force") && errors.Is(err, protocol.ErrUnknownKey) {
			return nil
		}
		return err
	})
}

// each does the same for all operands, also after one has failed.
func each(args []string, do func(arg string) error) error {
	var failed []error
	for _, arg := range args {
		if err := do(arg); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func mv(s *session, args []string) error {
	return s.client.Rename(s.ctx(), s.domain, args[0], args[1])
}

func updateClass(s *session, args []string) error {
	return each(args[1:], func(key string) error {
		return s.client.SetClass(s.ctx(), s.domain, key, args[0])
	})
}

type infoJSON struct {
	Key      string           `json:"key"`
	Domain   string           `json:"domain"`
	Class    string           `json:"class"`
	FID      protocol.FID     `json:"fid"`
	Length   int64            `json:"length"`
	DevCount int              `json:"devcount"`
	DevIDs   []protocol.DevID `json:"devids"`
	Checksum string           `json:"checksum,omitempty"`
	Shards   *shardsJSON      `json:"shards,omitempty"`
}

func toInfoJSON(f protocol.FileInfo) infoJSON {
	j := infoJSON{Key: f.Key, Domain: f.Domain, Class: f.Class, FID: f.FID, Length: f.Length, DevCount: f.DevCount, DevIDs: f.DevIDs}
	if !f.Checksum.IsZero() {
		j.Checksum = f.Checksum.String()
	}
	return j
}

func info(s *session, args []string) error {
	for i, key := range args {
		if i > 0 && !s.out.json {
			if err := s.out.line(""); err != nil {
				return err
			}
		}
		f, err := s.client.FileInfo(s.ctx(), s.domain, key)
		if errors.Is(err, protocol.ErrUnknownKey) {
			if big, ok, bigErr := chunked(s, key); ok {
				if err := infoBig(s, key, big); err != nil {
					return err
				}
				continue
			} else if bigErr != nil {
				return bigErr
			}
		}
		if err != nil {
			return err
		}
		j := toInfoJSON(f)
		var rows []deviceRow
		if f.Encoding != nil {
			if rows, err = devices(s); err != nil {
				return fmt.Errorf("info of key %q: %w", key, err)
			}
			j.Shards = pictureOf(*f.Encoding, rows)
		}
		if s.out.json {
			if err := s.out.object(j); err != nil {
				return err
			}
			continue
		}
		if f.Encoding != nil {
			if err := shardInfo(s, j, *f.Encoding); err != nil {
				return err
			}
			continue
		}
		var devs []string
		for _, d := range f.DevIDs {
			devs = append(devs, "dev"+d.String())
		}
		if err := s.out.pairs([][]string{
			{"key:", f.Key},
			{"domain:", f.Domain},
			{"class:", f.Class},
			{"fid:", f.FID.String()},
			{"length:", strconv.FormatInt(f.Length, 10)},
			{"checksum:", cmp.Or(j.Checksum, "none")},
			{"copies:", strings.TrimSpace(fmt.Sprintf("%d  %s", f.DevCount, strings.Join(devs, " ")))},
		}); err != nil {
			return err
		}
	}
	return nil
}

func paths(s *session, args []string) error {
	urls, err := s.client.Paths(s.ctx(), s.domain, args[0], protocol.PathsOptions{NoVerify: s.Bool("noverify"), Count: s.Int("count")})
	if err != nil {
		return err
	}
	if len(urls) == 0 {
		return fmt.Errorf("key %q in domain %q: %w", args[0], s.domain, protocol.ErrNoPath)
	}
	for _, u := range urls {
		if s.out.json {
			err = s.out.object(struct {
				Path string `json:"path"`
			}{u})
		} else {
			err = s.out.line(u)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func debug(s *session, args []string) error {
	var q protocol.Args
	switch fid := s.Int64("fid"); {
	case fid > 0 && len(args) == 0:
		q.AddInt("fid", fid)
	case len(args) == 1 && !s.IsSet("fid"):
		if s.domain == "" {
			return &failure{err: errors.New("debug: no domain is named"), hint: "give --domain DOMAIN or set MOGILE_DOMAIN", code: exitUsage}
		}
		q.Add("domain", s.domain)
		q.Add("key", args[0])
	default:
		return usageError(s.Context, "debug: it needs a KEY, or --fid FID")
	}
	reply, err := s.client.Do(s.ctx(), "file_debug", q)
	if err != nil {
		return fmt.Errorf("debug: %w", err)
	}
	return s.out.args(reply)
}
