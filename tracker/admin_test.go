package tracker_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker"
)

// exchange is a line and its answer. Answers that begin with OK are compared
// field by field in any order; a bare code stands for a refusal with any text.
type exchange struct{ line, want string }

func (c *client) talk(all []exchange) {
	c.t.Helper()
	for _, x := range all {
		if strings.ContainsAny(x.want, " ") {
			c.same(x.line, x.want)
		} else {
			c.refused(x.line, x.want)
		}
	}
}

func TestDomainsAndClasses(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.talk([]exchange{
		{"create_domain", "no_domain"},
		{"create_domain domain=0", "no_domain"},
		{"create_domain domain=toast", "ERR domain_exists That+domain+already+exists"},
		{"create_domain domain=" + strings.Repeat("d", 256), "bad_params"},
		{"create_domain domain=%ff", "bad_params"},
		{"create_domain domain=a%00", "bad_params"},
		{"create_domain domain=z%c3%a4", "OK domain=z%C3%A4"},
		{"get_domains", "OK domains=2&domain1=toast&domain1classes=1&domain1class1name=default&domain1class1mindevcount=2&domain1class1replpolicy=MultipleHosts%28%29&domain1class1hashtype=NONE" +
			"&domain2=z%C3%A4&domain2classes=1&domain2class1name=default&domain2class1mindevcount=2&domain2class1replpolicy=MultipleHosts%28%29&domain2class1hashtype=NONE"},
		{"delete_domain", "no_domain"},
		{"delete_domain domain=nix", "domain_not_found"},
		{"delete_domain domain=%00", "domain_not_found"},
		{"delete_domain domain=z%c3%a4", "OK domain=z%C3%A4"},

		{"create_class", "no_domain"},
		{"create_class domain=nix", "no_class"},
		{"create_class domain=nix&class=c", "ERR invalid_mindevcount The+mindevcount+must+be+at+least+1"},
		{"create_class domain=nix&class=c&mindevcount=0", "invalid_mindevcount"},
		{"create_class domain=nix&class=c&mindevcount=-1", "invalid_mindevcount"},
		{"create_class domain=nix&class=c&mindevcount=99999999999999999999", "invalid_mindevcount"},
		{"create_class domain=nix&class=c&mindevcount=1&replpolicy=Nix()&hashtype=nix", "invalid_replpolicy"},
		{"create_class domain=nix&class=c&mindevcount=1&replpolicy=MultipleHosts&hashtype=nix", "invalid_replpolicy"},
		{"create_class domain=nix&class=c&mindevcount=1&hashtype=md5", "invalid_hashtype"},
		{"create_class domain=nix&class=c&mindevcount=1", "domain_not_found"},
		{"create_class domain=toast&mindevcount=1&class=" + strings.Repeat("c", 51), "bad_params"},
		{"create_class domain=toast&class=big&mindevcount=3&replpolicy=MultipleHosts%283%29&hashtype=MD5", "OK class=big&mindevcount=3&domain=toast"},
		{"create_class domain=toast&class=big&mindevcount=3", "class_exists"},
		{"update_class domain=toast&class=big", "ERR invalid_mindevcount The+mindevcount+must+be+at+least+1"},
		{"update_class domain=toast&class=nix&mindevcount=1", "class_not_found"},
		{"update_class domain=nix&class=nix&mindevcount=1", "domain_not_found"},
		{"update_class domain=toast&class=big&mindevcount=4", "OK class=big&mindevcount=4&domain=toast"},
		{"create_class update=1&domain=toast&class=big&mindevcount=4&replpolicy=&hashtype=", "OK class=big&mindevcount=4&domain=toast"},
		{"get_domains", "OK domains=1&domain1=toast&domain1classes=2&domain1class1name=default&domain1class1mindevcount=2&domain1class1replpolicy=MultipleHosts%28%29&domain1class1hashtype=NONE" +
			"&domain1class2name=big&domain1class2mindevcount=4&domain1class2replpolicy=MultipleHosts%283%29&domain1class2hashtype=MD5"},
		{"update_class domain=toast&class=big&mindevcount=4&hashtype=SHA-1", "OK class=big&mindevcount=4&domain=toast"},
		{"update_class domain=toast&class=big&mindevcount=4&hashtype=BLAKE3", "OK class=big&mindevcount=4&domain=toast"},
		{"update_class domain=toast&class=big&mindevcount=4&hashtype=NONE", "OK class=big&mindevcount=4&domain=toast"},
		{"update_class domain=toast&class=default&mindevcount=1&replpolicy=MultipleDevices()", "OK class=default&mindevcount=1&domain=toast"},
		{"create_class domain=toast&class=default&mindevcount=1", "class_exists"},
		{"get_domains", "OK domains=1&domain1=toast&domain1classes=2&domain1class1name=default&domain1class1mindevcount=1&domain1class1replpolicy=MultipleDevices%28%29&domain1class1hashtype=NONE" +
			"&domain1class2name=big&domain1class2mindevcount=4&domain1class2replpolicy=MultipleHosts%283%29&domain1class2hashtype=NONE"},
	})
	c.store("in-big", "x", "&class=big")
	c.talk([]exchange{
		{"delete_class", "no_domain"},
		{"delete_class domain=toast", "no_class"},
		{"delete_class domain=nix&class=default", "nodel_default_class"},
		{"delete_class domain=nix&class=nix", "domain_not_found"},
		{"delete_class domain=toast&class=nix", "class_not_found"},
		{"delete_class domain=toast&class=%00", "class_not_found"},
		{"delete_class domain=toast&class=big", "class_has_files"},
		{"delete_domain domain=toast", "ERR domain_has_files Domain+still+has+files,+unable+to+delete"},
		{"delete domain=toast&key=in-big", "OK "},
		{"delete_domain domain=toast", "domain_has_classes"},
		{"delete_class domain=toast&class=big", "OK domain=toast&class=big"},
		{"delete_domain domain=toast", "OK domain=toast"},
		{"get_domains", "OK domains=0"},
		{"create_open domain=toast&key=k", "unreg_domain"},
	})
}

func TestHostsAndDevices(t *testing.T) {
	t.Parallel()
	e := startOn(t, newFarm(t, 2, 1), openStore(t))
	c := e.dial()
	a, b := e.farm.hosts[0], e.farm.hosts[1]
	host := func(n int, status, name, ip string, port int, get, altip, altmask string) string {
		return fmt.Sprintf("&host%[1]d_hostid=%[1]d&host%[1]d_status=%[2]s&host%[1]d_hostname=%[3]s&host%[1]d_hostip=%[4]s&host%[1]d_http_port=%[5]d&host%[1]d_http_get_port=%[6]s&host%[1]d_altip=%[7]s&host%[1]d_altmask=%[8]s",
			n, status, name, ip, port, get, altip, altmask)
	}
	c.talk([]exchange{
		{"get_hosts", "OK hosts=0"},
		{"get_devices", "OK devices=0"},
		{"create_host ip=127.0.0.1", "no_host"},
		{"create_host host=s1&status=nix", "ERR no_ip IP+required+to+create+host"},
		{"create_host host=s1&ip=127.0.0.1&status=nix", "no_port"},
		{"create_host host=s1&ip=127.0.0.1&port=1&status=nix", "unknown_state"},
		{"create_host host=s1&ip=127.0.0.1&port=1&status=drain", "unknown_state"},
		{"create_host host=s1&ip=127.0.0.1&port=70000", "bad_params"},
		{"create_host host=s1&ip=127.0.0.1&port=junk", "bad_params"},
		{"create_host host=s1&ip=a/b&port=1", "bad_params"},
		{"create_host port=1&ip=127.0.0.9&host=" + strings.Repeat("h", 41), "bad_params"},
		{"update_host host=s1&status=alive", "host_not_found"},
		{fmt.Sprintf("create_host host=s1&ip=%s&port=%d", a.ip, a.port()), "OK hostid=1&hostname=s1"},
		{fmt.Sprintf("create_host host=s2&hostip=%s&http_port=%d&status=alive&getport=&altip=&altmask=", b.ip, b.port()), "OK hostid=2&hostname=s2"},
		{"create_host host=s1", "host_exists"},
		{"create_host host=s3&ip=" + a.ip + "&port=1", "ERR dup Duplicate+name/number+used."},
		{"get_hosts", "OK hosts=2" + host(1, "down", "s1", a.ip, a.port(), "", "", "") + host(2, "alive", "s2", b.ip, b.port(), "", "", "")},
		{"update_host host=s1&status=alive&altip=127.7.7.7&altmask=127.7.0.0/16&http_get_port=99", "OK hostid=1&hostname=s1"},
		{"update_host host=s2&altip=127.7.7.7", "dup"},
		{"get_hosts hostid=1", "OK hosts=1" + host(1, "alive", "s1", a.ip, a.port(), "99", "127.7.7.7", "127.7.0.0/16")},
		{"create_host update=1&host=s1&getport=&altip=&altmask=&ip=&port=", "OK hostid=1&hostname=s1"},
		{"get_hosts hostid=1&callid=x", "OK callid=x&hosts=1" + host(1, "alive", "s1", a.ip, a.port(), "", "", "")},
		{"get_hosts hostid=77", "OK hosts=0"},

		{"create_device state=nix", "invalid_state"},
		{"create_device", "invalid_devid"},
		{"create_device devid=0&hostname=s1", "invalid_devid"},
		{"create_device devid=1x&hostname=s1", "invalid_devid"},
		{"create_device devid=32768&hostname=s1", "invalid_devid"},
		{"create_device devid=99999999999999999999&hostname=s1", "invalid_devid"},
		{"create_device devid=1&hostid=9", "unknown_hostid"},
		{"create_device devid=1&hostid=999999999", "unknown_hostid"},
		{"create_device devid=1&hostname=nix", "ERR unknown_host Host+not+found"},
		{"create_device devid=1", "ERR bad_args No+hostid/hostname+parameter"},
		{"create_device devid=1&hostid=1&hostname=nix", "OK "},
		{"create_device devid=1&hostid=1", "existing_devid"},
		{"create_device devid=2&hostname=s2&state=down", "OK "},
		{"get_devices devid=2", "OK devices=1&dev1_devid=2&dev1_hostid=2&dev1_status=down&dev1_weight=100&dev1_mb_total=&dev1_mb_used=&dev1_mb_asof=&dev1_mb_free=&dev1_observed_state=&dev1_utilization=&dev1_reject_bad_md5="},
		{"get_devices devid=9", "OK devices=0"},

		{"set_state", "bad_params"},
		{"set_state host=s1&device=1", "bad_params"},
		{"set_state host=s1&device=1&state=nix", "bad_params"},
		{"set_state host=s1&device=9&state=down", "ERR no_device Device+not+found"},
		{"set_state host=s1&device=-1&state=down", "no_device"},
		{"set_state host=s1&device=2&state=down", "host_mismatch"},
		{"set_state host=nix&device=2&state=down", "host_mismatch"},
		{"set_state host=s2&device=2&state=dead", "OK "},
		{"set_state host=s2&device=2&state=alive", "ERR state_too_high Status+cannot+go+from+dead+to+alive%3B+must+use+down"},
		{"set_state host=s2&device=2&state=down", "OK "},
		{"set_weight host=s1&device=1", "bad_params"},
		{"set_weight host=s1&device=1&weight=-1", "bad_params"},
		{"set_weight host=s1&device=1&weight=99999999999", "bad_params"},
		{"set_weight host=s1&device=9&weight=1", "no_device"},
		{"set_weight host=s2&device=1&weight=1", "host_mismatch"},
		{"set_weight host=s1&device=1&weight=0", "OK "},

		{"delete_host", "unknown_host"},
		{"delete_host host=nix", "unknown_host"},
		{"delete_host host=s2", "ERR host_not_empty Unable+to+delete+host%3B+it+contains+devices+still"},
		{"create_host host=s3&ip=127.0.0.9&port=1", "OK hostid=3&hostname=s3"},
		{"delete_host host=s3", "OK "},
	})
	// What was just created can be used at once: the devices were looked at.
	d := c.ok("get_devices devid=1")
	for field, want := range map[string]string{"observed_state": "writeable", "weight": "0", "mb_asof": "", "reject_bad_md5": "1", "status": "alive"} {
		if got := d.Get("dev1_" + field); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	if len(d) != 12 {
		t.Errorf("get_devices has %d fields, want devices and eleven", len(d))
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.talk([]exchange{
		{"set_server_setting", "bad_params"},
		{"set_server_setting key=frob&value=1", "ERR not_writable not_writable"},
		{"set_server_setting key=schema_version&value=1", "not_writable"},
		{"set_server_setting key=fsck_host&value=1", "not_writable"},
		{"set_server_setting key=rebal_policy&value=1", "not_writable"},
		{"set_server_setting key=path_cache_ttl&value=1.5", "ERR invalid_format Must+be+numeric"},
		{"set_server_setting key=path_cache_ttl&value=3601", "ERR invalid_format Must+be+at+most+3600+seconds"},
		{"set_server_setting key=path_cache_ttl&value=99999999999999999999", "invalid_format"},
		{"set_server_setting key=path_cache_database_away&value=maybe", "ERR invalid_format Unknown+format"},
		{"set_server_setting key=memcache_ttl&value=-1", "ERR invalid_format Must+be+numeric"},
		{"set_server_setting key=skip_mkcol&value=maybe", "ERR invalid_format Unknown+format"},
		{"set_server_setting key=zone_a&value=10.0.0.0/8,+junk", "invalid_format"},
		{"set_server_setting key=zone_a&value=10.0.0.0/33", "invalid_format"},
		{"set_server_setting key=zone_a&value=10.0.0.0:255.0.255.0", "invalid_format"},
		{"set_server_setting key=fsck_checksum&value=md5", "ERR invalid_format Not+a+valid+checksum+algorithm"},
		{"set_server_setting key=network_zones&value=%00", "invalid_format"},
		{"set_server_setting value=1&key=slave_" + strings.Repeat("x", 50), "bad_params"},
		{"server_setting", "bad_params"},
		{"server_setting key=nix", "OK key=nix&value="},
		{"server_setting key=a%00", "OK key=a%00&value="},
	})
	for _, s := range []struct{ key, value, stored string }{
		{"skip_devcount", "", "0"}, {"skip_devcount", "Yes", "1"}, {"skip_devcount", "oFF", "0"}, {"skip_devcount", "on", "1"},
		{"skip_devcount", "No", "0"}, {"skip_devcount", "T", "1"}, {"skip_devcount", "0", "0"}, {"skip_mkcol", "1", "1"}, {"case_sensitive_list_keys", "true", "1"},
		{"memcache_ttl", "", "0"}, {"memcache_ttl", "60", "60"}, {"internal_queue_limit", "500", "500"},
		{"path_cache_ttl", "3600", "3600"}, {"path_cache_ttl", "0000000007", "7"}, {"path_cache_ttl", "", "0"},
		{"path_cache_database_away", "off", "0"}, {"path_cache_database_away", "on", "1"},
		{"memcache_servers", "127.0.0.1:11211", "127.0.0.1:11211"},
		{"network_zones", "a, b", "a, b"}, {"zone_a", "10.0.0.0/8, 192.168.0.0:255.255.0.0 172.16.0.1", "10.0.0.0/8, 192.168.0.0:255.255.0.0 172.16.0.1"},
		{"queue_rate_for_fsck", "anything", "anything"},
		{"fsck_checksum", "off", "off"}, {"fsck_checksum", "MD5", "MD5"}, {"fsck_checksum", "class", ""},
		{"slave_keys", "a", "a"}, {"slave_keys", "", ""},
	} {
		c.same("set_server_setting key="+s.key+"&value="+protocol.Escape(s.value), "OK ")
		c.same("server_setting key="+s.key, "OK key="+s.key+"&value="+protocol.Escape(s.stored))
	}
	c.same("server_setting key=slave_version", "OK key=slave_version&value=2")
	c.ok("set_server_setting key=network_zones") // without a value: deleted
	c.ok("set_server_setting key=fsck_checksum&value=SHA-1")
	running := "fsck_host"
	if err := e.store.SetSetting(t.Context(), running, &running); err != nil {
		t.Fatal(err)
	}
	all := c.ok("server_settings")
	got := map[string]string{}
	for i := range all.Number("key_count") {
		got[all.Get(fmt.Sprintf("key_%d", i+1))] = all.Get(fmt.Sprintf("value_%d", i+1))
	}
	for key, want := range map[string]string{"fsck_checksum": "SHA-1", "memcache_ttl": "60", "schema_version": got["schema_version"], "slave_version": "2"} {
		if got[key] != want || want == "" {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	for _, key := range []string{"fsck_host", "network_zones", "slave_keys"} {
		if v, there := got[key]; there {
			t.Errorf("%s is listed as %q", key, v)
		}
	}
	if !strings.Contains(e.log.String(), "memcached is not used") {
		t.Error("nobody warned that memcached is not used")
	}
}

func TestMiscellany(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.QueryTimeout = 2 * time.Second; o.MonitorInterval = 50 * time.Millisecond })
	c := e.dial()
	// Clients of old take digits there for the reply's length.
	if got := c.ask("clear_cache 1=a&b=2&3=c"); got != "OK b=2&1=a&3=c" {
		t.Errorf("names with digits are echoed as %q", got)
	}
	c.talk([]exchange{
		{"clear_cache", "OK "},
		{"clear_cache all=1", "OK all=1"},
		{"clear_cache callid=3&devices=1", "OK callid=3&devices=1"},
		{"do_monitor_round", "OK "},
		{"sleep duration=1", "OK "},
		{"sleep duration=99999999999999999999", "OK "}, // capped
		{"sleep duration=-3", "OK "},
		{"replicate_now", "OK count=0"},
	})
	s := c.store("k", "x", "")
	jobs, err := e.store.Claim(t.Context(), schema.QueueReplicate, 10, time.Hour)
	if err != nil || len(jobs) != 1 {
		t.Fatalf("claimed %v, %v", jobs, err)
	}
	c.same("replicate_now", "OK count=1")
	if row := e.debug(s.fid).Queues[0]; row.NextTry > time.Now().Unix() {
		t.Errorf("the fid is not due: %+v", row)
	}
}

// TestOtherTrackersChanges has the database changed behind the tracker's back.
func TestOtherTrackersChanges(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.RefreshInterval = 20 * time.Millisecond })
	c := e.dial()
	if _, err := e.store.CreateDomain(t.Context(), "theirs"); err != nil {
		t.Fatal(err)
	}
	c.refused("create_domain domain=theirs", "domain_exists")
	e.eventually("the domain is seen", func() bool { return strings.HasPrefix(c.ask("list_keys domain=theirs"), "ERR none_match") })
}

// TestErasureCodeClasses wants classes with shards only where they can be, with
// the mindevcount of their copies whatever the client says.
func TestErasureCodeClasses(t *testing.T) {
	t.Parallel()
	e := start(t) // no cluster key, four devices, all on loopback
	c := e.dial()
	mindevcount := func(class, want string) {
		t.Helper()
		_, after, _ := strings.Cut(c.ask("get_domains"), "name="+class+"&")
		_, after, _ = strings.Cut(after, "mindevcount=")
		if n, _, _ := strings.Cut(after, "&"); n != want {
			t.Errorf("mindevcount %s, want %s", n, want)
		}
	}
	c.talk([]exchange{
		{"create_class domain=toast&class=ec&replpolicy=ErasureCode(3,2)",
			"ERR invalid_replpolicy ErasureCode%283,+2%29+needs+5+devices,+one+for+each+shard%3B+those+of+this+cluster+that+are+not+dead+are+4"},
		{"create_class domain=toast&class=ec&mindevcount=2&replpolicy=ErasureCode(33,2)", "invalid_replpolicy"},
		{"create_class domain=toast&class=ec&mindevcount=2&replpolicy=ErasureCode(2,17)", "invalid_replpolicy"},
		{"create_class domain=toast&class=ec&mindevcount=2&replpolicy=Union(ErasureCode(1,1))", "invalid_replpolicy"},
		{"create_class domain=nix&class=ec&replpolicy=ErasureCode(2,2)", "domain_not_found"},
		{"create_class domain=toast&class=ec&replpolicy=ErasureCode(2,2)", "OK class=ec&mindevcount=3&domain=toast"},
		{"update_class domain=toast&class=ec&mindevcount=9", "OK class=ec&mindevcount=3&domain=toast"},
	})
	mindevcount("ec", "3")
	c.talk([]exchange{
		{"update_class domain=toast&class=ec&mindevcount=9&replpolicy=ErasureCode(1,1,min=0)", "OK class=ec&mindevcount=2&domain=toast"},
		{"update_class domain=toast&class=ec&replpolicy=MultipleHosts()", "invalid_mindevcount"},
		{"update_class domain=toast&class=ec&mindevcount=4&replpolicy=MultipleHosts()", "OK class=ec&mindevcount=4&domain=toast"},
		{"update_class domain=toast&class=ec&mindevcount=5", "OK class=ec&mindevcount=5&domain=toast"},
		{"update_class domain=toast&class=nix&replpolicy=ErasureCode(1,1)", "class_not_found"},
	})
	c.ok("set_state host=h1&device=1&state=dead")
	c.refused("update_class domain=toast&class=ec&replpolicy=ErasureCode(2,2)", "invalid_replpolicy")
	c.ok("create_host host=far&ip=192.0.2.1&port=7500&status=down")
	c.same("update_class domain=toast&class=ec&replpolicy=ErasureCode(1,1)",
		"ERR invalid_replpolicy ErasureCode%281,+1%29+needs+a+cluster+key,+as+host+far+is+not+on+loopback:+storage+daemons+make+shards+for+trackers+only+that+share+one+with+them+%28--cluster-key-file%29")
	c.ok("update_host host=far&status=dead")
	c.ok("update_class domain=toast&class=ec&replpolicy=ErasureCode(1,1)")
	mindevcount("ec", "2")
}

// TestErasureCodeWithKey wants classes with shards beyond loopback where there is
// a cluster key.
func TestErasureCodeWithKey(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.ClusterKey = []byte(strings.Repeat("k", 32)) })
	c := e.dial()
	c.ok("create_host host=far&ip=192.0.2.1&port=7500&status=down")
	c.ok("create_class domain=toast&class=ec&replpolicy=ErasureCode(1,1)")
}
