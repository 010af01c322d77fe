package tools

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol/protocoltest"
)

// What bash's readline breaks words at, as it sets it.
const bashBreaks = " \t\n\"'@><=;|&(:"

func TestBashWords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		line  string
		words []string
		value string // that the last word may become
		want  string // what bash is told to insert
	}{
		{"mogtool", []string{""}, "x", "x"},
		{"mogtool ", []string{""}, "a b", `a\ b`},
		{"A=1 B=2 mogtool cat k", []string{"cat", "k"}, "key", "key"},
		{`mogtool cat a\ b c`, []string{"cat", "a b", "c"}, "cd", "cd"},
		{`mogtool cat a\ b`, []string{"cat", "a b"}, "a bc", `a\ bc`},
		{`mogtool cat "a b" 'c d' e`, []string{"cat", "a b", "c d", "e"}, "ef", "ef"},
		{`mogtool cat "a b`, []string{"cat", "a b"}, `a b"$c`, `a b\"\$c`},
		{`mogtool cat 'a b`, []string{"cat", "a b"}, "a b's", `a b'\''s`},
		{`mogtool --domain=te`, []string{"--domain=te"}, "--domain=test", "test"},
		{`mogtool --domain="te`, []string{"--domain=te"}, "--domain=te st", "te st"},
		{"mogtool cat a:b", []string{"cat", "a:b"}, "a:b:c", "b:c"},
		{`mogtool cat a\:b`, []string{"cat", "a:b"}, "a:bc", "a:bc"},
		{`mogtool cat x\`, []string{"cat", "x"}, "xy", "xy"},
		{`mogtool cat ''`, []string{"cat", ""}, "k", "k"},
	} {
		words, at := bashWords(c.line, bashBreaks)
		if !slices.Equal(words, c.words) {
			t.Errorf("%q has words %q, want %q", c.line, words, c.words)
		}
		if got := at.complete(c.value); got != c.want {
			t.Errorf("%q: %q is inserted as %q, want %q", c.line, c.value, got, c.want)
		}
	}
}

// However keys are quoted, what is inserted reads as the key.
func FuzzBashWords(f *testing.F) {
	for _, s := range []string{"key", "a b", `it's "$5"`, "a:b=c", `back\slash`, "tab\there", "日本", "!&;|<>(){}*?[]#~`"} {
		f.Add("mogtool cat ", s)
	}
	f.Add(`mogtool "cat`, "x")
	f.Fuzz(func(t *testing.T, line, key string) {
		words, at := bashWords(line, bashBreaks)
		if len(words) == 0 {
			t.Fatalf("%q has no last word", line)
		}
		at.complete(key)
		if strings.ContainsAny(key, "\n\t") || key == "" {
			return
		}
		_, at = bashWords("mogtool cat ", bashBreaks)
		words, _ = bashWords("mogtool cat "+at.complete(key), "")
		if last := words[len(words)-1]; len(words) != 2 || last != key {
			t.Errorf("%q is inserted as %q, which reads as %q", key, at.complete(key), words)
		}
	})
}

func TestOperandKind(t *testing.T) {
	t.Parallel()
	for usage, want := range map[string][]string{
		"":                   {""},
		"HOST DEVID STATUS":  {"HOST", "DEVID", "STATUS", ""},
		"FILE [KEY]":         {"FILE", "KEY", ""},
		"KEY…":               {"KEY", "KEY", "KEY"},
		"CLASS KEY…":         {"CLASS", "KEY", "KEY"},
		"[HOST…]":            {"HOST", "HOST"},
		"CLASS PREFIX/|KEY…": {"CLASS", "PREFIX", "PREFIX"},
		"SRC DST":            {"SRC", "DST", ""},
	} {
		for i, name := range want {
			if got := operandKind(usage, i).name; got != name {
				t.Errorf("operand %d of %q is a %q, want %q", i, usage, got, name)
			}
		}
	}
}

// Commands, flags and operands are completed below a program that has them one
// level down, as mogile has.
func TestCompleteBelow(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 2)
	t.Setenv("MOGILE_TRACKERS", cluster.Addrs()[0])
	root := &cli.Command{Name: "mogile", Subcommands: []*cli.Command{{Name: "dev", Usage: "a cluster"}, Command()}}
	for _, c := range []struct {
		words []string
		want  []string
	}{
		{[]string{""}, []string{"words", "dev\ta cluster", "mogtool\tstore and fetch files, look after a cluster"}},
		{[]string{"mogtool", "host", "del"}, []string{"words", "delete\tforget a host that has no devices"}},
		{[]string{"mogtool", "host", "mark", "store2"}, []string{"words", "store2\t127.0.0.1, alive"}},
		{[]string{"mogtool", "-d", "test", "touch", "x"}, []string{"words"}},
		{[]string{"mogtool", "updateclass", "-d", "te"}, []string{"words", "test"}},
		{[]string{"mogtool", "updateclass", "-d", "test", ""}, []string{"words", "default\tmindevcount 2", "single\tmindevcount 1"}},
		{[]string{"mogtool", "--zone", ""}, []string{"words", "alt"}},
		{[]string{"mogtool", "--nosuch", ""}, nil},
	} {
		var out bytes.Buffer
		if code := Complete(t.Context(), root, append([]string{"fish"}, c.words...), &out); code != 0 {
			t.Errorf("%q: exit code %d", c.words, code)
		}
		if got := strings.Split(strings.TrimRight(out.String(), "\n"), "\n"); c.want != nil && !slices.Equal(got, c.want) {
			t.Errorf("%q (-want +got):\n%s", c.words, cmp.Diff(c.want, got))
		}
	}
}

// A key that would leave its line is not offered.
func TestCompleteKeys(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	t.Setenv("MOGILE_TRACKERS", cluster.Addrs()[0])
	for _, key := range []string{"a/1", "a/2", "a/b/3", "ab", "a\nc", "b/c/d", "c"} {
		if code, _, stderr := run(t.Context(), cluster, "put", "-", key); code != 0 {
			t.Fatal(stderr)
		}
	}
	for prefix, want := range map[string]string{
		"":     "words a/ ab b/ c",
		"a":    "words a/ ab",
		"a/":   "words a/1 a/2 a/b/",
		"b":    "nospace b/",
		"b/":   "nospace b/c/",
		"b/c/": "words b/c/d",
		"z":    "words",
	} {
		var out bytes.Buffer
		Complete(t.Context(), Command(), []string{"fish", "-d", "test", "cat", prefix}, &out)
		if got := strings.Join(strings.Fields(out.String()), " "); got != want {
			t.Errorf("keys below %q: %s, want %s", prefix, got, want)
		}
	}
}
