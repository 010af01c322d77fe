package protocol

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const (
	// VerbPeers is the verb with which storage daemons are told where the others
	// are.
	VerbPeers = "peers"
	// VerbSuspects is the verb with which a storage daemon is asked which shards it
	// found missing or bad.
	VerbSuspects = "suspects"

	// MaxPeers bounds the devices of a [PeersOrder].
	MaxPeers = MaxDevID
	// MaxSuspects bounds the shards of one answer to a [SuspectsOrder].
	MaxSuspects = 1000
)

// SuspectsHeader is the header of answers to questions for a device's usage that
// says how many suspects wait to be asked for. It is left out where there are
// none.
const SuspectsHeader = "Mogile-Suspects"

// PeersOrder tells where the cluster's devices are: all of them, so that those it
// does not name are nowhere. Of two orders the one with the higher version
// counts, whatever order they come in.
type PeersOrder struct {
	Version int64            // ms since 1970, of the tracker's clock
	Peers   map[DevID]string // the URL of the storage daemon that has a device, as of [Peer]
}

// Args are the arguments of the order: "peers" has a URL and the devices of the
// daemon there, separated by commas, for each daemon, separated by blanks.
func (p PeersOrder) Args() Args {
	of := make(map[string][]DevID)
	for dev, daemon := range p.Peers {
		of[daemon] = append(of[daemon], dev)
	}
	texts := make([]string, 0, len(of))
	for daemon, devs := range of {
		slices.Sort(devs)
		texts = append(texts, daemon+","+formatDevs(devs))
	}
	slices.Sort(texts)
	return Args{{"peers", strings.Join(texts, " ")}, {"version", strconv.FormatInt(p.Version, 10)}}
}

// ParsePeersOrder reads the arguments of an order. Its errors match ErrBadOrder.
func ParsePeersOrder(a Args) (PeersOrder, error) {
	version, err := orderNumber(a, "version", 1, 1<<63-1)
	if err != nil {
		return PeersOrder{}, err
	}
	p := PeersOrder{Version: int64(version), Peers: make(map[DevID]string)}
	for text := range strings.FieldsSeq(a.Get("peers")) {
		daemon, list, _ := strings.Cut(text, ",")
		if err := CheckPeerURL(daemon); err != nil {
			return PeersOrder{}, badOrder("peers: %v", err)
		}
		devs, err := parseDevs(list, 1, MaxPeers)
		if err != nil {
			return PeersOrder{}, badOrder("peers: %v", err)
		}
		for _, dev := range devs {
			if _, twice := p.Peers[dev]; twice {
				return PeersOrder{}, badOrder("peers: device %d is there twice", dev)
			}
			p.Peers[dev] = daemon
		}
	}
	return p, nil
}

// Equal reports whether both say the same, whatever their versions are.
func (p PeersOrder) Equal(q PeersOrder) bool { return maps.Equal(p.Peers, q.Peers) }

// PeersReport is the answer to a [PeersOrder].
type PeersReport struct {
	Version int64 // that counts now: the order's, or a later one
}

// Args are the fields of the answer.
func (p PeersReport) Args() Args {
	return Args{{"version", strconv.FormatInt(p.Version, 10)}}
}

// ParsePeersReport reads the fields of an answer. Its errors match ErrBadReply.
func ParsePeersReport(a Args) (PeersReport, error) {
	version, err := strconv.ParseInt(a.Get("version"), 10, 64)
	if err != nil {
		return PeersReport{}, fmt.Errorf("answer to peers: %.200q: %w", a.String(), ErrBadReply)
	}
	return PeersReport{version}, nil
}

// SuspectsOrder asks for shards that were found missing or bad by reads. They are
// told once: the storage daemon forgets them with its answer, in which each is a
// line ([Suspect]).
type SuspectsOrder struct {
	Limit int // 1 to MaxSuspects
}

// Args are the arguments of the order.
func (s SuspectsOrder) Args() Args { return Args{{"limit", strconv.Itoa(s.Limit)}} }

// ParseSuspectsOrder reads the arguments of an order. Its errors match
// ErrBadOrder.
func ParseSuspectsOrder(a Args) (SuspectsOrder, error) {
	limit, err := orderNumber(a, "limit", 1, MaxSuspects)
	return SuspectsOrder{int(limit)}, err
}

// Suspect is a shard that was found missing or bad, a line of the answer.
type Suspect struct{ FIDOn }

// Args are the fields of the line.
func (s Suspect) Args() Args { return Args{{"at", s.FIDOn.String()}} }

// ParseSuspect reads the fields of a line. Its errors match ErrBadReply.
func ParseSuspect(a Args) (Suspect, error) {
	f, err := ParseFIDOn(a.Get("at"))
	if err != nil {
		return Suspect{}, fmt.Errorf("suspect: %w: %w", err, ErrBadReply)
	}
	return Suspect{f}, nil
}
