package protocol_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

func TestChangesOfACertainFile(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	ctx := t.Context()
	created, err := c.Create(ctx, "test", "k", protocol.CreateOptions{}, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	fid, other := created.FID, created.FID+1
	want := func(what string, err, target error) {
		t.Helper()
		if !errors.Is(err, target) || target == nil && err != nil {
			t.Errorf("%s: %v; want %v", what, err, target)
		}
	}
	want("delete another", c.DeleteIf(ctx, "test", "k", other), protocol.ErrFIDMismatch)
	want("rename another", c.RenameIf(ctx, "test", "k", "b", other), protocol.ErrFIDMismatch)
	want("class of another", c.SetClassIf(ctx, "test", "k", "default", other), protocol.ErrFIDMismatch)
	want("delete none", c.DeleteIf(ctx, "test", "nix", fid), protocol.ErrUnknownKey)
	want("class", c.SetClassIf(ctx, "test", "k", "default", fid), nil)
	want("rename", c.RenameIf(ctx, "test", "k", "b", fid), nil)
	if _, err := c.Paths(ctx, "test", "b", protocol.PathsOptions{Stale: 90 * time.Second}); err != nil {
		t.Error(err)
	}
	requests := cluster.Trackers[0].Requests()
	if last := requests[len(requests)-1]; last.Args.Get("stale") != "90" {
		t.Errorf("stale is told as %v", last.Args)
	}
	want("delete", c.DeleteIf(ctx, "test", "b", fid), nil)
	lax := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), MissingOK: true})
	want("delete again", lax.DeleteIf(ctx, "test", "b", fid), nil)
	want("rename again", lax.RenameIf(ctx, "test", "b", "c", fid), nil)
	want("delete again, strictly", c.DeleteIf(ctx, "test", "b", fid), protocol.ErrUnknownKey)
}

// Clients look for some codes anywhere in an error's line.
func TestTextsNameNoCode(t *testing.T) {
	t.Parallel()
	codes := []string{"unknown_key", "unknown_command", "key_exists", "unreg_class", "class_not_found", "none_match"}
	for _, code := range []string{
		"after_mismatch", "bad_params", "class_exists", "class_has_files", "class_not_found", "db", "domain_exists", "domain_has_files",
		"domain_not_empty", "domain_not_found", "dup", "failure", "fid_mismatch", "host_exists", "host_mismatch", "host_not_empty",
		"host_not_found", "invalid_mindevcount", "key_exists", "no_class", "no_devices", "no_device", "no_domain", "no_host", "no_ip",
		"no_port", "no_temp_file", "none_match", "nodel_default_class", "plugin_aborted", "state_too_high", "unknown_command",
		"unknown_host", "unknown_key", "unknown_state", "unreg_class", "unreg_domain", "invalid_key", "fid_in_use", "fid_exists",
	} {
		for _, other := range codes {
			if other != code && strings.Contains(string(protocol.AppendErr(nil, protocol.Err(code), nil)), other) {
				t.Errorf("the line for %s has %s in it", code, other)
			}
		}
	}
}
