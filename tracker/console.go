package tracker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// compatibleVersion is what "!version" answers: the release of MogileFS whose
// protocol this is, because scripts compare it with those releases. Mogile's
// own version is in the log, the metrics and the database's list of trackers.
const compatibleVersion = "2.73"

// errShutdown closes the connection that said "!shutdown".
var errShutdown = errors.New("told to shut down by !shutdown")

const consoleBlanks = " \t\r\v\f"

// isConsole reports whether a line is for the console: "!" in the first column
// and something directly after it.
func isConsole(line []byte) bool {
	return len(line) > 1 && line[0] == '!' && strings.IndexByte(consoleBlanks, line[1]) < 0
}

// console appends the reply to a line of the console: lines, then a dot.
func (t *Tracker) console(ctx context.Context, c *conn, line string, out []byte) ([]byte, error) {
	line = line[1:]
	word, args := line, ""
	if i := strings.IndexAny(line, consoleBlanks); i >= 0 {
		word, args = line[:i], strings.Trim(line[i:], consoleBlanks)
	}
	begins := func(name string) bool { return strings.HasPrefix(word, name) }
	switch { // the order decides, as in MogileFS 2.73: "!total" is "!to"
	case word == "stats":
		out = t.consoleStats(ctx, out)
	case begins("shutdown"):
		t.log.Info().Stringer("client", c.from).Msg("told to shut down")
		t.shutdown()
		return nil, errShutdown
	case begins("jobs"):
		out = t.consoleJobs(out)
	case begins("want"):
		out = t.consoleWant(out, args)
	case begins("to"):
		out = t.consoleTo(out, args)
	case begins("queue"), begins("pend"):
		for _, q := range t.queries.queued() {
			out = fmt.Appendf(out, "%s %s\r\n", q.from, printable(shortened(q.line)))
		}
	case begins("watch"):
		out = append(out, t.toggleWatch(c)...)
	case begins("recent"):
		for _, q := range t.recent.list() {
			out = fmt.Appendf(out, "%s %s %.4f %.4f\r\n", q.from, printable(q.line), q.elapsed.Seconds(), q.worked.Seconds())
		}
	case begins("version"):
		out = append(out, compatibleVersion+"\r\n"...)
	default:
		out = append(out, consoleHelp...)
	}
	return append(out, ".\r\n"...), nil
}

// consoleHelp ends its lines with LF alone, as MogileFS 2.73 does.
const consoleHelp = `Mogilefsd admin commands:

	!version    version of the protocol
	!recent     the last requests, with the time that they took
	!queue      requests that wait for a query worker
	!stats      counters
	!watch      follow the log on this connection, or stop following it
	!jobs       workers of each job: how many there are and should be, and their numbers
	!shutdown   stop this tracker
	!to <job class> <message>
	            send a message to the workers of a job; ":shutdown" has them replaced,
	            ":wake_up" has them look for work now
	!want <count> <job class>
	            change how many workers do a job

`

func (t *Tracker) consoleStats(ctx context.Context, out []byte) []byte {
	l := t.queries.load()
	out = fmt.Appendf(out, "uptime %d\r\n", int64(t.now().Sub(t.started)/time.Second))
	out = fmt.Appendf(out, "pending_queries %d\r\n", l.pending)
	out = fmt.Appendf(out, "processing_queries %d\r\n", l.processing)
	out = fmt.Appendf(out, "bored_queryworkers %d\r\n", l.bored)
	counters := t.counters(ctx, l)
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		out = fmt.Appendf(out, "%s %d\r\n", name, counters[name])
	}
	return out
}

// counters are the lines of !stats that appear when there is something to tell.
func (t *Tracker) counters(ctx context.Context, l load) map[string]uint64 {
	_, deletes := t.deleter.Stats()
	_, replicates := t.replicate.Stats()
	counters := map[string]uint64{
		"queries":                l.queries,
		"times_out_of_qworkers":  l.waited,
		"work_sent_to_delete":    deletes,
		"work_sent_to_fsck":      t.fsck.Sent(),
		"work_sent_to_replicate": replicates,
	}
	maps.DeleteFunc(counters, func(_ string, n uint64) bool { return n == 0 })
	lengths, err := t.lengths.count(ctx)
	if err != nil {
		t.failures.Warn().Err(err).Msg("queues could not be counted")
		return counters
	}
	for q, n := range lengths {
		counters["work_queue_for_"+q.String()] = uint64(max(n, 0))
	}
	return counters
}

func (t *Tracker) consoleJobs(out []byte) []byte {
	for _, name := range t.jobNames() {
		j := t.jobs[name]
		if !j.Had() {
			continue
		}
		ids := j.IDs()
		pids := make([]string, len(ids))
		for i, id := range ids {
			pids[i] = strconv.Itoa(id)
		}
		out = fmt.Appendf(out, "%s count %d\r\n", name, len(ids))
		out = fmt.Appendf(out, "%s desired %d\r\n", name, j.Desired())
		out = fmt.Appendf(out, "%s pids %s\r\n", name, strings.Join(pids, " "))
	}
	return out
}

func (t *Tracker) consoleWant(out []byte, args string) []byte {
	count, name := cutBlanks(args)
	n := wanted(count)
	if n < 0 || name == "" || strings.ContainsAny(name, consoleBlanks) {
		return append(out, "ERROR: usage: !want <count> <jobclass>\r\n"...)
	}
	if !t.isReady() {
		return append(out, "ERROR: Monitor has not completed initial run yet\n\r\n"...)
	}
	j := t.jobs[name]
	if j == nil {
		return fmt.Appendf(out, "ERROR: Invalid class '%s'.  Valid classes: %s\r\n", printable(name), strings.Join(t.jobNames(), ", "))
	}
	t.log.Info().Str("job", name).Int("wants", n).Msg("told how many workers to have")
	j.Want(n)
	return fmt.Appendf(out, "Now desiring %d children doing '%s'.\r\n", n, name)
}

// cutBlanks is what comes before and after the first blanks of s.
func cutBlanks(s string) (before, after string) {
	i := strings.IndexAny(s, consoleBlanks)
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], consoleBlanks)
}

// wanted is how many workers digits ask for, at most maxWorkers; -1 where s is
// not digits alone.
func wanted(s string) int {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return -1
	}
	n, err := strconv.Atoi(s)
	if err != nil { // more than fits
		return maxWorkers
	}
	return min(n, maxWorkers)
}

func (t *Tracker) consoleTo(out []byte, args string) []byte {
	name, message := cutBlanks(args)
	if name == "" || message == "" {
		return append(out, "ERROR: usage: !to <jobclass> <message>\r\n"...)
	}
	n := 0
	if j := t.jobs[name]; j != nil {
		ids := j.IDs()
		n = len(ids)
		switch message {
		case ":shutdown":
			n = j.Restart()
		case ":wake_up":
			j.Wake()
		case ":stay_alive":
		case ":refresh_monitor":
			if name == "monitor" {
				t.refreshSoon()
			}
		default:
			for _, id := range ids {
				t.watchers.worker(name, id, "Unrecognized command from parent: "+message)
			}
			if n > 0 {
				t.log.Warn().Str("job", name).Str("text", message).Msg("worker was sent an unknown message")
			}
		}
	}
	return fmt.Appendf(out, "Message sent to %d children.\r\n", n)
}

// toggleWatch has c follow the log, or no longer.
func (t *Tracker) toggleWatch(c *conn) string {
	if c.unwatch() {
		return "Removed you from watcher list.\r\n"
	}
	c.watching = t.watchers.watch(c)
	return "Added you to watcher list.\r\n"
}
