package tools

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

// CompletionRequest is the first argument with which the scripts of
// "mogtool completion" ask what could follow; see [Complete].
const CompletionRequest = "__complete"

const (
	completionTimeout = time.Second // for all that trackers are asked
	completionDial    = 300 * time.Millisecond
	completionKeys    = 500 // keys that are offered at most
)

func completionCommand() *cli.Command {
	return command("completion", "print what makes a shell complete mogtool, mogadm and mogile", "SHELL",
		`eval "$(mogtool completion bash)"     in ~/.bashrc
eval "$(mogtool completion zsh)"      in ~/.zshrc, after compinit
mogtool completion fish | source      in ~/.config/fish/config.fish`,
		need{1, 1, false}, nil, completion)
}

func completion(s *session, args []string) error {
	script, ok := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[args[0]]
	if !ok {
		return usageError(s.Context, "completion: there is none for %q, but for bash, zsh and fish", args[0])
	}
	if s.out.json {
		return s.out.object(struct {
			Shell  string `json:"shell"`
			Script string `json:"script"`
		}{args[0], script})
	}
	_, err := io.WriteString(s.out.w, script)
	return err
}

// In all three the program says how to go on in its first line ("files" where
// names of files are wanted, "nospace" where more may follow at once), and then
// what could stand there, a line each.
const (
	bashCompletion = `# Completion of mogtool, mogadm and mogile for bash.
_mogile() {
	local line how=
	COMPREPLY=()
	while IFS= read -r line; do
		if [[ -z $how ]]; then
			how=$line
		else
			COMPREPLY+=("$line")
		fi
	done < <("${1/#\~/$HOME}" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
	case $how in
	files) compopt -o default -o bashdefault 2>/dev/null ;;
	nospace) compopt -o nospace 2>/dev/null ;;
	esac
}
complete -F _mogile mogtool mogadm mogile
`
	zshCompletion = `#compdef mogtool mogadm mogile
# Completion of mogtool, mogadm and mogile for zsh.
_mogile() {
	local line how=
	local -a values shown options
	while IFS= read -r line; do
		if [[ -z $how ]]; then
			how=$line
		else
			values+=("${line%%$'\t'*}")
			shown+=("${line/$'\t'/  -- }")
		fi
	done < <("${(Q)words[1]}" __complete zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)
	if [[ $how == files ]]; then
		_files
		return
	fi
	[[ $how == nospace ]] && options=(-S '')
	(( $#values )) && compadd $options -l -d shown -a values
}
if [[ $funcstack[1] == _mogile ]]; then
	_mogile "$@"
else
	compdef _mogile mogtool mogadm mogile
fi
`
	fishCompletion = `# Completion of mogtool, mogadm and mogile for fish.
function __mogile_complete
	set -l words (commandline -opc)
	set -l current (commandline -ct)
	set -l lines (command $words[1] __complete fish $words[2..-1] "$current" 2>/dev/null)
	if test "$lines[1]" = files
		__fish_complete_path "$current"
	end
	if set -q lines[2]
		printf '%s\n' $lines[2..-1]
	end
end
for program in mogtool mogadm mogile
	complete -c $program -f -a '(__mogile_complete)'
end
`
)

// Complete answers a request of a completion script: how to go on, then what
// could stand at the end of the command line of root. args are the shell and
// the line: for bash the text up to the cursor and what breaks words, for the
// others the words, the last being the one to complete. Trackers are asked for
// names and keys, for a second; those that are away have none. It returns the
// exit code.
func Complete(ctx context.Context, root *cli.Command, args []string, stdout io.Writer) int {
	if len(args) < 2 {
		return exitUsage
	}
	shell, words := args[0], args[1:]
	var bash bashWord
	if shell == "bash" {
		if len(args) < 3 {
			return exitUsage
		}
		words, bash = bashWords(args[1], args[2])
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	r := newRequest(root, words)
	r.find(ctx)
	how := cmp.Or(r.how, "words")
	var b strings.Builder
	fmt.Fprintln(&b, how)
	for _, c := range r.found {
		switch {
		case !strings.HasPrefix(c.value, r.current) || strings.ContainsAny(c.value, "\t\r\n\x00"):
		case shell == "bash":
			fmt.Fprintln(&b, bash.complete(c.value))
		case c.about != "":
			fmt.Fprintf(&b, "%s\t%s\n", c.value, c.about)
		default:
			fmt.Fprintln(&b, c.value)
		}
	}
	if _, err := io.WriteString(stdout, b.String()); err != nil {
		return exitFailed
	}
	return 0
}

// candidate is something that could stand there.
type candidate struct{ value, about string }

// request is a command line to complete, as far as it goes.
type request struct {
	path     []*cli.Command // the program, then the command
	flags    map[string]string
	operands []string
	value    cli.Flag // that the last word is the value of, or nil
	ended    bool     // by "--": no flags follow
	current  string   // the last word

	found []candidate
	how   string
}

func newRequest(root *cli.Command, words []string) *request {
	r := &request{path: []*cli.Command{root}, flags: make(map[string]string)}
	for _, w := range words[:len(words)-1] {
		name, value, given := strings.Cut(strings.TrimLeft(w, "-"), "=")
		switch {
		case r.value != nil:
			r.flags[r.value.Names()[0]] = w
			r.value = nil
		case w == "--":
			r.ended = true
		case !r.ended && len(w) > 1 && w[0] == '-':
			f := r.flag(name)
			if _, isBool := f.(*cli.BoolFlag); f != nil && given {
				r.flags[f.Names()[0]] = value
			} else if f != nil && !isBool {
				r.value = f
			}
		default:
			sub := slices.IndexFunc(r.at().Subcommands, func(c *cli.Command) bool { return c.HasName(w) })
			if sub >= 0 && len(r.operands) == 0 {
				r.path = append(r.path, r.at().Subcommands[sub])
			} else {
				r.operands = append(r.operands, w)
			}
		}
	}
	r.current = words[len(words)-1]
	return r
}

// at is the command that was named.
func (r *request) at() *cli.Command { return r.path[len(r.path)-1] }

func (r *request) flag(name string) cli.Flag {
	for _, c := range slices.Backward(r.path) {
		for _, f := range c.Flags {
			if slices.Contains(f.Names(), name) {
				return f
			}
		}
	}
	return nil
}

// find collects what could stand in the last word's place.
func (r *request) find(ctx context.Context) {
	name, _, given := strings.Cut(r.current, "=")
	switch {
	case r.value != nil:
		r.values(ctx, flagKind(r.value), "")
	case !r.ended && given && strings.HasPrefix(name, "-"):
		if f := r.flag(strings.TrimLeft(name, "-")); f != nil {
			r.values(ctx, flagKind(f), name+"=")
		}
	case !r.ended && strings.HasPrefix(r.current, "-"):
		r.flagNames()
	case len(r.at().Subcommands) > 0:
		for _, c := range r.at().Subcommands {
			if !c.Hidden && c.Name != "help" && len(r.operands) == 0 {
				r.add(c.Name, c.Usage)
			}
		}
	default:
		r.values(ctx, operandKind(r.at().ArgsUsage, len(r.operands)), "")
	}
}

func (r *request) add(value, about string) { r.found = append(r.found, candidate{value, about}) }

func (r *request) flagNames() {
	for _, c := range slices.Backward(r.path) {
		for _, f := range c.Flags {
			name := f.Names()[0]
			if v, ok := f.(cli.VisibleFlag); len(name) > 1 && (!ok || v.IsVisible()) {
				r.add("--"+name, about(f))
			}
		}
	}
	r.add("--help", "")
}

func about(f cli.Flag) string {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return ""
	}
	return strings.ReplaceAll(d.GetUsage(), "`", "")
}

// kind is what stands in a place, as help names it: HOST, KEY, FILE, and
// whether several may, separated by commas.
type kind struct {
	name string
	list bool
}

var placeholder = regexp.MustCompile("`([A-Z]+)`")

// flagKind is what stands behind a flag. A flag whose help has no word for that
// is known by its name.
func flagKind(f cli.Flag) kind {
	if d, ok := f.(cli.DocGenerationFlag); ok {
		if m := placeholder.FindStringSubmatch(d.GetUsage()); m != nil {
			name, several := strings.CutSuffix(m[1], "S")
			if several && name == "HOST" {
				return kind{name, true}
			}
			return kind{name: m[1]}
		}
	}
	return kind{name: strings.ToUpper(f.Names()[0])}
}

// operandKind is what help calls operand i: of "HOST DEVID STATUS", "FILE [KEY]"
// or "CLASS KEY…".
func operandKind(usage string, i int) kind {
	words := strings.Fields(usage)
	if len(words) == 0 {
		return kind{}
	}
	if last := words[len(words)-1]; i >= len(words) {
		if !strings.Contains(last, "…") {
			return kind{}
		}
		i = len(words) - 1
	}
	name := strings.FieldsFunc(words[i], func(r rune) bool { return r < 'A' || r > 'Z' })
	if len(name) == 0 {
		return kind{}
	}
	return kind{name: name[0]}
}

// group is the name of the command above the one that was named.
func (r *request) group() string {
	if len(r.path) < 2 {
		return ""
	}
	return r.path[len(r.path)-2].Name
}

// values finds what could stand in a place of that kind, behind a prefix of the
// word.
func (r *request) values(ctx context.Context, k kind, prefix string) {
	typed := strings.TrimPrefix(r.current, prefix)
	if k.list {
		i := strings.LastIndexByte(typed, ',') + 1
		prefix, typed = prefix+typed[:i], typed[i:]
	}
	switch k.name {
	case "FILE", "DIR", "SRC", "DST":
		r.how = "files"
		return
	case "STATUS":
		statuses := hostStatuses
		if r.group() == "device" {
			statuses = deviceStatuses
		}
		for _, s := range statuses {
			r.add(prefix+s, "")
		}
		return
	case "SHELL":
		for _, s := range []string{"bash", "zsh", "fish"} {
			r.add(s, "")
		}
		return
	case "TYPE":
		for _, s := range []string{"MD5", "SHA-1", "BLAKE3", "NONE"} {
			r.add(prefix+s, "")
		}
		return
	case "POLICY":
		for _, s := range []string{"MultipleHosts()", "MultipleDevices()"} {
			r.add(prefix+s, "")
		}
		return
	case "ZONE":
		r.add(prefix+"alt", "")
		return
	case "COMMAND":
		for _, s := range []string{"!jobs", "!queue", "!recent", "!stats", "!version", "!want", "!watch"} {
			r.add(prefix+s, "")
		}
		return
	}
	client := r.client()
	if client == nil {
		return
	}
	defer client.Close()
	switch k.name {
	case "HOST":
		hosts, _ := client.Hosts(ctx) // nothing to complete with is no error
		named := strings.Split(prefix[strings.IndexByte(prefix, '=')+1:], ",")
		for _, h := range hosts {
			if k.list && slices.Contains(named, h.Name) {
				continue
			}
			r.add(prefix+h.Name, fmt.Sprintf("%s, %s", h.IP, h.Status))
		}
	case "DEVID":
		r.devices(ctx, client)
	case "DOMAIN":
		domains, _ := client.Domains(ctx) // as above
		for _, d := range domains {
			r.add(prefix+d.Name, "")
		}
	case "CLASS":
		domain := r.domain()
		if r.group() == "class" && len(r.operands) > 0 {
			domain = r.operands[0]
		}
		domains, _ := client.Domains(ctx) // as above
		for _, d := range domains {
			for _, c := range d.Classes {
				if d.Name == domain {
					r.add(prefix+c.Name, fmt.Sprintf("mindevcount %d", c.MinDevCount))
				}
			}
		}
	case "KEY", "PREFIX", "FROM", "TO":
		switch r.group() {
		case "settings":
			r.settings(ctx, client)
		case "slave":
			settings, _ := client.Settings(ctx) // as above
			for _, x := range settings {
				if key, ok := strings.CutPrefix(x.Key, "slave_"); ok && !reserved(key) {
					r.add(key, "")
				}
			}
		default:
			r.keys(ctx, client, prefix, typed)
		}
	}
}

// client asks the trackers that the command line, the environment or mogadm's
// files name.
func (r *request) client() *protocol.Client {
	trackers := cmp.Or(r.flags["trackers"], os.Getenv("MOGILE_TRACKERS"))
	if trackers == "" && r.path[0].Name == "mogadm" {
		line := &commandLine{}
		if config := r.flags["config"]; config != "" {
			line.global = []flagArg{{"config", config}}
		}
		if line.configure(r.path[0], io.Discard) == nil {
			trackers, _ = line.option("trackers")
		}
	}
	client, err := protocol.NewClient(protocol.ClientOptions{
		Trackers:    splitTrackers(cmp.Or(trackers, "127.0.0.1:"+protocol.DefaultPort)),
		DialTimeout: completionDial,
		Timeout:     completionTimeout,
	})
	if err != nil {
		return nil // the command itself will say so
	}
	return client
}

func (r *request) domain() string { return cmp.Or(r.flags["domain"], os.Getenv("MOGILE_DOMAIN")) }

// devices are those of the host that stands before.
func (r *request) devices(ctx context.Context, client *protocol.Client) {
	hosts, err := client.Hosts(ctx)
	if err != nil {
		return
	}
	devs, _ := client.Devices(ctx) // nothing to complete with is no error
	if r.at().Name == "add" {
		next := protocol.DevID(1)
		for _, d := range devs {
			next = max(next, d.ID+1)
		}
		if len(devs) > 0 {
			r.add(next.String(), "the next free number")
		}
		return
	}
	for _, d := range deviceRows(hosts, devs) {
		if len(r.operands) > 0 && d.Host == r.operands[0] {
			r.add(d.ID.String(), d.Status)
		}
	}
}

// settings are those that can be set, or those that are there.
func (r *request) settings(ctx context.Context, client *protocol.Client) {
	known := make(map[string]string)
	if r.at().Name == "set" || r.at().Name == "get" {
		for _, k := range knownSettings {
			if !k.fixed && !strings.HasSuffix(k.key, "_") {
				known[k.key] = k.about
			}
		}
	}
	settings, _ := client.Settings(ctx) // nothing to complete with is no error
	for _, x := range settings {
		k, ok := knownAs(x.Key)
		if r.at().Name == "get" || ok && !k.fixed {
			known[x.Key] = k.about
		}
	}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		r.add(key, known[key])
	}
}

// keys are those that begin as what was typed, up to their next "/", as a shell
// completes paths. Whole branches are skipped, so that a few requests are
// enough.
func (r *request) keys(ctx context.Context, client *protocol.Client, prefix, typed string) {
	after := ""
	for len(r.found) < completionKeys {
		args := protocol.Args{{Name: "domain", Value: r.domain()}, {Name: "prefix", Value: typed}, {Name: "after", Value: after}, {Name: "limit", Value: "100"}}
		reply, err := client.Do(ctx, "list_keys", args)
		if err != nil || reply.Get("next_after") <= after {
			break // the end, or nobody who knows
		}
		branch := ""
		for _, f := range reply {
			if !strings.HasPrefix(f.Name, "key_") || f.Name == "key_count" || branch != "" && strings.HasPrefix(f.Value, branch) {
				continue
			}
			after = max(after, f.Value)
			if rest := strings.TrimPrefix(f.Value, typed); strings.Contains(rest, "/") {
				branch = f.Value[:len(f.Value)-len(rest)+strings.IndexByte(rest, '/')+1]
				r.add(prefix+branch, "")
			} else {
				r.add(prefix+f.Value, "")
			}
		}
		if last := reply.Get("next_after"); branch != "" && strings.HasPrefix(last, branch) {
			after = branch + "\U0010FFFF" // the last that begins so
		} else {
			after = last
		}
	}
	slices.SortFunc(r.found, func(a, b candidate) int { return strings.Compare(a.value, b.value) })
	r.found = slices.CompactFunc(r.found, func(a, b candidate) bool { return a.value == b.value })
	if len(r.found) > 0 && !slices.ContainsFunc(r.found, func(c candidate) bool { return !strings.HasSuffix(c.value, "/") }) {
		r.how = "nospace"
	}
}

// bashWord is how bash takes a word apart: it replaces only what follows the
// last character that breaks words, and wants it quoted as it is quoted there.
type bashWord struct {
	kept  int  // bytes of the word that stay
	quote byte // that is open, or 0
}

// bashWords splits a command line up to the cursor, as bash does, and leaves the
// program out. There is always a last word, which may be empty.
func bashWords(line, breaks string) ([]string, bashWord) {
	var words []string
	var word strings.Builder
	var at bashWord
	begun := false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case at.quote == '\'' && c != '\'', at.quote == '"' && c != '"' && c != '\\':
			word.WriteByte(c)
		case at.quote != 0 && c == at.quote:
			at.quote, at.kept = 0, 0
		case c == '\\' && i+1 < len(line):
			i++
			if at.quote == '"' && !strings.ContainsRune("\\\"$`", rune(line[i])) {
				word.WriteByte('\\')
			}
			word.WriteByte(line[i])
			begun = true
		case c == '\\':
			begun = true
		case c == '\'' || c == '"':
			at.quote, at.kept, begun = c, word.Len(), true
		case c == ' ' || c == '\t' || c == '\n':
			if begun {
				words = append(words, word.String())
				word.Reset()
			}
			at, begun = bashWord{}, false
		default:
			word.WriteByte(c)
			begun = true
			if strings.IndexByte(breaks, c) >= 0 {
				at.kept = word.Len()
			}
		}
	}
	words = append(words, word.String())
	for len(words) > 1 && assignment.MatchString(words[0]) {
		words = words[1:]
	}
	if len(words) < 2 {
		return []string{""}, bashWord{}
	}
	return words[1:], at
}

var assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

// complete is value as bash takes it in place of the word.
func (w bashWord) complete(value string) string {
	rest := value[min(w.kept, len(value)):]
	switch w.quote {
	case '\'':
		return strings.ReplaceAll(rest, "'", `'\''`)
	case '"':
		return quoted(rest, "\\\"$`")
	}
	return quoted(rest, " \t\\'\"`$&|;<>()[]{}*?!#~")
}

// quoted has a backslash before the characters that mean something.
func quoted(s, special string) string {
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(special, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
