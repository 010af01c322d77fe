package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// TestOperatorsCluster runs testdata/operator.sh: a cluster as an operator has
// it, from configuration files, with tools and processes alone. At scale 10 the
// tree has 20,000 files and 2 GiB.
func TestOperatorsCluster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mogilefsd", "mogstored", "mogdbsetup", "mogadm", "mogtool"} {
		if err := os.Symlink(binary, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	ips := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}
	port, trackers := freePorts(t, 2, ips...), freePorts(t, 2, ips[0])
	operatorsNginx(t, dir, net.JoinHostPort(ips[3], strconv.Itoa(port)))
	page, err := os.ReadFile("../../docs/foreign-storage.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(page), "```sh\n#!/bin/sh\n")
	script, _, ok := strings.Cut(script, "```")
	if !ok {
		t.Fatal("docs/foreign-storage.md has no script that writes usage files")
	}
	if err := os.WriteFile(filepath.Join(dir, "usage.sh"), []byte(script), 0o666); err != nil {
		t.Fatal(err)
	}
	// A small tree goes slowly, so that the kills meet transfers.
	files, bytes, jobs := scale(600), scale(60<<20), 2
	if files >= 6000 {
		files, bytes, jobs = 20000, 2<<30, 16
	}
	growTree(t, filepath.Join(dir, "tree"), files, bytes)

	// The script makes the database's tables itself.
	pg, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "testdata/operator.sh")
	cmd.Env = append(os.Environ(), "DIR="+dir, "NGINX_PROGRAM="+nginxBinary(t), fmt.Sprint("PORT=", port), fmt.Sprint("MGMT=", port+1), fmt.Sprint("JOBS=", jobs),
		fmt.Sprint("TRACKER1=", trackers), fmt.Sprint("TRACKER2=", trackers+1),
		"PG_HOST="+pg.Hostname(), "PG_PORT="+pg.Port(), "PG_DB="+strings.TrimPrefix(pg.Path, "/"), "PG_USER="+pg.User.Username())
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A daemon that the script leaves behind must not keep the test waiting.
	out := &timedLog{t: t, began: time.Now()}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, out, time.Second
	if err := cmd.Run(); err != nil || out.last != "== done" {
		t.Errorf("operator.sh: %v", err)
	}
}

// timedLog logs lines with the time since it began.
type timedLog struct {
	t     testing.TB
	began time.Time
	rest  string
	last  string
}

func (l *timedLog) Write(p []byte) (int, error) {
	l.rest += string(p)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(p), nil
		}
		l.last, l.rest = line, rest
		l.t.Logf("%6.1fs %s", time.Since(l.began).Seconds(), line)
	}
}

// operatorsNginx writes nginx.conf, with device 4.
func operatorsNginx(t testing.TB, dir, listen string) {
	docroot := filepath.Join(dir, "mogdata4")
	if err := os.MkdirAll(filepath.Join(docroot, "dev4"), 0o777); err != nil {
		t.Fatal(err)
	}
	var scratch strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&scratch, "\t%s_temp_path %s;\n", kind, filepath.Join(dir, kind))
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n" // the test's folders are nobody else's
	}
	conf := fmt.Sprintf("%spid %s;\nerror_log %s warn;\nworker_processes 1;\nevents { worker_connections 512; }\nhttp {\n\taccess_log off;\n%s%s}\n",
		user, filepath.Join(dir, "nginx.pid"), filepath.Join(dir, "error.log"), scratch.String(),
		documentedServer(t, listen, docroot, []protocol.DevID{4}, true))
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o666); err != nil {
		t.Fatal(err)
	}
}

// growTree fills dir with files of all sizes, empty ones too, in folders of
// some hundred.
func growTree(t testing.TB, dir string, files, bytes int) {
	t.Helper()
	rng := newRand(t)
	noise := rand.NewChaCha8([32]byte{1})
	for n := range files {
		name := filepath.Join(dir, fmt.Sprintf("%02d", n/200), fmt.Sprintf("file %d.bin", n))
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			t.Fatal(err)
		}
		// A tenth are large and hold half of all.
		mean := bytes / files * 2 / 3
		size := rng.IntN(mean + 1)
		if n%10 == 0 {
			size = rng.IntN(12*mean + 1)
		}
		if n%100 == 50 {
			size = 0
		}
		body := make([]byte, min(size+mean/2*min(size, 1), bytes))
		_, _ = noise.Read(body) // never fails
		if err := os.WriteFile(name, body, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnotherKey restarts one storage daemon with a key that is not the
// tracker's: check names its host, and what to do.
func TestAnotherKey(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Key: true})
	if code, out, words, err := tool(c, "check"); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, words)
	}
	key := filepath.Join(filepath.Dir(c.Hosts[0].Docroot), "cluster.key")
	right, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := exec.Command(binary, "key", "id", key).Output()
	if err != nil {
		t.Fatal(err)
	}
	restart := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(key, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c.Hosts[1].Kill()
		c.Hosts[1].Start()
		c.WaitWriteable()
	}
	restart(fmt.Appendf(nil, "cluster-id %s\n%x\n", bytes.TrimSpace(id), randomBytes(32)))
	code, out, words, err := tool(c, "check")
	if err != nil || code != 1 || !strings.Contains(out, "problem: the storage daemons of host2 refuse the orders of tracker "+c.Addrs[0]+": the order is signed with another cluster key") ||
		!strings.Contains(out, "remedy:  give host2 the tracker's file of --cluster-key-file") {
		t.Errorf("exit code %d, %v: %s%s", code, err, out, words)
	}
	restart(right)
	if code, out, words, err := tool(c, "check"); err != nil || code != 0 {
		t.Errorf("with the right key: exit code %d, %v: %s%s", code, err, out, words)
	}
}
