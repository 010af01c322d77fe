package tools

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

func duCommand() *cli.Command {
	return command("du", "add up files by the parts of their keys", "[PREFIX]",
		`mogtool du                            by the first part of the keys
mogtool du photos/                    what is below photos/
mogtool du --depth 2 photos/
mogtool du --depth 0                  the sum alone`,
		need{0, 1, true}, []cli.Flag{
			&cli.IntFlag{Name: "depth", Usage: "`N` parts of the keys behind PREFIX", Value: 1},
			&cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Usage: "`N` requests at once", Value: 16},
			&cli.IntFlag{Name: "retries", Usage: "`N` repetitions after failures that may pass", Value: 7},
		}, du)
}

// usageSum is what some files take.
type usageSum struct {
	Prefix   string `json:"prefix"`
	Files    int64  `json:"files"`
	Bytes    int64  `json:"bytes"`
	Physical int64  `json:"physical_bytes"` // of all copies that are believed to exist
}

func (u *usageSum) add(f protocol.FileInfo) {
	u.Files++
	u.Bytes += f.Length
	u.Physical += f.Length * int64(f.DevCount)
}

// duGroup is the part of a key that its file is added up under: behind the
// prefix's last "/", depth parts that have a "/" after them, or as many as there
// are.
func duGroup(key, prefix string, depth int) string {
	end := strings.LastIndexByte(prefix, '/') + 1
	for range depth {
		i := strings.IndexByte(key[end:], '/')
		if i < 0 {
			break
		}
		end += i + 1
	}
	return key[:end]
}

func du(s *session, args []string) error {
	prefix := ""
	if len(args) > 0 {
		prefix = args[0]
	}
	depth, jobs, retries := s.Int("depth"), s.Int("jobs"), s.Int("retries")
	if depth < 0 || jobs < 1 || jobs > maxJobs || retries < 0 {
		return usageError(s.Context, "du: --depth and --retries are 0 or more, --jobs 1 to %d", maxJobs)
	}
	p := s.out.newProgress("files", -1, false)
	defer p.end()
	var mu sync.Mutex // guards groups, total and p
	groups := make(map[string]*usageSum)
	total := usageSum{Prefix: prefix}
	add := func(f protocol.FileInfo) {
		mu.Lock()
		defer mu.Unlock()
		name := duGroup(f.Key, prefix, depth)
		g := groups[name]
		if g == nil {
			g = &usageSum{Prefix: name}
			groups[name] = g
		}
		g.add(f)
		total.add(f)
		p.set(total.Files)
	}
	var err error
	if prefix == "" {
		err = allFiles(s, jobs, retries, add)
	} else {
		err = filesBelow(s, prefix, jobs, retries, add)
	}
	if err != nil {
		return err
	}
	p.end()
	sums := make([]usageSum, 0, len(groups)+1)
	if depth > 0 {
		for _, g := range groups {
			sums = append(sums, *g)
		}
		slices.SortFunc(sums, func(a, b usageSum) int { return strings.Compare(a.Prefix, b.Prefix) })
	}
	if s.out.json {
		for _, g := range append(sums, total) {
			if err := s.out.object(g); err != nil {
				return err
			}
		}
		return nil
	}
	return s.out.usage(append(sums, total))
}

// usage writes the sums, of which the last is the total, as a table.
func (o *output) usage(sums []usageSum) error {
	rows := make([][]string, 0, len(sums))
	for i, g := range sums {
		keys := g.Prefix
		if i == len(sums)-1 {
			keys = "total"
		}
		rows = append(rows, []string{strconv.FormatInt(g.Files, 10), size(g.Bytes), size(g.Physical), keys})
	}
	return o.table([]string{">files", ">size", ">?with copies", "keys"}, rows)
}

// filesBelow describes the files whose keys begin with prefix: a listing, and a
// request for each key.
func filesBelow(s *session, prefix string, jobs, retries int, add func(protocol.FileInfo)) error {
	return eachKey(s.ctx(), s, prefix, jobs, retries, func(ctx context.Context, key string) error {
		var f protocol.FileInfo
		err := persist(ctx, retries, func() (err error) {
			f, err = s.client.FileInfo(ctx, s.domain, key)
			return err
		})
		if errors.Is(err, protocol.ErrUnknownKey) {
			return nil // deleted meanwhile
		}
		if err == nil {
			add(f)
		}
		return err
	})
}

// eachKey has do get the keys that begin with prefix, several at once. An error
// ends it.
func eachKey(ctx context.Context, s *session, prefix string, jobs, retries int, do func(ctx context.Context, key string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	keys := make(chan string, 1000)
	g.Go(func() error {
		defer close(keys)
		return listKeys(ctx, s, prefix, retries, func(key string) error { return sendTo(ctx, keys, key) })
	})
	for range jobs {
		g.Go(func() error {
			for key := range keys {
				if err := do(ctx, key); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// fidRange is how many fids are looked through in one go.
const fidRange = 20_000

// allFiles describes all files of the domain. Fids are those of all domains:
// ranges of them are listed with many files to a request.
func allFiles(s *session, jobs, retries int, add func(protocol.FileInfo)) error {
	// An unknown domain has no files, and says so.
	if _, err := s.client.KeysAfter(s.ctx(), s.domain, "", "", 1); err != nil {
		return err
	}
	page := func(ctx context.Context, after protocol.FID, limit int) (files []protocol.FileInfo, err error) {
		err = persist(ctx, retries, func() (err error) {
			files, err = s.client.FilesAfter(ctx, after, limit)
			return err
		})
		return files, err
	}
	g, ctx := errgroup.WithContext(s.ctx())
	g.SetLimit(jobs)
	for from := protocol.FID(0); ; {
		// Where a range begins is the next fid that there is: between them may be
		// any number that are gone.
		first, err := page(ctx, from, 1)
		if err != nil || len(first) == 0 {
			if waitErr := g.Wait(); waitErr != nil {
				return waitErr
			}
			return err
		}
		after := first[0].FID - 1
		end := after + fidRange
		from = end
		g.Go(func() error {
			for after < end {
				files, err := page(ctx, after, 500)
				if err != nil || len(files) == 0 {
					return err
				}
				for _, f := range files {
					if f.FID <= end && f.Domain == s.domain {
						add(f)
					}
				}
				after = files[len(files)-1].FID
			}
			return nil
		})
	}
}
