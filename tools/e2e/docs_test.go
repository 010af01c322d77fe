package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// root is the top of the source tree, seen from here.
const root = "../.."

// pages are README.md and docs/*.md, by their path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(names) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	all := make(map[string]string)
	for _, name := range append(names, root+"/README.md") {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			t.Fatal(err)
		}
		all[rel] = string(b)
	}
	return all
}

// source is the text of the Go files in dir that match the pattern.
func source(t *testing.T, dir, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}

// TestCompatibilityNamesTests compares docs/compatibility.md with the tree: every
// test that it names is there, every feature that is there has one, and the
// counts at its beginning are right.
func TestCompatibilityNamesTests(t *testing.T) {
	t.Parallel()
	page := pages(t)["docs/compatibility.md"]
	sources := make(map[string]string)
	exists := func(pkg, name string) bool {
		pattern, want := "*_test.go", "\nfunc "+name+"("
		if pkg == "schema/storetest" {
			pattern, want = "*.go", "\t{"+strconv.Quote(name)+","
		}
		if _, ok := sources[pkg]; !ok {
			sources[pkg] = source(t, pkg, pattern)
		}
		return strings.Contains(sources[pkg], want)
	}
	counts := make(map[string]int)
	n := 0
	for _, row := range regexp.MustCompile(`(?m)^\| (\d+) \| (.*) \| ([a-z ]+) \| (.*) \| (.*) \|$`).FindAllStringSubmatch(page, -1) {
		n++
		number, state, tests, note := row[1], row[3], row[4], row[5]
		if number != strconv.Itoa(n) {
			t.Fatalf("row %s follows row %d", number, n-1)
		}
		counts[state]++
		if state == "yes" && tests == "" {
			t.Errorf("row %s: there, and no test shows it", number)
		}
		if (state == "partly" || state == "decided") && note == "" {
			t.Errorf("row %s: %s, and no note says how", number, state)
		}
		if tests == "" {
			continue
		}
		for _, one := range strings.Split(tests, "; ") {
			pkg, names, ok := strings.Cut(one, ": ")
			if !ok {
				t.Errorf("row %s: %q names no package", number, one)
				continue
			}
			for _, name := range strings.Split(names, ", ") {
				if name = strings.Trim(name, "`"); !exists(pkg, name) {
					t.Errorf("row %s: there is no test %s in %s", number, name, pkg)
				}
			}
		}
	}
	for state, count := range counts {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^\| %s \| .* \| %d \|$`, state, count)).MatchString(page) {
			t.Errorf("%d rows are %q; the table at the beginning says otherwise, or does not know the state", count, state)
		}
	}
	if !strings.Contains(page, fmt.Sprintf("a list of %d features", n)) {
		t.Errorf("there are %d rows; the beginning says otherwise", n)
	}
	_, clients, found := strings.Cut(page, "\n## Clients and tools\n")
	if !found {
		t.Fatal("nothing is said of clients and tools")
	}
	for _, row := range regexp.MustCompile(`(?m)^\| (.*) \| .* \| (.*) \|$`).FindAllStringSubmatch(clients, -1)[1:] {
		names := regexp.MustCompile("`(Test\\w+)(?:/(\\w+))?`").FindAllStringSubmatch(row[2], -1)
		if len(names) == 0 {
			t.Errorf("%s: no test plays it", row[1])
		}
		for _, name := range names {
			if !exists("tools/e2e", name[1]) || name[2] != "" && !strings.Contains(sources["tools/e2e"], "{"+strconv.Quote(name[2])+",") {
				t.Errorf("%s: there is no test %s", row[1], strings.Trim(name[0], "`"))
			}
		}
	}
}

// help is what a command says to --help.
func help(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(binary, append(args, "--help")...).Output()
	if err != nil {
		t.Fatalf("mogile %q --help: %v", args, err)
	}
	return string(out)
}

// below are the commands below a command.
func below(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command(binary, append(args, "--generate-bash-completion")...).Output()
	if err != nil {
		t.Fatalf("mogile %q --generate-bash-completion: %v", args, err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(s string) bool { return s == "help" || s == "h" })
}

// adm is what the binary prints, run as mogadm.
func adm(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(binary)
	cmd.Args = append([]string{"mogadm"}, args...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("mogadm %q: %v", args, err)
	}
	return string(out)
}

// admBelow are the commands below one of mogadm's.
func admBelow(t *testing.T, args ...string) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(adm(t, append(append([]string{"__complete", "fish"}, args...), "")...)) {
		name, _, isCommand := strings.Cut(line, "\t")
		if isCommand {
			names = append(names, name)
		}
	}
	return names
}

var (
	flagName     = regexp.MustCompile(`(?:^|[^-\w])(--[a-z][a-z_-]*)`)
	commandLine  = regexp.MustCompile(`(?m)(?:^\s*|\$ |[|] |/|\$\(|go run \. )(mog(?:ile|tool|adm) [^\n#|>)]*)`)
	variableName = regexp.MustCompile(`\bMOGILE_[A-Z][A-Z_]*[A-Z]\b`)
)

// TestDocumentedFlags finds every flag, variable and command of Mogile that the
// pages name in what the binary says of itself.
func TestDocumentedFlags(t *testing.T) {
	t.Parallel()
	flags := func(text string) map[string]bool {
		set := make(map[string]bool)
		for _, m := range flagName.FindAllStringSubmatch(text, -1) {
			set[m[1]] = true
		}
		return set
	}
	helps := map[string]string{"mogtool": help(t, "mogtool")}
	for _, name := range below(t) {
		helps["mogile "+name] = help(t, name)
	}
	groups := map[string][]string{"mogile storaged": below(t, "storaged")}
	for _, sub := range groups["mogile storaged"] {
		helps["mogile storaged "+sub] = help(t, "storaged", sub)
	}
	for _, name := range below(t, "mogtool") {
		helps["mogtool "+name] = help(t, "mogtool", name)
		switch name {
		case "host", "device", "domain", "class", "settings", "bench", "fsck":
			groups["mogtool "+name] = below(t, "mogtool", name)
			for _, sub := range groups["mogtool "+name] {
				helps["mogtool "+name+" "+sub] = help(t, "mogtool", name, sub)
			}
		}
	}
	helps["mogadm"] = adm(t, "--help")
	for _, name := range admBelow(t) {
		helps["mogadm "+name] = adm(t, name, "--help")
		if name == "check" || name == "stats" {
			continue
		}
		groups["mogadm "+name] = admBelow(t, name)
		for _, sub := range groups["mogadm "+name] {
			helps["mogadm "+name+" "+sub] = adm(t, name, sub, "--help")
		}
	}
	for _, name := range []string{"mogilefsd", "mogdbsetup"} {
		code, text := named(t, name, nil, "--help")
		if code != 0 {
			t.Errorf("%s --help: exit code %d", name, code)
		}
		helps[name] = text
	}
	// Other programs' flags, and a hidden one of ours.
	all := flags("--pwprompt --owner --encoding --template --no-owner --generate-bash-completion --version " +
		// What may be shortened, and start-stop-daemon's.
		"--daemon --dbpass --dbrootpass --start --stop --chuid --retry --exec")
	variables := make(map[string]bool)
	for _, text := range helps {
		maps.Copy(all, flags(text))
		for _, v := range variableName.FindAllString(text, -1) {
			variables[v] = true
		}
	}
	for _, dir := range []string{".", "schema/storetest", "schema/postgres/pgtest", "tools/e2e"} {
		for _, v := range variableName.FindAllString(source(t, dir, "*.go"), -1) {
			variables[v] = variables[v] || strings.HasPrefix(v, "MOGILE_TEST_")
		}
	}
	checked := 0
	for page, text := range pages(t) {
		for name := range flags(text) {
			if !all[name] {
				t.Errorf("%s: nothing has a flag %s", page, name)
			}
		}
		for _, name := range variableName.FindAllString(text, -1) {
			if !variables[name] {
				t.Errorf("%s: nothing reads %s", page, name)
			}
		}
		// Commands in blocks of code, as far as their comments, pipes and lines go.
		for _, block := range regexp.MustCompile("(?ms)^\\s*```(?:sh|console|ini)$(.*?)^\\s*```$").FindAllStringSubmatch(text, -1) {
			for _, m := range commandLine.FindAllStringSubmatch(block[1], -1) {
				checked++
				if err := checkCommand(m[1], helps, groups, flags); err != nil {
					t.Errorf("%s: %q: %v", page, m[1], err)
				}
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d commands were found in the pages", checked)
	}
}

// checkCommand looks for the command of a line and its flags.
func checkCommand(line string, helps map[string]string, groups map[string][]string, flags func(string) map[string]bool) error {
	words := slices.DeleteFunc(strings.Fields(line), func(w string) bool { return w == "--json" || strings.HasPrefix(w, "--trackers=") })
	for len(words) > 2 && (words[1] == "--domain" || words[1] == "--trackers") {
		words = slices.Delete(words, 1, 3)
	}
	if words[0] == "mogile" && len(words) > 1 && words[1] == "mogtool" {
		words = words[1:]
	}
	if len(words) < 2 {
		return nil
	}
	name := words[0] + " " + words[1]
	if len(words) > 2 && groups[name] != nil && !strings.HasPrefix(words[2], "-") {
		name += " " + words[2]
	}
	text, ok := helps[name]
	if !ok {
		return fmt.Errorf("there is no command %q", name)
	}
	known := flags(text + " --help")
	if words[0] != "mogile" {
		maps.Copy(known, flags(helps[words[0]]))
	}
	for f := range flags(line) {
		if !known[f] {
			return fmt.Errorf("%s has no flag %s", name, f)
		}
	}
	return nil
}

// TestFlagsBeatVariables holds the order of precedence that the pages promise.
func TestFlagsBeatVariables(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		env  string
		args []string
		code int
		says string
	}{
		{"MOGILE_DURABILITY=maybe", nil, 2, "maybe"},
		{"MOGILE_DURABILITY=maybe", []string{"--durability", "none"}, 1, "/nonexistent"},
		{"MOGILE_DURABILITY=none", []string{"--durability", "maybe"}, 2, "maybe"},
	} {
		cmd := exec.Command(binary, append([]string{"storaged", "--docroot", "/nonexistent"}, c.args...)...)
		cmd.Env = append(os.Environ(), c.env)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != c.code || !strings.Contains(string(out), c.says) {
			t.Errorf("%s, %q: %v, want exit code %d and a word on %s:\n%s", c.env, c.args, err, c.code, c.says, out)
		}
	}
}

// TestReadmeQuickStart compares the README's first commands with what `mogile
// dev` prints, which TestDev runs.
func TestReadmeQuickStart(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(pages(t)["README.md"], 2)
	if len(blocks) < 2 || blocks[0][1] != "go run . dev\n" {
		t.Fatalf("the README does not begin with go run . dev: %q", blocks)
	}
	_, addr, out := dev(t)
	var printed strings.Builder
	for line := range strings.Lines(out) {
		if cmd, ok := strings.CutPrefix(line, "  "); ok {
			printed.WriteString(strings.NewReplacer(binary, "go run .", " --trackers "+addr, "").Replace(cmd))
		}
	}
	if got := blocks[1][1]; got != printed.String() {
		t.Errorf("the README says\n%s\nmogile dev prints\n%s", got, printed.String())
	}
}

// TestReadmeCluster runs the README's commands for a real cluster, line by line,
// with loopback addresses and free ports in place of the hosts.
func TestReadmeCluster(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(pages(t)["README.md"], 3)
	if len(blocks) < 3 || !strings.HasPrefix(blocks[2][1], "make ") {
		t.Fatal("the README's third block of commands is not the real cluster's")
	}
	http := freePorts(t, 2, "127.0.0.1", "127.0.0.2")
	tracker := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1, "127.0.0.1"))
	var env []string
	var dsn string
	here := strings.NewReplacer("10.0.0.", "127.0.0.", "0.0.0.0:7001", tracker, "tracker1:7001,tracker2:7001", tracker,
		"--port 7500", fmt.Sprintf("--port %d", http), "./mog", filepath.Dir(binary)+"/mog")
	run := func(line string) error {
		cmd := exec.Command("bash", "-c", line)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", line, err, out)
		}
		return nil
	}
	ran := 0
	for line := range strings.Lines(blocks[2][1]) {
		line, _, _ = strings.Cut(line, "  #")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		ran++
		switch {
		case words[0] == "make": // TestMain built it
		case strings.HasPrefix(line, "export MOGILE_DSN=postgres://"):
			dsn = pgtest.DSN(t)
			env = append(env, "MOGILE_DSN="+dsn)
		case words[0] == "export":
			env = append(env, here.Replace(words[1]))
		case strings.HasPrefix(line, "./mogile tracker "):
			start(t, "tracker", append(strings.Fields(here.Replace(line))[1:], "--dsn", dsn, "--storage-mgmt-port", fmt.Sprint(http+1))...)
		case words[0] == "mkdir": // below
		case strings.HasPrefix(line, "./mogile storaged "):
			for i := 1; i <= 2; i++ {
				docroot := t.TempDir()
				if err := os.Mkdir(fmt.Sprintf("%s/dev%d", docroot, i), 0o777); err != nil {
					t.Fatal(err)
				}
				args := strings.Fields(strings.ReplaceAll(line, "/var/mogdata", docroot))[1:]
				start(t, "storaged", append(args, "--http-listen", fmt.Sprintf("127.0.0.%d:%d", i, http), "--mgmt-listen", fmt.Sprintf("127.0.0.%d:%d", i, http+1))...)
			}
		default:
			// The daemons, started a moment ago, may not listen yet.
			within(t, 30*time.Second, line, func() error { return run(here.Replace(line)) })
		}
	}
	if ran < 12 {
		t.Errorf("only %d lines were run", ran)
	}
	within(t, 10*time.Second, "a file", func() error {
		return run(here.Replace("echo hello | ./mogtool --domain photos put --class thumbs - greeting"))
	})
}

// TestMetricsAreDocumented: docs/monitoring.md has every metric, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile(`\bmogile_(?:tracker|monitor|replicate|delete|fsck|reap|drain|rebalance|device|storaged)_[a-z_]+`)
	have := make(map[string]bool)
	for _, dir := range []string{"tracker", "tracker/status", "tracker/monitor", "tracker/replicate", "tracker/delete",
		"tracker/fsck", "tracker/reap", "tracker/drain", "tracker/rebalance", "storaged", "storaged/transfer", "storaged/coding", "storaged/peers"} {
		names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range names {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`"`+name.String()+`"`).FindAllString(string(b), -1) {
				have[strings.Trim(m, `"`)] = true
			}
			for _, m := range regexp.MustCompile(`Subsystem: part, Name: "([a-z_]+)"`).FindAllStringSubmatch(string(b), -1) {
				have["mogile_storaged_"+m[1]] = true
			}
		}
	}
	if len(have) < 30 {
		t.Errorf("only %d metrics were found in the source", len(have))
	}
	told := make(map[string]bool)
	all := pages(t)
	for _, m := range name.FindAllString(all["docs/monitoring.md"], -1) {
		told[m] = true
	}
	for m := range have {
		if !told[m] {
			t.Errorf("docs/monitoring.md does not tell of %s", m)
		}
	}
	for page, text := range all {
		for _, m := range name.FindAllString(text, -1) {
			if !have[m] {
				t.Errorf("%s: there is no metric %s", page, m)
			}
		}
	}
}

// TestLinks follows the pages' links to each other.
func TestLinks(t *testing.T) {
	t.Parallel()
	all := pages(t)
	anchors := func(text string) map[string]bool {
		set := make(map[string]bool)
		for _, h := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
			slug := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(h[1]), "")
			set[strings.ReplaceAll(slug, " ", "-")] = true
		}
		return set
	}
	for page, text := range all {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: link to %s: %v", page, m[1], err)
			} else if anchor != "" && !anchors(all[target])[anchor] {
				t.Errorf("%s: %s has no heading %q", page, target, anchor)
			}
		}
	}
}
