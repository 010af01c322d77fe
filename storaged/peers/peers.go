// Package peers knows where the other storage daemons of a cluster are, and
// fetches pieces of files from them.
//
// Trackers tell which daemon has which device ([Peers.Set]), at their start, when
// that changes and when this daemon's host comes back. The last that was told is
// kept in the docroot (.mogile/peers), so that what is spread over daemons can be
// read while no tracker runs, even by a daemon that was started meanwhile. It is a
// hint: what is fetched is verified by who asks for it.
package peers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// fileName is the name of the file in the docroot that has the last map.
const fileName = "peers"

// fileForm is the first line of that file.
const fileForm = "mogile peers 1"

// maxFile bounds the file, in bytes: what an order can bring.
const maxFile = protocol.MaxOrder

// diskTime bounds how long the docroot's disk is waited for.
const diskTime = 10 * time.Second

// Peers is the map from devices to storage daemons. Its methods may be called
// concurrently.
type Peers struct {
	docroot *volume.Docroot
	now     func() time.Time
	log     zerolog.Logger

	writing chan struct{} // holds an element while the map is being replaced

	mu      sync.RWMutex // guards what follows
	current protocol.PeersOrder
	failing bool // the last map could not be written
}

// Load reads the map that was kept. One that cannot be read is as none, which is
// logged: the next that a tracker tells takes its place.
func Load(ctx context.Context, docroot *volume.Docroot, now func() time.Time, log zerolog.Logger) *Peers {
	p := &Peers{docroot: docroot, now: now, log: log, writing: make(chan struct{}, 1)}
	ctx, cancel := context.WithTimeout(ctx, diskTime)
	defer cancel()
	text, err := docroot.ReadOwn(ctx, fileName, maxFile)
	if err == nil {
		p.current, err = parseFile(string(text))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn().Err(err).Msg("where other storage daemons are cannot be read; a tracker will tell")
	}
	return p
}

// URL is "http://host:port" of the storage daemon that has a device. It reports
// false where none is known.
func (p *Peers) URL(dev protocol.DevID) (string, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	url, ok := p.current.Peers[dev]
	return url, ok
}

// Set takes a map from a tracker, unless a later one is known, and returns the
// version that counts. A map that is from further in the future than clocks may
// be apart would shut out all that come after it, and is refused by an error
// matching protocol.ErrClockSkew. That it cannot be kept on disk is logged, not
// returned: it counts all the same.
func (p *Peers) Set(ctx context.Context, o protocol.PeersOrder) (version int64, err error) {
	latest := p.now().Add(protocol.MaxClockSkew).UnixMilli()
	if o.Version > latest {
		return 0, &protocol.Error{Code: protocol.ErrClockSkew.Code, Text: fmt.Sprintf("the version of the peers is of %s", time.UnixMilli(o.Version).UTC())}
	}
	select {
	case p.writing <- struct{}{}:
		defer func() { <-p.writing }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	p.mu.Lock()
	if p.current.Version > latest { // this daemon's clock was wrong
		p.current.Version = 0
	}
	if o.Version <= p.current.Version {
		defer p.mu.Unlock()
		return p.current.Version, nil
	}
	same := maps.Equal(p.current.Peers, o.Peers) && !p.failing
	p.current = o
	p.mu.Unlock()
	if !same {
		p.keep(ctx, o)
	}
	return o.Version, nil
}

// keep writes the map to disk. A failure is logged when it begins and when it
// ends.
func (p *Peers) keep(ctx context.Context, o protocol.PeersOrder) {
	ctx, cancel := context.WithTimeout(ctx, diskTime)
	defer cancel()
	err := p.docroot.WriteOwn(ctx, fileName, []byte(formatFile(o)))
	p.mu.Lock()
	was := p.failing
	p.failing = err != nil
	p.mu.Unlock()
	switch {
	case err != nil && !was:
		p.log.Error().Err(err).Msg("where other storage daemons are cannot be kept on disk: after a restart without trackers, erasure-coded files cannot be read. The docroot must be writable")
	case err == nil && was:
		p.log.Info().Msg("where other storage daemons are is kept on disk again")
	case err == nil:
		p.log.Debug().Int("devices", len(o.Peers)).Msg("where other storage daemons are was kept on disk")
	}
}

// formatFile is the file's content: its form, the version, and a line for each
// storage daemon with its URL and its devices, separated by commas.
func formatFile(o protocol.PeersOrder) string {
	args := o.Args()
	lines := append([]string{fileForm, args.Get("version")}, strings.Fields(args.Get("peers"))...)
	return strings.Join(lines, "\n") + "\n"
}

// parseFile reads what formatFile writes, and nothing else.
func parseFile(text string) (protocol.PeersOrder, error) {
	form, rest, _ := strings.Cut(text, "\n")
	version, daemons, _ := strings.Cut(rest, "\n")
	if form != fileForm {
		return protocol.PeersOrder{}, fmt.Errorf("%.40q is not the form %q", form, fileForm)
	}
	o, err := protocol.ParsePeersOrder(protocol.Args{
		{Name: "peers", Value: strings.ReplaceAll(strings.TrimSuffix(daemons, "\n"), "\n", " ")}, {Name: "version", Value: version},
	})
	switch {
	case err != nil:
		return protocol.PeersOrder{}, err
	case formatFile(o) != text:
		return protocol.PeersOrder{}, errors.New("the file is not in its one form")
	}
	return o, nil
}
