package tools

import (
	"context"
	"errors"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

func touchClassCommand() *cli.Command {
	return command("touch-class", "move all files under a prefix to another class", "CLASS PREFIX/|KEY…",
		`mogtool touch-class important photos/2024/     all keys that begin so
mogtool touch-class important cat dog          these keys
mogtool touch-class -r important pic           all keys that begin with pic
mogtool touch-class --dry-run important photos/`,
		need{2, -1, true}, append(treeFlags(),
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "what does not end in \"/\" is a prefix too", DisableDefaultText: true},
		), touchClass)
}

func touchClass(s *session, args []string) error {
	t, err := newTree(s, "touch-class", "", "")
	if err != nil {
		return err
	}
	class := args[0]
	if _, err := classHash(s.ctx(), s, class, t.retries); err != nil {
		return err
	}
	do := func(ctx context.Context, p pair) error { return t.setClass(ctx, class, p.name) }
	display, hide := context.WithCancel(s.ctx())
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		t.tally.show(display, func(context.Context) error { return errors.New("nobody has counted") })
	}()
	g, ctx := errgroup.WithContext(s.ctx())
	g.SetLimit(t.jobs)
	err = nil
	for _, operand := range args[1:] {
		if strings.HasSuffix(operand, "/") || s.Bool("recursive") {
			err = eachKey(ctx, s, operand, t.jobs, t.retries, func(ctx context.Context, key string) error {
				return t.one(ctx, pair{name: key}, do)
			})
		} else {
			g.Go(func() error { return t.one(ctx, pair{name: operand}, do) })
		}
		if err != nil {
			break
		}
	}
	if waitErr := g.Wait(); waitErr != nil {
		err = waitErr
	}
	hide()
	<-shown
	return t.finish(err, "moved")
}

// setClass moves one file, unless it is in its class already.
func (t *tree) setClass(ctx context.Context, class, key string) error {
	var info protocol.FileInfo
	err := persist(ctx, t.retries, func() (err error) {
		if info, err = t.s.client.FileInfo(ctx, t.s.domain, key); err != nil || info.Class == class || t.dryRun {
			return err
		}
		return t.s.client.SetClass(ctx, t.s.domain, key, class)
	})
	switch {
	case err != nil:
		return err
	case info.Class == class:
		t.tally.same.Add(1)
		return nil
	}
	return t.did(fileJSON{Action: "move", Key: key, FID: uint64(info.FID), Class: class})
}
