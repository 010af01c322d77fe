package rebalance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// Settings in server_settings. Those of runs are MogileFS 2.73's but for the
// last two; clients change them by commands alone.
const (
	SettingHost   = "rebal_host"   // the tracker that started the run that is at work
	SettingPolicy = "rebal_policy" // what is to be done
	SettingState  = "rebal_state"  // how far it is
	SettingSignal = "rebal_signal" // "stop" where it is to stop
	// SettingSource is the status that the current source had before it was put
	// in drain.
	SettingSource = "rebal_sdev_status"
	// SettingQuotas are, of a run that levels, what is left to give and to take.
	SettingQuotas = "rebal_quotas"

	// SettingRate is how many files are looked at in a second.
	SettingRate = "queue_rate_for_rebal"
	// SettingSize is how many moves may be queued before no more are added.
	SettingSize = "queue_size_for_rebal"

	fsckHost   = "fsck_host"
	signalStop = "stop"
)

// Refusals of the commands.
var (
	errPolicyWhileRunning = &protocol.Error{Code: "no_set_rebal", Text: "cannot change rebalance policy while rebalance is running"}
	errAlreadyRunning     = &protocol.Error{Code: "rebal_running", Text: "rebalance is already running"}
	errRunning            = &protocol.Error{Code: "rebal_running", Text: "rebalance is running"}
	errFsckRunning        = &protocol.Error{Code: "fsck_running", Text: "fsck running; cannot run rebalance at same time"}
)

// Facts are what a command is decided by.
type Facts struct {
	Settings map[string]string // all
	Now      time.Time         // the database's
}

// change is one that expects fields to be as they were read.
func (f Facts) change(expect ...string) schema.SettingsChange {
	c := schema.SettingsChange{Expect: make(map[string]*string), Set: make(map[string]*string)}
	for _, field := range expect {
		c.Expect[field] = nil
		if v, there := f.Settings[field]; there {
			c.Expect[field] = &v
		}
	}
	return c
}

// unset has a change take settings away.
func unset(c schema.SettingsChange, fields ...string) {
	for _, field := range fields {
		c.Set[field] = nil
	}
}

// SetPolicy sets what is to be done, and forgets how far an older run was.
func (f Facts) SetPolicy(text string) (schema.SettingsChange, error) {
	if f.Settings[SettingHost] != "" {
		return schema.SettingsChange{}, errPolicyWhileRunning
	}
	if _, err := ParsePolicy(text); err != nil {
		return schema.SettingsChange{}, err
	}
	c := f.change(SettingHost)
	c.Set[SettingPolicy] = &text
	unset(c, SettingState, SettingSource, SettingQuotas)
	return c, nil
}

// Policy is the one that is set, or the refusal no_rebal_policy.
func (f Facts) Policy() (Policy, error) {
	text := f.Settings[SettingPolicy]
	if text == "" {
		return Policy{}, protocol.Err("no_rebal_policy")
	}
	return ParsePolicy(text)
}

// Start starts a run, or lets one go on that was stopped. Plan gives what a new
// run that levels moves; it is not asked otherwise. The name is the tracker's.
func (f Facts) Start(name string, snap *cluster.Snapshot, plan func(spread float64) (Quotas, error)) (schema.SettingsChange, error) {
	none := schema.SettingsChange{}
	switch {
	case f.Settings[SettingHost] != "":
		return none, errAlreadyRunning
	case f.Settings[fsckHost] != "":
		return none, errFsckRunning
	}
	p, err := f.Policy()
	if err != nil {
		return none, err
	}
	c := f.change(SettingHost, fsckHost, SettingPolicy, SettingState)
	state := f.Settings[SettingState]
	if state == "" {
		s := State{Started: f.Now.Unix()}
		if p.Level > 0 {
			quotas, err := plan(p.Level)
			if err != nil {
				return none, err
			}
			s.Sources = quotas.givers()
			text := quotas.String()
			c.Set[SettingQuotas] = &text
		} else {
			s.Sources = p.Sources(snap.DeviceList)
		}
		if p.Global && p.By != LimitNone {
			s.Global = p.Limit
		}
		state = s.String()
		unset(c, SettingSource)
	}
	c.Set[SettingState] = &state
	c.Set[SettingHost] = &name
	unset(c, SettingSignal)
	return c, nil
}

// Stop asks for the run to be stopped.
func (f Facts) Stop() (schema.SettingsChange, error) {
	if f.Settings[SettingHost] == "" {
		return schema.SettingsChange{}, protocol.Err("rebal_not_started")
	}
	c, signal := f.change(SettingHost), signalStop
	c.Set[SettingSignal] = &signal
	return c, nil
}

// Reset forgets how far a run was.
func (f Facts) Reset() (schema.SettingsChange, error) {
	if f.Settings[SettingHost] != "" {
		return schema.SettingsChange{}, errRunning
	}
	c := f.change(SettingHost)
	unset(c, SettingState, SettingSource, SettingQuotas)
	return c, nil
}

// Ledger is where the state of runs is read and changed.
type Ledger interface {
	Topology(ctx context.Context) (schema.TopologyRows, error)
	ChangeSettings(ctx context.Context, change schema.SettingsChange) error
}

// changeTries is how often a command is decided anew after somebody else
// changed what it was decided by.
const changeTries = 20

// Change makes the change that decide decides. It is asked again where the
// settings have changed in between; its refusals are returned as they are.
func Change(ctx context.Context, store Ledger, decide func(Facts) (schema.SettingsChange, error)) (schema.SettingsChange, error) {
	for try := 1; ; try++ {
		rows, err := store.Topology(ctx)
		if err != nil {
			return schema.SettingsChange{}, fmt.Errorf("read the state of rebalance: %w", err)
		}
		c, err := decide(Facts{Settings: rows.Settings, Now: rows.Now})
		if err != nil {
			return c, err
		}
		err = store.ChangeSettings(ctx, c)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, schema.ErrStale) || try == changeTries {
			return c, fmt.Errorf("change the state of rebalance: %w", err)
		}
	}
}
