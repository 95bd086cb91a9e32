package tests

import (
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// scripts/test.sh runs everything with the race detector, and once more without
// it what was skipped there by name. So a file that the detector's build leaves out
// may hold no test: neither run would see it. Such a test has t.Skip, as in
// virtio/rng.
func TestNoTestHidesFromTheRaceDetector(t *testing.T) {
	var names []string
	require.NoError(t, filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && name != ".." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if strings.HasSuffix(name, "_test.go") {
			names = append(names, name)
		}
		return err
	}))
	require.Greater(t, len(names), 100)
	left := 0
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		require.NoError(t, err)
		if !onlyWithoutRace(t, file) {
			continue
		}
		left++
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && isTest(f.Name.Name) {
				t.Errorf("%s: %s runs in no run of scripts/test.sh: take \"!race\" from the file, and have the test skip where raceEnabled", name, f.Name.Name)
			}
		}
	}
	require.NotZero(t, left, "norace_test.go is one")
}

func isTest(name string) bool {
	return name != "TestMain" && (strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "Fuzz") || strings.HasPrefix(name, "Example"))
}

// onlyWithoutRace tells whether a file is part of a plain build of this machine and
// of none with the race detector.
func onlyWithoutRace(t *testing.T, file *ast.File) bool {
	for _, group := range file.Comments {
		if group.Pos() > file.Package {
			break
		}
		for _, c := range group.List {
			if !constraint.IsGoBuild(c.Text) {
				continue
			}
			x, err := constraint.Parse(c.Text)
			require.NoError(t, err)
			with := func(race bool) bool {
				return x.Eval(func(tag string) bool {
					return tag == "linux" || tag == "amd64" || tag == "unix" || tag == "race" && race
				})
			}
			return with(false) && !with(true)
		}
	}
	return false
}
