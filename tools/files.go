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
	"strconv"
	"strings"

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
mogtool put --class thumbs --verify cat.jpg cat`,
			need{1, 2, true}, []cli.Flag{
				&cli.StringFlag{Name: "class", Usage: "`CLASS` of the file; without, the default class"},
				&cli.BoolFlag{Name: "verify", Usage: "have the stored bytes read back and compared (MD5)", DisableDefaultText: true},
			}, put),
		command("get", "fetch a file", "KEY [FILE]",
			`mogtool get cat cat.jpg               fetch the key cat into cat.jpg
mogtool get photos/cat                into ./cat
mogtool get dir.tar - | tar x         "-" is standard output`,
			need{1, 2, true}, nil, get),
		command("cat", "write files to standard output", "KEY…",
			`mogtool cat readme license            one after the other
mogtool cat --range 0-99 log          the first 100 bytes
mogtool cat --range 1000- log         all from byte 1000`,
			need{1, -1, true}, []cli.Flag{
				&cli.StringFlag{Name: "range", Usage: "`FIRST-LAST` bytes only, counted from 0"},
			}, cat),
		command("ls", "list keys", "[PREFIX]",
			`mogtool ls                            all keys, in byte order
mogtool ls -l photos/                 with class, length and copies
mogtool ls --after photos/m --limit 10`,
			need{0, 1, true}, []cli.Flag{
				&cli.BoolFlag{Name: "long", Aliases: []string{"l"}, Usage: "also fid, class, length and copies (one request a key)", DisableDefaultText: true},
				&cli.StringFlag{Name: "after", Usage: "begin behind `KEY`"},
				&cli.IntFlag{Name: "limit", Usage: "at most `N` keys"},
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
			return &failure{err: fmt.Errorf("put %s: it is a directory", file), hint: "tar c " + file + " | mogtool put - KEY", code: exitFailed}
		}
		if fi.Mode().IsRegular() {
			length = fi.Size()
		}
		r = f
	}
	p := s.out.newProgress("put "+key, length, true)
	defer p.end()
	if seeker, ok := r.(io.Seeker); ok {
		r = &countedSeeker{counted{r, p}, seeker}
	} else {
		r = &counted{r, p}
	}
	created, err := s.client.Create(s.ctx(), s.domain, key, protocol.CreateOptions{Class: s.String("class"), Verify: s.Bool("verify")}, r)
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

func get(s *session, args []string) error {
	key := args[0]
	file := path.Base(key)
	if len(args) == 2 {
		file = args[1]
	}
	if file == "-" {
		_, err := fetch(s, key, s.App.Writer)
		return err
	}
	if fi, err := os.Stat(file); err == nil && fi.IsDir() {
		file = filepath.Join(file, path.Base(key))
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

func cat(s *session, args []string) error {
	if !s.IsSet("range") {
		for _, key := range args {
			if _, err := fetch(s, key, s.App.Writer); err != nil {
				return err
			}
		}
		return nil
	}
	first, last, found := strings.Cut(s.String("range"), "-")
	off, err := strconv.ParseInt(first, 10, 63)
	n := int64(-1)
	if last != "" && err == nil {
		n, err = strconv.ParseInt(last, 10, 63)
		n = n - off + 1
	}
	if !found || err != nil || last != "" && n < 1 {
		return usageError(s.Context, "cat: --range is FIRST-LAST or FIRST-, not %q", s.String("range"))
	}
	for _, key := range args {
		r, err := s.client.OpenRange(s.ctx(), s.domain, key, off, n)
		if err != nil {
			return err
		}
		_, err = io.Copy(s.App.Writer, r)
		r.Close()
		if err != nil {
			return fmt.Errorf("read key %q: %w", key, err)
		}
	}
	return nil
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
}

func toInfoJSON(f protocol.FileInfo) infoJSON {
	j := infoJSON{f.Key, f.Domain, f.Class, f.FID, f.Length, f.DevCount, f.DevIDs, ""}
	if !f.Checksum.IsZero() {
		j.Checksum = f.Checksum.String()
	}
	return j
}

func info(s *session, args []string) error {
	for i, key := range args {
		f, err := s.client.FileInfo(s.ctx(), s.domain, key)
		if err != nil {
			return err
		}
		j := toInfoJSON(f)
		if s.out.json {
			if err := s.out.object(j); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			if err := s.out.line(""); err != nil {
				return err
			}
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
