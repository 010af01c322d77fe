package worktest

import (
	"context"
	"fmt"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var _ schema.Encodings = (*Store)(nil)

// PutEncoded stores a closed file that is kept in shards, all of them there, and
// queues nothing.
func (s *Store) PutEncoded(f schema.File, e schema.Encoding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.DevCount = len(e.Devices)
	s.files[f.FID] = f
	s.locations[f.FID] = sorted(e.Devices)
	s.encodings[f.FID] = e
}

// Encoding is how a fid is encoded, and whether it is.
func (s *Store) Encoding(fid protocol.FID) (schema.Encoding, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.encodings[fid]
	return e, ok
}

// EncodingsOf is [schema.Encodings.EncodingsOf].
func (s *Store) EncodingsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID]schema.Encoding, error) {
	if err := s.begin(ctx, "EncodingsOf"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	found := make(map[protocol.FID]schema.Encoding)
	for _, fid := range fids {
		if e, ok := s.encodings[fid]; ok {
			e.Devices = slices.Clone(e.Devices)
			found[fid] = e
		}
	}
	return found, nil
}

// unchanged is an error where a fid is gone, or is not where it was seen.
func (s *Store) unchanged(fid protocol.FID, seen []protocol.DevID) error {
	if _, alive := s.files[fid]; !alive {
		return fmt.Errorf("fid %d: %w", fid, schema.ErrGone)
	}
	if !slices.Equal(s.locations[fid], sorted(seen)) {
		return fmt.Errorf("fid %d: %w", fid, schema.ErrStale)
	}
	return nil
}

// encodedAs is an error where the fid has no such encoding.
func (s *Store) encodedAs(fid protocol.FID, encoding uint64) (schema.Encoding, error) {
	e, ok := s.encodings[fid]
	if !ok || e.ID != encoding {
		return e, fmt.Errorf("encoding of fid %d: %w", fid, schema.ErrStale)
	}
	return e, nil
}

// goes enters what is on a device in copy_to_delete.
func (s *Store) goes(fid protocol.FID, dev protocol.DevID, what schema.What) {
	s.rows[Key{schema.QueueCopyDelete, fid, dev}] = &Row{What: what, NextTry: now()}
}

// comes removes a shard's entry, and that of bad bytes.
func (s *Store) comes(fid protocol.FID, dev protocol.DevID) {
	k := Key{schema.QueueCopyDelete, fid, dev}
	if r := s.rows[k]; r != nil {
		if _, shard := r.What.Shard(); shard || r.What == schema.Bad {
			delete(s.rows, k)
		}
	}
}

// RecordEncoding is [schema.Encodings.RecordEncoding].
func (s *Store) RecordEncoding(ctx context.Context, e schema.Encoding, seen []protocol.DevID) error {
	if err := s.begin(ctx, "RecordEncoding"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if err := s.unchanged(e.FID, seen); err != nil {
		for _, dev := range e.Devices {
			s.goes(e.FID, dev, schema.ShardOf(e.ID))
		}
		return err
	}
	for _, dev := range e.Devices {
		s.comes(e.FID, dev)
	}
	for _, dev := range seen {
		s.goes(e.FID, dev, schema.Raw)
	}
	e.Devices = slices.Clone(e.Devices)
	s.encodings[e.FID], s.locations[e.FID] = e, sorted(e.Devices)
	s.count(e.FID)
	return nil
}

// PlaceShards is [schema.Encodings.PlaceShards].
func (s *Store) PlaceShards(ctx context.Context, fid protocol.FID, encoding uint64, epoch int, placed map[int]protocol.DevID, seen []protocol.DevID) (schema.Encoding, error) {
	if err := s.begin(ctx, "PlaceShards"); err != nil {
		return schema.Encoding{}, err
	}
	defer s.mu.Unlock()
	if err := s.unchanged(fid, seen); err != nil {
		return schema.Encoding{}, err
	}
	e, err := s.encodedAs(fid, encoding)
	if err != nil {
		return e, err
	}
	was := e.Devices
	e.Devices = slices.Clone(was)
	for i, dev := range placed {
		e.Devices[i] = dev
	}
	if distinct := sorted(e.Devices); len(slices.Compact(distinct)) < len(was) || epoch <= e.Epoch {
		return e, fmt.Errorf("shards of fid %d on %v as of %d: %w", fid, e.Devices, epoch, schema.ErrStale)
	}
	e.Epoch = epoch
	devs := slices.Clone(s.locations[fid])
	for _, dev := range placed {
		s.comes(fid, dev)
		if !slices.Contains(devs, dev) {
			devs = append(devs, dev)
		}
	}
	for _, dev := range was {
		if i := slices.Index(devs, dev); i >= 0 && !slices.Contains(e.Devices, dev) {
			devs = slices.Delete(devs, i, i+1)
			s.goes(fid, dev, schema.ShardOf(e.ID))
		}
	}
	s.encodings[fid], s.locations[fid] = e, sorted(devs)
	s.count(fid)
	e.Devices = slices.Clone(e.Devices)
	return e, nil
}

// RecordDecoding is [schema.Encodings.RecordDecoding].
func (s *Store) RecordDecoding(ctx context.Context, fid protocol.FID, encoding uint64, devs, seen []protocol.DevID) error {
	if err := schema.CheckCopies(fid, devs); err != nil {
		return err
	}
	if err := s.begin(ctx, "RecordDecoding"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if err := s.unchanged(fid, seen); err != nil {
		return err
	}
	e, err := s.encodedAs(fid, encoding)
	if err != nil {
		return err
	}
	for _, dev := range devs {
		delete(s.rows, Key{schema.QueueCopyDelete, fid, dev})
	}
	for _, dev := range e.Devices {
		s.goes(fid, dev, schema.ShardOf(e.ID))
	}
	delete(s.encodings, fid)
	s.locations[fid] = sorted(devs)
	s.count(fid)
	return nil
}
