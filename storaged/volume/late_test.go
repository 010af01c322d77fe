//go:build unix

package volume_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// lateCalls collects what late was called with.
type lateCalls chan error

func newLate() (lateCalls, volume.Late) {
	calls := make(lateCalls, 10)
	return calls, func(err error) { calls <- err }
}

// only checks that late was called once, or not at all, and why.
func (c lateCalls) only(t *testing.T, want error) {
	t.Helper()
	synctest.Wait()
	close(c)
	var got []error
	for err := range c {
		got = append(got, err)
	}
	if want == nil && len(got) != 0 || want != nil && (len(got) != 1 || !errors.Is(got[0], want)) {
		t.Errorf("late was called with %v, want %v", got, want)
	}
}

func openRead(v *volume.Volume, late volume.Late, name string) (string, error) {
	buf := make([]byte, 100)
	_, f, n, err := v.OpenRead(context.Background(), late, name, buf, func(i volume.Info) (int64, int64) { return 0, i.Size })
	if f != nil {
		err = errors.Join(err, errors.New("a small file is left open"), f.Close())
	}
	return string(buf[:n]), err
}

// TestReadThatHangs: while each step of a read hangs another answers, once; who
// comes back from it learns that.
func TestReadThatHangs(t *testing.T) {
	t.Parallel()
	for skip := range 4 { // open, stat, read, close
		t.Run(fmt.Sprint(skip), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				disk := simulate(t, simdisk.Options{}, false)
				d, v := openSim(t, disk, volume.Options{})
				mustPut(t, v, name42, []byte("content"))
				heal := disk.Inject(simdisk.Fault{Hang: true, Skip: skip})
				calls, late := newLate()
				type outcome struct {
					got string
					err error
				}
				done := make(chan outcome, 1)
				start := time.Now()
				go func() {
					got, err := openRead(v, late, name42)
					done <- outcome{got, err}
				}()
				synctest.Wait()
				if disk.Hanging() == 0 { // closing does not wait for the disk
					if o := <-done; o.got != "content" || o.err != nil {
						t.Errorf("%q, %v", o.got, o.err)
					}
					calls.only(t, nil)
				} else {
					if err := <-calls; !errors.Is(err, volume.ErrSick) {
						t.Errorf("late: %v", err)
					}
					if took := time.Since(start); took != volume.DefaultStuckAfter {
						t.Errorf("late after %v", took)
					}
					select {
					case o := <-done:
						t.Errorf("came back from a disk that hangs: %v", o)
					default:
					}
					heal()
					if o := <-done; o.got != "" || !errors.Is(o.err, volume.ErrLate) {
						t.Errorf("came back with %q, %v", o.got, o.err)
					}
					time.Sleep(time.Hour)
					calls.only(t, nil)
				}
				heal()
				calls, late = newLate()
				if got, err := openRead(v, late, name42); got != "content" || err != nil {
					t.Errorf("of a disk that is well again: %q, %v", got, err)
				}
				time.Sleep(time.Hour)
				calls.only(t, nil)
				if err := d.Close(); err != nil {
					t.Error(err)
				}
				if n := disk.Open(); n != 0 {
					t.Errorf("%d files are still open", n)
				}
			})
		})
	}
}

// TestCommitThatHangs is TestReadThatHangs for uploads: what was refused is undone.
func TestCommitThatHangs(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		for skip := range 12 {
			t.Run(fmt.Sprintf("%s/%d", kind.name, skip), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					disk := simulate(t, kind.disk, kind.own)
					d, v := openSim(t, disk, volume.Options{})
					u, err := v.Create(context.Background(), name42)
					if err == nil {
						_, err = u.Write([]byte("new"))
					}
					if err != nil {
						t.Fatal(err)
					}
					heal := disk.Inject(simdisk.Fault{Hang: true, Skip: skip})
					calls, late := newLate()
					done := make(chan error, 1)
					go func() { done <- u.CommitUnless(context.Background(), late, "") }()
					synctest.Wait()
					hangs := disk.Hanging() > 0
					if hangs {
						if err := <-calls; !errors.Is(err, volume.ErrSick) {
							t.Errorf("late: %v", err)
						}
						if err := v.Remove(context.Background(), name42); !errors.Is(err, volume.ErrSick) {
							t.Errorf("Remove beside a hanging commit: %v", err)
						}
					}
					heal()
					err = <-done
					if hangs != errors.Is(err, volume.ErrLate) || !hangs && err != nil {
						t.Errorf("hung: %v; came back with %v", hangs, err)
					}
					time.Sleep(time.Hour)
					calls.only(t, nil)
					if got, err := read(v, name42); hangs != errors.Is(err, fs.ErrNotExist) || !hangs && string(got) != "new" {
						t.Errorf("hung: %v; read %q, %v", hangs, got, err)
					}
					mustPut(t, v, name42, []byte("newer"))
					if err := d.Close(); err != nil {
						t.Error(err)
					}
					if n := disk.Open(); n != 0 {
						t.Errorf("%d files are still open", n)
					}
				})
			})
		}
	}
}

// TestReadOnABusyDisk: a read that takes long while others on the disk end is
// waited for.
func TestReadOnABusyDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := simulate(t, simdisk.Options{}, false)
		d, v := openSim(t, disk, volume.Options{})
		mustPut(t, v, "slow", []byte("content"))
		mustPut(t, v, "quick", nil)
		heal := disk.Inject(simdisk.Fault{Path: "/docroot/dev1/slow", Hang: true})
		calls, late := newLate()
		done := make(chan error, 1)
		go func() {
			got, err := openRead(v, late, "slow")
			if err == nil && got != "content" {
				err = fmt.Errorf("read %q", got)
			}
			done <- err
		}()
		for range 2 * int(volume.DefaultStuckAfter/time.Second) {
			time.Sleep(time.Second)
			if _, err := v.Stat(context.Background(), "quick"); err != nil {
				t.Fatal(err)
			}
		}
		heal()
		if err := <-done; err != nil {
			t.Error(err)
		}
		calls.only(t, nil)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}
