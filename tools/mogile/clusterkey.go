package mogile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

// clusterFlags say which cluster a daemon is of.
func clusterFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("cluster-key-file", "", "`FILE` with the key that trackers and storage daemons of a cluster share; see mogile key"),
		stringFlag("cluster-id", "", "`NAME` that the cluster's devices bear; empty: derived from the key, if there is one"),
	}
}

// clusterOf is what the flags say: the keys, none without a file, and the id.
func clusterOf(c *cli.Context) (protocol.ClusterKeys, string, error) {
	id := c.String("cluster-id")
	if id != "" && !protocol.ValidClusterID(id) {
		return protocol.ClusterKeys{}, "", usage("--cluster-id %q: use letters, digits, \"-\", \"_\" and \".\", 128 at most", id)
	}
	path := c.String("cluster-key-file")
	if path == "" {
		return protocol.ClusterKeys{}, id, nil
	}
	keys, err := readClusterKeys(path)
	if err != nil {
		return protocol.ClusterKeys{}, "", err
	}
	if id == "" {
		id = keys.ClusterID()
	}
	return keys, id, nil
}

// maxKeyFile is more than a key file has, in bytes.
const maxKeyFile = 8 << 10

// readClusterKeys reads a key file, which must be nobody's but its owner's and
// group's. Its errors do not show a key.
func readClusterKeys(path string) (protocol.ClusterKeys, error) {
	f, err := os.Open(path)
	if err != nil {
		return protocol.ClusterKeys{}, fmt.Errorf("cluster key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return protocol.ClusterKeys{}, fmt.Errorf("cluster key: %w", err)
	}
	if mode := info.Mode(); mode.IsRegular() && mode.Perm()&0o007 != 0 {
		return protocol.ClusterKeys{}, fmt.Errorf("cluster key %s: everybody on this machine may use it (mode %04o): chmod 600 it, or 640 with the daemon's group", path, mode.Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return protocol.ClusterKeys{}, fmt.Errorf("cluster key: %w", err)
	}
	keys, err := protocol.ParseClusterKeys(text)
	if err != nil {
		return protocol.ClusterKeys{}, fmt.Errorf("cluster key %s: %w", path, err)
	}
	return keys, nil
}

// noteWithoutKey says what is not done without a cluster key.
func noteWithoutKey(log zerolog.Logger, keys protocol.ClusterKeys) {
	if len(keys.Keys) == 0 {
		log.Info().Msg("no cluster key: beyond loopback copies go through trackers, and what needs signed orders stays undone (see --cluster-key-file)")
	}
}

// newClusterKey is 32 random bytes in hexadecimal.
func newClusterKey() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// makeClusterKeys reads the key file at path, and makes it first if there is
// none.
func makeClusterKeys(path string) (protocol.ClusterKeys, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = writeKeyFile(path, newClusterKey()+"\n")
	}
	if err != nil {
		return protocol.ClusterKeys{}, fmt.Errorf("cluster key: %w", err)
	}
	return readClusterKeys(path)
}

// writeKeyFile replaces the file at path, so that nobody ever sees half of it,
// and none but its owner any of it. A mode and owner that it has stay.
func writeKeyFile(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".cluster-key-") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is gone where all went well
	_, err = f.WriteString(text)
	if err == nil {
		err = keepOwner(f, path)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func keyCommand() *cli.Command {
	return &cli.Command{
		Name:  "key",
		Usage: "make a cluster key, or have a new one take over",
		Description: "Trackers sign what they order storage daemons to do with the cluster key: copy from device to\n" +
			"device, list what lies on a device, take a bad copy out of service. Put the same file on every\n" +
			"host, readable for the daemons alone, and name it with --cluster-key-file.",
		Subcommands: []*cli.Command{
			{
				Name: "new", ArgsUsage: "FILE",
				Usage:  "make a key, in a FILE that does not exist yet",
				Action: keyFile(newKeyFile),
			},
			{
				Name: "rotate", ArgsUsage: "FILE",
				Usage:  "put a new key into FILE; the one before it is still taken, and the cluster's id stays",
				Action: keyFile(rotateKeyFile),
			},
			{
				Name: "id", ArgsUsage: "FILE",
				Usage: "print the id of the cluster that the key in FILE is of",
				Action: keyFile(func(c *cli.Context, path string) error {
					keys, err := readClusterKeys(path)
					if err != nil {
						return err
					}
					fmt.Fprintln(c.App.Writer, keys.ClusterID())
					return nil
				}),
			},
		},
	}
}

// keyFile is the action of a command with one operand, a file.
func keyFile(do func(c *cli.Context, path string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Len() != 1 || c.Args().First() == "" {
			return usage("mogile key %s: one file must be named", c.Command.Name)
		}
		return do(c, c.Args().First())
	}
}

func newKeyFile(c *cli.Context, path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s exists: a key that is in use is replaced with `mogile key rotate %[1]s`", path), err)
	}
	if err := writeKeyFile(path, newClusterKey()+"\n"); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "made %s: copy it to every host of the cluster, readable for the daemons alone\n", path)
	return nil
}

func rotateKeyFile(c *cli.Context, path string) error {
	keys, err := readClusterKeys(path)
	if err != nil {
		return err
	}
	if err := writeKeyFile(path, keys.Rotated(newClusterKey())); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%s has a new key: copy it to every host, and restart the storage daemons first, then the trackers\n", path)
	return nil
}
