package erasure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/reedsolomon"

	"github.com/mogile/mogile/protocol"
)

const (
	// maxFails is how many times in a row a shard may break off, without a block,
	// before it is left alone.
	maxFails = 2
	// maxBad is how many bad blocks in a row of reading a shard may have before
	// others are read in its place. It may still be needed where those are bad.
	maxBad = 2
)

// shards hands out blocks, those of one stripe after those of another. Each shard
// that is wanted is read by a goroutine of its own, ahead of what is handed out.
// Where a block is missing, bad or late, further shards are read in its place,
// until k blocks of the stripe are there or no shard is left.
type shards struct {
	c       *Codec
	l       Layout
	r       Read
	enc     reedsolomon.Encoder
	hedge   time.Duration
	window  int // blocks that a goroutine may be ahead
	spare   *spare
	last    int64
	ctx     context.Context
	cancel  context.CancelFunc
	readers sync.WaitGroup
	news    chan struct{} // holds an element when a reader has a result
	only    atomic.Int32  // which shard's results are waited for; anyShard

	stripe  int64 // that blocks are handed out of
	own     []shard
	located bool // the sisters were asked where shards are
}

// anyShard says that the results of each are waited for.
const anyShard = -1

// spare is the memory of one that reads when there is little: blocks are read one
// at a time, when they are asked for, and all of a stripe only where one has to be
// computed.
type spare struct {
	more  func() (release func(), err error) // waits for memory for a stripe
	whole func()                             // gives it back; nil: it was not taken
}

// shard is what is known of one.
type shard struct {
	dev      protocol.DevID // 0: nowhere
	seed     uint32
	from, to int64 // it is wanted in the stripes from from to below to

	reader *reader // nil: it is not being read
	block  *buffer // with its sum; of the stripe, nil: it is not there (yet)
	bad    bool    // in the stripe

	fails, bads int
	slow, gone  bool
	err         error // the last
}

// reader is a goroutine that reads a shard.
type reader struct {
	next, end int64 // stripes that are to come from it
	results   chan result
	cancel    context.CancelFunc
	late      bool

	asked int64      // the stripe up to which it may read
	ask   chan int64 // tells it

	opened chan struct{} // closed
	open   bool          // once opened is closed: the shard is there
}

type result struct {
	block *buffer
	err   error
	over  bool // nothing will come after it
}

// newShards is to read the shards that wants has stripes for, once they are begun:
// [2]int64{} is none. It must be closed.
// With spare memory nothing is read ahead.
func (c *Codec) newShards(ctx context.Context, r Read, wants [][2]int64, last int64, window int, hedge time.Duration, spare *spare) (*shards, error) {
	if err := r.Header.of(0).Check(); err != nil {
		return nil, err
	}
	l := r.Header.Layout()
	enc, err := c.encoder(l)
	if err != nil {
		return nil, err
	}
	at := r.At
	if at == nil {
		at = r.Header.Placement.Devices
	}
	if len(at) != 0 && len(at) != l.Shards() {
		return nil, fmt.Errorf("%d places of %d shards", len(at), l.Shards())
	}
	s := &shards{
		c: c, l: l, r: r, enc: enc, hedge: hedge, window: window, spare: spare, last: last, stripe: -1,
		news: make(chan struct{}, 1), own: make([]shard, l.Shards()), located: r.At != nil,
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	for i := range s.own {
		o := &s.own[i]
		o.seed, o.from, o.to = r.Header.of(i).seed(), wants[i][0], wants[i][1]
		if len(at) > 0 {
			o.dev = at[i]
		}
	}
	return s, nil
}

// begin begins to read a shard, if it is wanted and was not tried.
func (s *shards) begin(i int) {
	o := &s.own[i]
	from := max(o.from, s.stripe)
	if from < o.to && o.dev != 0 && o.reader == nil && o.block == nil && o.err == nil {
		s.start(i, from, o.to)
	}
}

// start begins to read a shard.
func (s *shards) start(i int, from, to int64) {
	o := &s.own[i]
	ctx, cancel := context.WithCancel(s.ctx)
	f := &reader{
		next: from, end: to, results: make(chan result, s.window), cancel: cancel, opened: make(chan struct{}),
		asked: to, ask: make(chan int64, 1),
	}
	if s.spare != nil {
		f.asked = -1
	}
	o.reader = f
	asked := f.asked
	may := func(stripe int64) bool {
		for asked < stripe {
			select {
			case asked = <-f.ask:
			case <-ctx.Done():
				return false
			}
		}
		return true
	}
	dev, seed := o.dev, o.seed
	s.readers.Go(func() {
		defer cancel()
		send := func(r result) bool {
			select {
			case f.results <- r:
			case <-ctx.Done():
				s.c.put(r.block)
				return false
			default: // who waits must hear that there is something to fetch
				s.tell(i)
				select {
				case f.results <- r:
				case <-ctx.Done():
					s.c.put(r.block)
					return false
				}
			}
			s.tell(i)
			return true
		}
		body, err := s.r.Places.Open(ctx, dev, s.l.Offset(from), s.l.Offset(to)-s.l.Offset(from))
		f.open = err == nil
		close(f.opened)
		if err == nil {
			err = s.read(body, seed, from, to, may, send)
			body.Close() // of what was read
		}
		if err != nil {
			send(result{err: err, over: true})
		}
	})
}

// opens reports whether a shard that is wanted in the stripe is there, for which it
// is waited no longer than for a block. All that have not answered by then are
// late.
func (s *shards) opens(i int) bool {
	o := &s.own[i]
	if o.block != nil || o.reader == nil {
		return o.block != nil
	}
	if o.reader.late {
		return false
	}
	timer := time.NewTimer(s.hedge)
	defer timer.Stop()
	select {
	case <-o.reader.opened:
		return o.reader.open
	case <-timer.C:
	case <-s.ctx.Done():
	}
	for j := range s.own {
		p := &s.own[j]
		if p.block != nil || !p.comes(s.stripe) {
			continue
		}
		select {
		case <-p.reader.opened:
		default:
			p.reader.late = true
		}
	}
	return false
}

// tell wakes who waits for results of shard i.
func (s *shards) tell(i int) {
	if only := s.only.Load(); only != anyShard && only != int32(i) {
		return
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// read reads blocks of a shard, those that it may, and gives each to send, until
// one of these is false.
func (s *shards) read(body io.Reader, seed uint32, from, to int64, may func(int64) bool, send func(result) bool) error {
	for n := from; n < to && may(n); n++ {
		size := s.l.BlockLen(n)
		block := s.c.get(size + SumSize)
		if _, err := io.ReadFull(body, block.b); err != nil { // and keeps the block
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if binary.BigEndian.Uint32(block.b[size:]) != blockSum(seed, n, block.b[:size]) {
			s.c.put(block)
			if !send(result{err: fmt.Errorf("stripe %d: %w", n, ErrBlock)}) {
				return nil
			}
			continue
		}
		if !send(result{block: block}) {
			return nil
		}
	}
	return nil
}

// stop ends the reading of a shard, without waiting for it.
func (s *shards) stop(i int) {
	if f := s.own[i].reader; f != nil {
		f.cancel()
		s.own[i].reader = nil
	}
}

// advance goes to a later stripe. Blocks of the one before are not valid any more.
func (s *shards) advance(stripe int64) {
	alive, whole := 0, true
	defer s.shrink()
	for i := range s.own {
		o := &s.own[i]
		s.c.put(o.block)
		o.block, o.bad = nil, false
		if f := o.reader; f != nil && f.late && f.next <= s.stripe {
			o.slow = true
			s.stop(i)
		}
		if o.reader != nil {
			alive++
		} else if o.wanted(stripe) {
			whole = false
		}
	}
	s.stripe = stripe
	// Others that were read in the place of a shard are not needed for ever.
	for i := range s.own {
		if o := &s.own[i]; o.reader != nil && o.from >= o.to && (whole || alive > s.l.K) {
			s.stop(i)
			alive--
		}
	}
}

func (o *shard) wanted(stripe int64) bool { return o.from <= stripe && stripe < o.to }

// comes reports whether the shard's reader will have a block of the stripe.
func (o *shard) comes(stripe int64) bool {
	return o.reader != nil && o.reader.next <= stripe && stripe < o.reader.end
}

// ask has the shard's reader read its block of the stripe.
func (s *shards) ask(i int) {
	f := s.own[i].reader
	if !s.own[i].comes(s.stripe) || f.asked >= s.stripe {
		return
	}
	f.asked = s.stripe
	select {
	case <-f.ask: // of a stripe before
	default:
	}
	f.ask <- s.stripe
}

// enlarge takes memory for all of the stripe, where there is not enough.
func (s *shards) enlarge() (err error) {
	if s.spare != nil && s.spare.whole == nil {
		s.spare.whole, err = s.spare.more()
	}
	return err
}

// shrink gives it back.
func (s *shards) shrink() {
	if s.spare != nil && s.spare.whole != nil {
		s.spare.whole()
		s.spare.whole = nil
	}
}

// drop forgets a block that was handed out, where memory is short. Should it be
// needed once more, it is read once more.
func (s *shards) drop(i int) {
	if s.spare != nil && s.spare.whole == nil {
		s.c.put(s.own[i].block)
		s.own[i].block = nil
	}
}

// collect takes what readers have, as far as the stripe.
func (s *shards) collect() {
	for i := range s.own {
		for o := &s.own[i]; o.reader != nil && o.reader.next <= s.stripe; {
			select {
			case r := <-o.reader.results:
				s.take(i, r)
				continue
			default:
			}
			break
		}
	}
}

// take takes a result of a shard's reader.
func (s *shards) take(i int, r result) {
	o := &s.own[i]
	f := o.reader
	if r.over {
		s.stop(i)
		o.fails++
		o.gone = errors.Is(r.err, fs.ErrNotExist) || o.fails >= maxFails
		s.suspect(i, r.err)
		return
	}
	stripe := f.next
	f.next++
	f.late = false
	if r.err == nil {
		o.fails = 0
	}
	switch {
	case r.err != nil:
		o.bads++
		o.bad = o.bad || stripe == s.stripe
		s.suspect(i, r.err)
		if o.bads >= maxBad {
			s.stop(i)
		}
	case stripe == s.stripe && o.block == nil:
		o.block = r.block
	default:
		s.c.put(r.block)
	}
	if f.next == f.end {
		o.reader = nil
	}
}

// suspect notes what is the matter with a shard.
func (s *shards) suspect(i int, err error) {
	o := &s.own[i]
	first := o.err == nil
	o.err = err
	if first && s.r.Suspect != nil && s.ctx.Err() == nil {
		s.r.Suspect(i, o.dev, err)
	}
}

// another begins to read one more shard for the stripe, and reports whether there
// was one.
func (s *shards) another() bool {
	best, least := -1, math.MaxInt
	for i := range s.own {
		o := &s.own[i]
		if o.dev == 0 || o.gone || o.bad || o.block != nil || o.comes(s.stripe) {
			continue
		}
		cost := 4*o.fails + 8*o.bads
		if o.slow {
			cost += 2
		}
		if !s.r.Places.Near(o.dev) {
			cost++
		}
		if cost < least {
			best, least = i, cost
		}
	}
	if best < 0 {
		return false
	}
	s.stop(best) // one that begins later
	s.start(best, s.stripe, max(s.last, s.own[best].to))
	s.ask(best)
	return true
}

// block is shard i's block of the stripe with its sum, read or computed. It is
// valid until advance.
func (s *shards) block(i int) ([]byte, error) {
	var timer *time.Timer
	o := &s.own[i]
	for {
		alone := o.comes(s.stripe) && !o.reader.late
		if alone {
			s.only.Store(int32(i)) // before collect: what comes from now on is told
		} else {
			s.only.Store(anyShard)
		}
		s.collect()
		if o.block != nil {
			return o.block.b, nil
		}
		if alone && !o.comes(s.stripe) {
			continue
		}
		if s.ask(i); !o.comes(s.stripe) || o.reader.late {
			if err := s.enlarge(); err != nil {
				return nil, err
			}
			for j := range s.own {
				if s.own[j].block == nil {
					s.ask(j)
				}
			}
		}
		there, coming, late := 0, 0, 0
		for j := range s.own {
			switch p := &s.own[j]; {
			case p.block != nil:
				there++
			case !p.comes(s.stripe) || p.reader.asked < s.stripe:
			case p.reader.late:
				late++
			default:
				coming++
			}
		}
		if there >= s.l.K {
			if err := s.compute(); err != nil {
				return nil, fmt.Errorf("fid %d, stripe %d: %w", s.l.FID, s.stripe, err)
			}
			continue
		}
		if !o.comes(s.stripe) || o.reader.late {
			for there+coming < s.l.K && s.another() {
				coming++
			}
			if !o.comes(s.stripe) && there+coming+late < s.l.K {
				if s.ctx.Err() != nil {
					return nil, context.Cause(s.ctx)
				}
				if s.locate() {
					continue
				}
				return nil, s.tooFew()
			}
		}
		if timer == nil {
			timer = time.NewTimer(s.hedge)
			defer timer.Stop()
		}
		select {
		case <-s.news:
		case <-timer.C:
			for j := range s.own {
				if p := &s.own[j]; p.block == nil && p.comes(s.stripe) && p.reader.asked >= s.stripe {
					p.reader.late = true
				}
			}
			timer.Reset(s.hedge)
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}
}

// compute makes all blocks of the stripe that are wanted and not there, of k that
// are.
func (s *shards) compute() error {
	size := s.l.BlockLen(s.stripe)
	blocks := make([][]byte, len(s.own))
	required := make([]bool, len(s.own))
	for i := range s.own {
		switch o := &s.own[i]; {
		case o.block != nil:
			blocks[i] = o.block.b[:size]
		case o.wanted(s.stripe):
			o.block = s.c.get(size + SumSize)
			blocks[i], required[i] = o.block.b[:0:size], true
		}
	}
	if err := s.enc.ReconstructSome(blocks, required); err != nil {
		return err
	}
	for i := range s.own {
		if required[i] {
			o := &s.own[i]
			binary.BigEndian.PutUint32(o.block.b[size:], blockSum(o.seed, s.stripe, o.block.b[:size]))
		}
	}
	return nil
}

// locate asks all sisters where the shards are, once, and reports whether one of
// them knew better.
func (s *shards) locate() bool {
	if s.located {
		return false
	}
	s.located = true
	devs := make([]protocol.DevID, len(s.own))
	for i := range s.own {
		devs[i] = s.own[i].dev
	}
	now := s.r.Header.Placement
	for _, f := range Headers(s.ctx, s.r.Places, devs) {
		if f.Err == nil && f.Header.Sisters(&s.r.Header) && f.Header.Placement.Epoch > now.Epoch {
			now = f.Header.Placement
		}
	}
	if now.Epoch == s.r.Header.Placement.Epoch {
		return false
	}
	for i, dev := range now.Devices {
		if o := &s.own[i]; o.dev != dev {
			s.stop(i)
			*o = shard{dev: dev, seed: o.seed, from: o.from, to: o.to, block: o.block}
		}
	}
	return true
}

// tooFew says what is the matter with the shards.
func (s *shards) tooFew() error {
	err := fmt.Errorf("fid %d, encoding %016x, stripe %d: %w", s.l.FID, s.l.Encoding, s.stripe, ErrTooFew)
	for i := range s.own {
		if o := &s.own[i]; o.err != nil {
			err = fmt.Errorf("%w; shard %d on dev%d: %w", err, i, o.dev, o.err)
		}
	}
	return err
}

// close ends all reading, and waits for it.
func (s *shards) close() {
	s.cancel()
	s.readers.Wait()
	for i := range s.own {
		s.c.put(s.own[i].block)
		s.own[i].block = nil
	}
	s.shrink()
}
