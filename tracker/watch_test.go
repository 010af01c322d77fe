package tracker

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

func TestLogLinesAsWatchersSeeThem(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		log  func(zerolog.Logger)
		want []string // none: watchers are told in other words
	}{
		{"fields come by name", func(l zerolog.Logger) { l.Info().Int("b", 2).Str("a", "x").Msg("hello") }, []string{"hello a=x b=2"}},
		{"a worker speaks", func(l zerolog.Logger) {
			l.Error().Str("job", "delete").Int("worker", 7).Msg("broken")
		}, []string{"[delete(7)] broken"}},
		{"of a job, but no worker", func(l zerolog.Logger) { l.Info().Str("job", "fsck").Msg("told") }, []string{"told job=fsck"}},
		{"debugging", func(l zerolog.Logger) { l.Debug().Msg("detail") }, []string{"[debug] detail"}},
		{"a worker's debugging", func(l zerolog.Logger) {
			l.Debug().Str("job", "fsck").Int("worker", 3).Msg("detail")
		}, []string{"[debug] [fsck(3)] detail"}},
		{"no second line", func(l zerolog.Logger) {
			l.Error().Str("key", "a\r\nb\n:: forged\x1b[2J\x00\u009b\u2028").Msg("odd")
		}, []string{"odd key=a??b?:: forged?[2J???"}},
		{"told in MogileFS's words", func(l zerolog.Logger) { l.Debug().Int("has", 1).Msg("starting workers") }, nil},
		{"a long one", func(l zerolog.Logger) {
			l.Info().Msg(strings.Repeat("x", 1<<20))
		}, []string{strings.Repeat("x", watchLine) + "..."}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			w := NewWatchers(func(line string) { got = append(got, line) })
			c.log(zerolog.New(w))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSinksGetWhatConsolesGet(t *testing.T) {
	t.Parallel()
	var got, also []string
	w := NewWatchers(func(line string) { got = append(got, line) }, func(line string) { also = append(also, line) })
	var log bytes.Buffer
	l := zerolog.New(zerolog.MultiLevelWriter(&log, w)).Level(zerolog.WarnLevel)
	l.Info().Msg("below the log's level")
	l.Warn().Msg("above it")
	w.tell("Job fsck has only 0, wants 1, making 1.")
	w.worker("fsck", 12, "a\nb")
	want := []string{"above it", "Job fsck has only 0, wants 1, making 1.", "[fsck(12)] a?b"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(got, also); diff != "" {
		t.Errorf("the other sink differs:\n%s", diff)
	}
	if want := `{"level":"warn","message":"above it"}` + "\n"; log.String() != want {
		t.Errorf("log is %q, want %q", log.String(), want)
	}
}
