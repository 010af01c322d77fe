package mogile

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
)

// recoverShardsCommand is `mogile storaged recover-shards`.
func recoverShardsCommand() *cli.Command {
	return &cli.Command{
		Name:      "recover-shards",
		Usage:     "put an erasure-coded file together from the disks that are left",
		ArgsUsage: "DIR…",
		Description: "No daemon and no database is needed. A DIR is a docroot, a device's folder or a\n" +
			"folder that has some, a folder with shards, or a shard itself. What is written has\n" +
			"the checksum that the shards name; FILE is there only if it does.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "fid", Usage: "`N`, the number of the file"},
			&cli.StringFlag{Name: "out", Usage: "`FILE` to write, which must not be there"},
		},
		OnUsageError: usageError,
		Action:       recoverShards,
	}
}

func recoverShards(c *cli.Context) error {
	fid, err := strconv.ParseUint(c.String("fid"), 10, 64)
	out := c.String("out")
	switch {
	case err != nil || fid == 0 || fid > protocol.MaxFID:
		return usage("--fid %q is not the number of a file", c.String("fid"))
	case out == "":
		return usage("--out says which file to write")
	case !c.Args().Present():
		return usage("name the directories to look in, after the flags")
	}
	if _, err := os.Lstat(out); err == nil {
		return fmt.Errorf("%s is there already", out)
	}
	codec := erasure.New(erasure.Options{})
	files, err := codec.FindShards(c.Context, c.Args().Slice(), protocol.FID(fid))
	if err != nil {
		return err
	}
	for _, f := range files {
		h := f.State.Header
		switch {
		case f.Err != nil:
			fmt.Fprintf(c.App.ErrWriter, "%s: %v\n", f.Name, f.Err)
		default:
			fmt.Fprintf(c.App.ErrWriter, "%s: shard %d of %d+%d, encoding %016x, %d bytes of a file of %d\n", f.Name, h.Index, h.K, h.M, h.Encoding, f.Size, h.Length)
		}
	}
	w, err := os.CreateTemp(filepath.Dir(out), filepath.Base(out)+".part*")
	if err != nil {
		return err
	}
	defer os.Remove(w.Name()) // not there any more if all went well
	defer w.Close()           // twice if all went well
	r, err := codec.Recover(c.Context, files, w, func() error {
		if _, err := w.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return w.Truncate(0)
	})
	if err != nil {
		return fmt.Errorf("fid %d: %w", fid, err)
	}
	for _, step := range []func() error{
		w.Sync, w.Close,
		func() error { return os.Chmod(w.Name(), 0o644) },
		func() error { return os.Chtimes(w.Name(), time.Time{}, r.Header.Modified) },
		func() error { return os.Link(w.Name(), out) }, // a rename would replace what came there meanwhile
	} {
		if err := step(); err != nil {
			return err
		}
	}
	for i := range r.Header.Shards() {
		if err := r.Bad[i]; err != nil {
			fmt.Fprintf(c.App.ErrWriter, "shard %d is damaged: %v\n", i, err)
		}
	}
	sum := fmt.Sprintf("CRC32C %08x", r.Header.CRC32C)
	if !r.Header.Digest.IsZero() {
		sum += ", " + r.Header.Digest.String()
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: %d bytes from %d of %d+%d shards, %s\n", out, r.Header.Length, len(r.Used), r.Header.K, r.Header.M, sum)
	return err
}
