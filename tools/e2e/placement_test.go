package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestZones stores files under policies that name zones, moves a class from one
// policy to another, and starts no tracker in a network that is in no zone.
func TestZones(t *testing.T) {
	scenario(t)
	c := StartCluster(t, Spec{Hosts: 4, Devices: 1, Key: true})
	c.Do("set_server_setting", "key=zone_near", "value=127.0.0.1 127.0.0.2")
	c.Do("set_server_setting", "key=zone_far", "value=127.0.0.3, 127.0.0.4/32")
	c.Do("set_server_setting", "key=network_zones", "value=near,far")
	for class, policy := range map[string]string{
		"zoned":  "HostsPerNetwork(near=1, far=2)",
		"spread": "MultipleNetworks(3)",
		"both":   "Union(HostsPerNetwork(far=1), MultipleHosts(2))",
	} {
		c.Do("create_class", "domain="+domain, "class="+class, "mindevcount=2", "replpolicy="+policy)
	}
	// zones counts the paths in each zone.
	zones := func(paths []string) (near, far int) {
		for _, p := range paths {
			if strings.HasPrefix(p, "http://127.0.0.1:") || strings.HasPrefix(p, "http://127.0.0.2:") {
				near++
			} else {
				far++
			}
		}
		return near, far
	}
	type want struct{ copies, near, far int } // near and far at least
	placed := func(key string, w want) {
		t.Helper()
		var paths []string
		within(t, time.Minute, key+" is where its policy wants it", func() (err error) {
			if paths, err = c.Paths(key); err != nil {
				return err
			}
			if near, far := zones(paths); len(paths) != w.copies || near < w.near || far < w.far {
				return fmt.Errorf("paths %q, want %+v", paths, w)
			}
			return nil
		})
		c.CheckFile(key, paths, []byte(key))
	}
	wants := map[string]want{"zoned": {3, 1, 2}, "spread": {3, 1, 1}, "both": {2, 0, 1}}
	for i := range 6 {
		for class := range wants {
			key := fmt.Sprint(class, i)
			if err := c.Put(key, class, []byte(key)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 6 {
		for class, w := range wants {
			placed(fmt.Sprint(class, i), w)
		}
	}
	// The client is near, and so is the first path, where there is a choice.
	for i := range 6 {
		if paths, err := c.Paths(fmt.Sprint("zoned", i)); err != nil || !strings.HasPrefix(paths[0], "http://127.0.0.1:") && !strings.HasPrefix(paths[0], "http://127.0.0.2:") {
			t.Errorf("paths of a client that is near: %q, %v", paths, err)
		}
	}
	// Another class: what it has too many goes, what it lacks comes.
	c.Do("updateclass", "domain="+domain, "key=zoned0", "class=both")
	placed("zoned0", want{2, 0, 1})
	c.Do("updateclass", "domain="+domain, "key=both0", "class=zoned")
	placed("both0", want{3, 1, 2})

	c.Trackers[0].Kill()
	for network, said := range map[string]string{
		"10.0.0.1": "the local network 10.0.0.1 is in no zone (there are near, far)",
		"10.0.0.x": `--local-network: "10.0.0.x" is no address`,
	} {
		out, err := exec.Command(binary, "tracker", "--dsn", c.DSN, "--listen", "127.0.0.1:0", "--local-network", network).CombinedOutput()
		if err == nil || !strings.Contains(string(out), said) {
			t.Errorf("a tracker in %s: %v, %s", network, err, out)
		}
	}
}
