package rebalance

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// State is how far a run is. Times are in seconds since 1970; 0 is unset.
type State struct {
	Completed []protocol.DevID // sources that are done
	Sources   []protocol.DevID // that are to come
	Current   protocol.DevID   // 0: none
	LastFID   protocol.FID     // of Current: the last that was looked at
	Left      *int64           // of the limit of Current; nil: it has none
	Global    int64            // what is left of a global limit
	Queued    int64            // files
	Bytes     int64            // of these files

	Started, Finished, Stopped int64
	LatestRun                  int64
	LatestEmptyRun, EmptyRuns  int64
}

// noLimit is sdev_limit without a limit.
const noLimit = "none"

// String is the state as rebal_state has it.
func (s State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "completed_devs=%s source_devs=%s", devList(s.Completed), devList(s.Sources))
	switch {
	case s.Current != 0 && s.Left == nil:
		fmt.Fprintf(&b, " sdev_current=%d sdev_lastfid=%d sdev_limit=%s", s.Current, s.LastFID, noLimit)
	case s.Current != 0:
		fmt.Fprintf(&b, " sdev_current=%d sdev_lastfid=%d sdev_limit=%d", s.Current, s.LastFID, *s.Left)
	case len(s.Completed) == 0:
		b.WriteString(" sdev_current=0 sdev_lastfid=0 sdev_limit=0")
	}
	fmt.Fprintf(&b, " limit=%d fids_queued=%d bytes_queued=%d time_started=%d time_finished=%d time_stopped=%d time_latest_run=%d time_latest_empty_run=%d empty_runs=%d",
		s.Global, s.Queued, s.Bytes, s.Started, s.Finished, s.Stopped, s.LatestRun, s.LatestEmptyRun, s.EmptyRuns)
	return b.String()
}

func devList(devs []protocol.DevID) string {
	words := make([]string, len(devs))
	for i, dev := range devs {
		words[i] = dev.String()
	}
	return strings.Join(words, ",")
}

// ParseState understands a state, MogileFS's too. Numbers that are empty are 0.
func ParseState(text string) (State, error) {
	var s State
	for item := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(item, "=")
		ok := true
		number := func(into *int64) {
			if *into = 0; value != "" {
				n, err := strconv.ParseInt(value, 10, 64)
				*into, ok = n, err == nil
			}
		}
		var n int64
		switch name {
		case "completed_devs":
			ok = numbers(value, &s.Completed)
		case "source_devs":
			ok = numbers(value, &s.Sources)
		case "sdev_current":
			number(&n)
			ok = ok && n >= 0 && n <= protocol.MaxDevID
			s.Current = protocol.DevID(n)
		case "sdev_lastfid":
			number(&n)
			ok = ok && n >= 0
			s.LastFID = protocol.FID(n)
		case "sdev_limit":
			if s.Left = nil; value != noLimit && value != "" {
				number(&n)
				s.Left = &n
			}
		case "limit":
			if value != noLimit {
				number(&s.Global)
			}
		case "fids_queued":
			number(&s.Queued)
		case "bytes_queued":
			number(&s.Bytes)
		case "time_started":
			number(&s.Started)
		case "time_finished":
			number(&s.Finished)
		case "time_stopped":
			number(&s.Stopped)
		case "time_latest_run":
			number(&s.LatestRun)
		case "time_latest_empty_run":
			number(&s.LatestEmptyRun)
		case "empty_runs":
			number(&s.EmptyRuns)
		default:
			return s, fmt.Errorf("state of rebalance: invalid setting %s", name)
		}
		if !ok {
			return s, fmt.Errorf("state of rebalance: %s is %q", name, value)
		}
	}
	if s.Current == 0 {
		s.LastFID, s.Left = 0, nil
	}
	return s, nil
}

// devices are all sources: those that are done, too.
func (s State) devices() []protocol.DevID {
	devs := slices.Concat(s.Completed, s.Sources)
	if s.Current != 0 {
		devs = append(devs, s.Current)
	}
	return devs
}

// begin makes the next source the current one. It reports whether there is one.
func (s *State) begin(p Policy, q Quotas) bool {
	if len(s.Sources) == 0 {
		return false
	}
	s.Current, s.LastFID, s.Left = s.Sources[0], 0, nil
	s.Sources = slices.Clone(s.Sources[1:])
	switch {
	case p.Level > 0:
		left := max(0, -q[s.Current])
		s.Left = &left
	case p.By != LimitNone && !p.Global:
		left := p.Limit
		s.Left = &left
	}
	return true
}

// end is when the current source is done.
func (s *State) end() {
	s.Completed = append(slices.Clone(s.Completed), s.Current)
	s.Current, s.LastFID, s.Left = 0, 0, nil
}

// allows reports whether a file is within the limit. Count subtracts it.
func (s *State) allows(p Policy, length int64) bool {
	left := s.left(p)
	switch {
	case left == nil:
		return true
	case p.By == LimitCount:
		return *left > 0
	}
	return *left >= length
}

// count notes a file that is moved.
func (s *State) count(p Policy, length int64) {
	s.Queued++
	s.Bytes += length
	if left := s.left(p); left != nil {
		n := length
		if p.By == LimitCount {
			n = 1
		}
		*left -= n
	}
}

// left is what is left of the limit; nil where there is none. The current
// source's is copied first: states share it.
func (s *State) left(p Policy) *int64 {
	if p.Level == 0 && p.By != LimitNone && p.Global {
		return &s.Global
	}
	if s.Left == nil || p.Level == 0 && p.By == LimitNone {
		return nil
	}
	n := *s.Left
	s.Left = &n
	return s.Left
}

// usedUp reports whether no more is moved off the current source.
func (s State) usedUp(p Policy) bool {
	left := s.left(p)
	switch {
	case left == nil:
		return false
	case p.By == LimitCount:
		return *left <= 0
	case p.Level > 0:
		return *left <= 0
	}
	return *left < leastSize
}
