package tracker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/status"
	"github.com/mogile/mogile/tracker/work"
)

// query is a request that is being answered. It belongs to its connection and
// is used again for the next one: nothing of it may be kept.
type query struct {
	protocol.Args                // the request's arguments
	reply         protocol.Args  // the fields of a success; in what order, clients do not care
	viewer        cluster.Viewer // decides which of a host's addresses the client is given
	dog           *watchdog
	worker        int               // its query worker's number; 0: it needs none
	turn          *turn             // its hold of that worker
	at            *cluster.Snapshot // the cluster as of the request's beginning
	rng           *rand.Rand        // nil until it is needed
}

// rand is the chance by which devices are chosen.
func (q *query) rand() *rand.Rand {
	if q.rng == nil {
		q.rng = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	return q.rng
}

// command is one of the protocol's commands.
type command struct {
	// run fills q.reply. An error that is a refusal is told to the client;
	// any other is logged, and told as "failure".
	run     func(ctx context.Context, q *query) error
	instant bool // answers from memory, and so waits for no worker once there are any
	metrics *status.Command
}

// unknownCommand is the name under which unknown commands are counted.
const unknownCommand = "unknown"

// table lists the commands. A new one needs a line here, and nothing else.
func (t *Tracker) table() map[string]*command {
	runs := map[string]func(context.Context, *query) error{
		"create_open":  t.createOpen,
		"create_close": t.createClose,
		"get_paths":    t.getPaths,
		"file_info":    t.fileInfo,
		"file_debug":   t.fileDebug,
		"list_keys":    t.listKeys,
		"list_fids":    t.listFIDs,
		"delete":       t.deleteKey,
		"rename":       t.rename,
		"updateclass":  t.updateFileClass,
		"edit_file":    t.editFile,

		"create_domain": t.createDomain,
		"delete_domain": t.deleteDomain,
		"get_domains":   t.getDomains,
		"create_class":  t.createClass,
		"update_class":  t.updateClass,
		"delete_class":  t.deleteClass,

		"create_host":   t.createHost,
		"update_host":   t.updateHost,
		"delete_host":   t.deleteHost,
		"get_hosts":     t.getHosts,
		"create_device": t.createDevice,
		"get_devices":   t.getDevices,
		"set_state":     t.setState,
		"set_weight":    t.setWeight,
		"host_orders":   t.hostOrders,

		"set_server_setting": t.setServerSetting,
		"server_setting":     t.serverSetting,
		"server_settings":    t.serverSettings,

		"fsck_start":    t.fsckStart,
		"fsck_stop":     t.fsckStop,
		"fsck_reset":    t.fsckReset,
		"fsck_clearlog": t.fsckClearLog,
		"fsck_getlog":   t.fsckGetLog,
		"fsck_status":   t.fsckStatus,
		"fsck_progress": t.fsckProgress,
		"scrub_start":   t.scrubStart,
		"scrub_stop":    t.scrubStop,

		"strays": t.strayPage,

		"drain_device": t.drainDevice,
		"drain_cancel": t.drainCancel,
		"drain_status": t.drainStatus,

		"rebalance_set_policy": t.rebalanceSetPolicy,
		"rebalance_test":       t.rebalanceTest,
		"rebalance_start":      t.rebalanceStart,
		"rebalance_status":     t.rebalanceStatus,
		"rebalance_stop":       t.rebalanceStop,
		"rebalance_reset":      t.rebalanceReset,
		"rebalance_plan":       t.rebalancePlan,
		"rebalance_progress":   t.rebalanceProgress,

		"class_usage":      t.classUsage,
		"clear_cache":      t.clearCache,
		"do_monitor_round": t.doMonitorRound,
		"noop":             func(context.Context, *query) error { return nil },
		"replicate_now":    t.replicateNow,
		"sleep":            t.sleep,
		"test":             t.test,

		unknownCommand: func(context.Context, *query) error { return protocol.ErrUnknownCommand },
	}
	table := make(map[string]*command, len(runs))
	for name, run := range runs {
		table[name] = &command{run: run, metrics: t.metrics.Command(name)}
	}
	for _, name := range []string{"get_domains", "get_hosts", "get_devices", "noop", unknownCommand} {
		table[name].instant = true
	}
	return table
}

// errGivenUp closes the connection of a request that did not return.
var errGivenUp = errors.New("request was given up")

// answerLine is the tracker's [answerer].
func (t *Tracker) answerLine(ctx context.Context, c *conn, line []byte, out []byte) ([]byte, error) {
	if isConsole(line) {
		return t.console(ctx, c, string(line), out)
	}
	began := t.now()
	text := string(line)
	c.place.line = text
	defer c.forget()
	req, err := protocol.ParseRequest(text)
	cmd := t.commands[req.Command]
	if err != nil || cmd == nil {
		cmd = t.commands[unknownCommand]
		c.strange++
	} else {
		c.strange = 0
	}
	// While all workers wait for a database or a storage daemon that hangs,
	// those who only ask whether somebody is there get their answer.
	worker := 0
	if !cmd.instant || !t.queries.pass() {
		if worker, err = t.queries.acquire(&c.place); err != nil {
			return nil, err
		}
	}
	started := t.now()
	q := &c.query
	*q = query{
		Args: req.Args, reply: q.reply[:0], dog: &c.dog, worker: worker, turn: &c.turn, rng: q.rng, at: t.cluster.Snapshot(),
		viewer: cluster.Viewer{Addr: c.from, Alt: req.Args.Get("zone") == "alt"},
	}
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.turn.begin(t.queries, worker)
	c.dog.grace = t.opts.QueryTimeout / 6
	c.dog.start(t.opts.QueryTimeout, func(cause error) {
		c.turn.kill()
		cancel(cause)
	}, func() {
		t.metrics.Dropped(status.DropGivenUp)
		t.log.Error().Str("command", req.Command).Stringer("client", c.from).Msg("query hangs, its connection is closed")
		c.turn.giveUp()
		c.close()
	})
	err = protect(work, cmd, q)
	kept := c.dog.stop()
	c.turn.end()
	if !kept {
		return nil, errGivenUp
	}
	out, code := t.appendReply(work, out, req, q, err)
	done := t.now()
	cmd.metrics.Answered(code, done.Sub(began))
	t.recent.add(recentQuery{from: c.from, line: text, elapsed: done.Sub(began), worked: done.Sub(started)})
	return out, nil
}

// keepReply is the largest reply, in fields, whose memory a connection keeps.
const keepReply = 64

// forget lets go of what the last request was made of.
func (c *conn) forget() {
	c.place.line = ""
	reply := c.query.reply
	clear(reply)
	if cap(reply) > keepReply {
		reply = nil
	}
	c.query = query{reply: reply[:0], rng: c.query.rng}
}

// protect runs a command and turns a panic into an error: a bug in one command
// must not end the tracker.
func protect(ctx context.Context, cmd *command, q *query) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return cmd.run(ctx, q)
}

// appendReply appends the reply line and returns the error code, empty for
// success.
func (t *Tracker) appendReply(ctx context.Context, out []byte, req protocol.Request, q *query, err error) ([]byte, string) {
	callid, hasCallID := req.CallID()
	if err == nil {
		if hasCallID {
			q.reply.Set("callid", callid)
		}
		return protocol.AppendOK(out, q.reply), ""
	}
	refusal, ok := errors.AsType[*protocol.Error](err)
	if !ok {
		t.failed(ctx, q.worker, req.Command, err)
		refusal = protocol.ErrFailure
	}
	if !hasCallID {
		return protocol.AppendErr(out, refusal, nil), refusal.Code
	}
	return protocol.AppendErr(out, refusal, &callid), refusal.Code
}

// failed logs why a command failed, and tells watchers in MogileFS's words. While
// the database is away that is said once in a while, not for every request.
func (t *Tracker) failed(ctx context.Context, worker int, name string, err error) {
	event := t.failures.Error().Err(err)
	if !event.Enabled() {
		return
	}
	t.watchers.worker(jobQuery, worker, fmt.Sprintf("Error running command '%s': %v", name, err))
	if cause := context.Cause(ctx); cause != nil {
		event = event.AnErr("cause", cause)
	}
	event.Int(work.WorkerField, worker).Str("command", name).Msg("query failed")
}

// domain is the domain that q names, or no_domain or unreg_domain.
func (q *query) domain() (*cluster.Domain, error) {
	name := q.Get("domain")
	if name == "" {
		return nil, protocol.Err("no_domain")
	}
	d, ok := q.at.Domain(name)
	if !ok {
		return nil, protocol.Err("unreg_domain")
	}
	return d, nil
}

// key is the key that q names, or no_key. The key "0" is a key.
func (q *query) key() (string, error) {
	if key := q.Get("key"); key != "" {
		return key, nil
	}
	return "", protocol.Err("no_key")
}

// ifFID is the fid that a key must name for a change to be made ("if_fid"), nil
// where q does not ask for one. As it is ours, and guards against mistakes, what
// is no number at all is refused.
func (q *query) ifFID() (*protocol.FID, error) {
	text, given := q.Lookup("if_fid")
	if !given {
		return nil, nil
	}
	n := digits(text)
	if n < 0 {
		return nil, &protocol.Error{Code: "bad_params", Text: "if_fid must be a fid, or 0"}
	}
	fid := protocol.FID(n)
	return &fid, nil
}

// domainAndKey is what most commands on files begin with.
func (q *query) domainAndKey() (*cluster.Domain, string, error) {
	d, err := q.domain()
	if err != nil {
		return nil, "", err
	}
	key, err := q.key()
	return d, key, err
}
