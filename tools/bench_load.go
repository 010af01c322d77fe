package tools

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"
)

// loadPrefix begins the keys of files that are only rows.
const loadPrefix = "mogtool-bench/load/"

// Namespace is the trackers' database, of which mogtool itself knows nothing.
type Namespace interface {
	// Fill makes rows in the database that a DSN names.
	Fill(ctx context.Context, dsn string, rows Rows) error
	// Clear removes those of a domain whose keys begin with prefix, and says how
	// many there were; progress is told meanwhile.
	Clear(ctx context.Context, dsn, domain, prefix string, progress func(files int64)) (files int64, err error)
}

// Rows are files of which there are no bytes.
type Rows struct {
	Domain, Class string // Class "" is the default one
	Prefix        string // of the keys, which go on with a number of at least ten digits, from 1 on
	Files         int64
	Copies        int               // devices that each is said to be on
	Length        int64             // bytes that each is said to have
	Progress      func(files int64) // told how many there are
}

type namespaceKey struct{}

// WithNamespace is a context for Run in which commands find the database.
func WithNamespace(ctx context.Context, n Namespace) context.Context {
	return context.WithValue(ctx, namespaceKey{}, n)
}

func benchLoadCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "dsn", Usage: "`DSN` of the trackers' database", EnvVars: []string{"MOGILE_DSN"}},
		&cli.Int64Flag{Name: "files", Usage: "`N` files", Value: 1_000_000},
		&cli.IntFlag{Name: "copies", Usage: "`N` devices that each is said to be on", Value: 2},
		&cli.StringFlag{Name: "class", Usage: "`CLASS` of the files"},
		&cli.BoolFlag{Name: "remove", Usage: "remove the rows that were made before"},
	}
	return command("load", "fill the database with rows of files of which there are no bytes", "",
		"mogtool --domain test bench load --dsn postgres://mogile@db/mogile --files 10000000", need{0, 0, true}, flags,
		func(s *session, _ []string) error { return benchLoad(s) })
}

// maxLoad bounds the files that are made at once: their numbers have ten digits.
const maxLoad = 9_999_999_999

func benchLoad(s *session) error {
	dsn, files, copies := s.String("dsn"), s.Int64("files"), s.Int("copies")
	switch {
	case dsn == "":
		return usageError(s.Context, "bench load: it writes to the database itself: give --dsn or set MOGILE_DSN")
	case files < 1 || files > maxLoad || copies < 1 || copies > 255:
		return usageError(s.Context, "bench load: --files is 1 to %d, --copies 1 to 255", int64(maxLoad))
	}
	db, ok := s.ctx().Value(namespaceKey{}).(Namespace)
	if !ok {
		return errors.New("bench load: this program does not reach the database: use mogtool as a name of mogile")
	}
	if s.Bool("remove") {
		p := s.out.newProgress("removing rows", -1, false)
		n, err := db.Clear(s.ctx(), dsn, s.domain, loadPrefix, p.set)
		p.end()
		if err != nil {
			return err
		}
		return s.reportLoad(loaded{Removed: n})
	}
	p := s.out.newProgress("filling", files, false)
	err := db.Fill(s.ctx(), dsn, Rows{
		Domain: s.domain, Class: s.String("class"), Prefix: loadPrefix, Files: files, Copies: copies, Length: 4096, Progress: p.set,
	})
	p.end()
	if err != nil {
		return err
	}
	return s.reportLoad(loaded{Files: files})
}

// loaded is what bench load says.
type loaded struct {
	Files   int64 `json:"files,omitempty"`
	Removed int64 `json:"removed,omitempty"`
}

func (s *session) reportLoad(l loaded) error {
	switch {
	case s.out.json:
		return s.out.object(l)
	case l.Files == 0:
		return s.out.line(fmt.Sprintf("%d rows removed", l.Removed))
	}
	return s.out.line(fmt.Sprintf("%d rows under %s", l.Files, loadPrefix))
}
