// Package getopt reads command lines as MogileFS's programs do, which leave that
// to Perl's Getopt::Long: so that init scripts and wrappers go on working.
//
//	--name   --name=value   --name value     long options
//	--nam                                    their beginnings, where one option alone has it
//	--noname --no-name                       the opposite of a switch that has one
//	-x  -xvalue  -x value  -xyz              short options, together too
//	-name                                    a long option after a single dash, written in full
//	--                                       what follows are operands
//
// Options and operands may be mixed. Long options may be in any letter case.
package getopt

import (
	"fmt"
	"slices"
	"strings"
)

// Takes is whether an option has a value.
type Takes int

const (
	Nothing Takes = iota // a switch; "--name=value" gives it one nevertheless
	Value                // a value: the rest of the argument, or the next one
	Maybe                // as Value, but the next argument only if it does not begin with a dash
)

// Option is an option that a program knows.
type Option struct {
	Name      string // after two dashes
	Short     byte   // after one, 0 where there is none
	Takes     Takes
	Negatable bool // a switch that "--no" before its name turns off
}

// Given is one option of a command line.
type Given struct {
	Name     string // of the Option, in full
	As       string // as it was written, without a value
	Value    string
	HasValue bool
	Negated  bool
}

// Error is a command line that is not understood.
type Error struct{ Text string }

func (e *Error) Error() string { return e.Text }

func wrong(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// Parse reads args, without the program's name. Its errors are [*Error].
func Parse(options []Option, args []string) (given []Given, operands []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return given, append(operands, args...), nil
		case strings.HasPrefix(arg, "--"):
			var g Given
			if g, args, err = long(options, arg, arg[2:], args); err != nil {
				return nil, nil, err
			}
			given = append(given, g)
		case len(arg) > 1 && arg[0] == '-':
			var more []Given
			if more, args, err = short(options, arg, args); err != nil {
				return nil, nil, err
			}
			given = append(given, more...)
		default:
			operands = append(operands, arg)
		}
	}
	return given, operands, nil
}

// long reads the long option in arg, whose text after the dashes is rest.
func long(options []Option, arg, rest string, args []string) (Given, []string, error) {
	name, value, hasValue := strings.Cut(rest, "=")
	as := strings.TrimSuffix(arg, "="+value)
	o, negated, err := find(options, as, strings.ToLower(name))
	if err != nil {
		return Given{}, nil, err
	}
	g := Given{Name: o.Name, As: as, Value: value, HasValue: hasValue, Negated: negated}
	if negated && hasValue {
		return g, nil, wrong("option %s takes no value", as)
	}
	return takeValue(g, o, args)
}

// takeValue takes the value from the next argument, where it has to be there.
func takeValue(g Given, o Option, args []string) (Given, []string, error) {
	if g.HasValue || o.Takes == Nothing {
		return g, args, nil
	}
	if len(args) == 0 || o.Takes == Maybe && strings.HasPrefix(args[0], "-") {
		if o.Takes == Maybe {
			return g, args, nil
		}
		return g, nil, wrong("option %s requires a value", g.As)
	}
	g.Value, g.HasValue = args[0], true
	return g, args[1:], nil
}

// spelling is a way to write an option.
type spelling struct {
	text    string
	option  Option
	negated bool
}

// find looks name up, in full or as the beginning of one option alone.
func find(options []Option, as, name string) (Option, bool, error) {
	var begin []spelling
	for _, o := range options {
		spellings := []spelling{{o.Name, o, false}}
		if o.Negatable {
			spellings = append(spellings, spelling{"no" + o.Name, o, true}, spelling{"no-" + o.Name, o, true})
		}
		for _, s := range spellings {
			if s.text == name {
				return o, s.negated, nil
			}
			if name != "" && strings.HasPrefix(s.text, name) && !slices.ContainsFunc(begin, func(b spelling) bool {
				return b.option.Name == s.option.Name && b.negated == s.negated
			}) {
				begin = append(begin, s)
			}
		}
	}
	switch len(begin) {
	case 0:
		return Option{}, false, wrong("unknown option: %s", as)
	case 1:
		return begin[0].option, begin[0].negated, nil
	}
	var names []string
	for _, b := range begin {
		names = append(names, b.text)
	}
	slices.Sort(names)
	return Option{}, false, wrong("option %s is ambiguous (%s)", as, strings.Join(names, ", "))
}

// short reads an argument of one dash.
func short(options []Option, arg string, args []string) ([]Given, []string, error) {
	if name, _, _ := strings.Cut(arg[1:], "="); len(name) > 1 {
		for _, o := range options {
			if strings.EqualFold(o.Name, name) {
				g, args, err := long(options, arg, arg[1:], args)
				return []Given{g}, args, err
			}
		}
	}
	var given []Given
	for i := 1; i < len(arg); i++ {
		at := slices.IndexFunc(options, func(o Option) bool { return o.Short != 0 && o.Short == arg[i] })
		if at < 0 {
			return nil, nil, wrong("unknown option: -%c", arg[i])
		}
		o := options[at]
		g := Given{Name: o.Name, As: arg[:1] + arg[i:i+1]}
		rest := arg[i+1:]
		if o.Takes == Nothing || rest == "" {
			var err error
			if g, args, err = takeValue(g, o, args); err != nil {
				return nil, nil, err
			}
			given = append(given, g)
			continue
		}
		g.Value, g.HasValue = strings.TrimPrefix(rest, "="), true
		return append(given, g), args, nil
	}
	return given, args, nil
}
