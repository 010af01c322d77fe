package protocol

import (
	"context"
	"errors"
	"fmt"
)

// Changes that are made only while a key names a certain file: read what is
// there, decide, and change only that. Trackers of MogileFS do not know of it and
// make the change whatever the key names.

// DeleteIf is [Client.Delete] only if the key names fid at that moment; else the
// error matches [ErrFIDMismatch].
func (c *Client) DeleteIf(ctx context.Context, domain, key string, fid FID) error {
	_, err := c.Do(ctx, "delete", Args{{"domain", domain}, {"key", key}, {"if_fid", fid.String()}})
	if err == nil || c.o.MissingOK && errors.Is(err, ErrUnknownKey) {
		return nil
	}
	return fmt.Errorf("delete key %q in domain %q, fid %d: %w", key, domain, fid, err)
}

// RenameIf is [Client.Rename] only if from names fid at that moment; else the
// error matches [ErrFIDMismatch].
func (c *Client) RenameIf(ctx context.Context, domain, from, to string, fid FID) error {
	_, err := c.Do(ctx, "rename", Args{{"domain", domain}, {"from_key", from}, {"to_key", to}, {"if_fid", fid.String()}})
	if err == nil || c.o.MissingOK && errors.Is(err, ErrUnknownKey) {
		return nil
	}
	return fmt.Errorf("rename key %q to %q in domain %q, fid %d: %w", from, to, domain, fid, err)
}

// SetClassIf is [Client.SetClass] only if the key names fid at that moment; else
// the error matches [ErrFIDMismatch].
func (c *Client) SetClassIf(ctx context.Context, domain, key, class string, fid FID) error {
	if _, err := c.Do(ctx, "updateclass", Args{{"domain", domain}, {"key", key}, {"class", class}, {"if_fid", fid.String()}}); err != nil {
		return fmt.Errorf("move key %q in domain %q, fid %d, to class %q: %w", key, domain, fid, class, err)
	}
	return nil
}
