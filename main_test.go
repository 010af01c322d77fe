package main

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mogile/mogile"

// reach lists the packages of this module that pkg depends on, itself
// included, as paths below the module.
func reach(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath", pkg).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pkg, err)
	}
	var deps []string
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p struct{ ImportPath string }
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if path, ok := strings.CutPrefix(p.ImportPath, module); ok {
			deps = append(deps, strings.TrimPrefix(path, "/"))
		}
	}
	return deps
}

// TestArrows holds the direction of dependencies: the first component of every
// package that a part reaches must be one that it may know.
func TestArrows(t *testing.T) {
	for _, c := range []struct {
		part string
		may  []string
	}{
		{"./protocol/...", []string{"protocol"}},
		{"./schema", []string{"schema", "protocol"}},
		{"./schema/...", []string{"schema", "protocol"}},
		{"./tracker/...", []string{"tracker", "schema", "protocol"}},
		{"./storaged/...", []string{"storaged", "protocol"}},
		{"./tools", []string{"tools", "protocol"}},
	} {
		for _, dep := range reach(t, c.part) {
			if first, _, _ := strings.Cut(dep, "/"); !slices.Contains(c.may, first) {
				t.Errorf("%s reaches %s, and may know only %s", c.part, dep, strings.Join(c.may, ", "))
			}
		}
	}
	for _, dep := range reach(t, "./schema") {
		if strings.HasPrefix(dep, "schema/") {
			t.Errorf("schema reaches %s: the interfaces must not know the engines", dep)
		}
	}
}
