package scripts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// scriptTests are packages of a module on which scripts/test.sh is tried.
// once.Failed tells whether its caller has been here before.
var scriptTests = map[string]string{
	"once/once.go": `package once

import "os"

func Failed(name string) bool {
	f, err := os.OpenFile("../"+name+".mark", os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		f.Close()
	}
	return err == nil
}
`,
	"good/good_test.go": `package good

import "testing"

func TestGood(t *testing.T) { t.Run("a b", func(t *testing.T) {}) }
`,
	"chance/chance_test.go": `package chance

import (
	"testing"

	"fake/once"
)

func TestByChance(t *testing.T) {
	t.Log("a word of the test")
	t.Run("odd (name)", func(t *testing.T) {
		if once.Failed("chance") {
			t.Fatal("bad luck")
		}
	})
}
`,
	"crash/crash_test.go": `package crash

import (
	"fmt"
	"os"
	"testing"

	"fake/once"
)

func TestMain(m *testing.M) {
	if once.Failed("crash") {
		fmt.Println("the machine is gone")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestCrash(t *testing.T) {}
`,
	"broken/broken_test.go": `package broken

import "testing"

func TestBroken(t *testing.T) { t.Fatal("no chance") }
`,
	"racy/racy_test.go": `package racy

import (
	"testing"

	"fake/once"
)

func TestRacy(t *testing.T) {
	if !once.Failed("racy") {
		return
	}
	n, done := 0, make(chan bool)
	go func() { n++; close(done) }()
	n++
	<-done
}
`,
	"hangs/hangs_test.go": `package hangs

import "testing"

func TestHangs(t *testing.T) { t.Log("so far"); t.Run("inner", func(t *testing.T) { t.Parallel(); select {} }) }

func TestNever(t *testing.T) {}
`,
	"unbuilt/unbuilt_test.go": "package unbuilt\n\nfunc f() { nothing() }\n",
	"skips/skips_test.go":     "package skips\n\nimport \"testing\"\n\nfunc TestSkips(t *testing.T) { t.Skip(\"not here\") }\n",
}

// tryScript runs the script on such a module.
func tryScript(t *testing.T, env string, args ...string) (out string, code int) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds packages")
	}
	dir := t.TempDir()
	script, err := os.ReadFile("../../scripts/test.sh")
	require.NoError(t, err)
	files := map[string]string{"scripts/test.sh": string(script), "go.mod": "module fake\n\ngo 1.22\n", "Makefile": "built:\n\t@echo made\nbad:\n\t@false\nslow:\n\t@sleep 1000\n"}
	for name, text := range scriptTests {
		files[name] = text
	}
	for name, text := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	cmd := exec.Command(filepath.Join(dir, "scripts/test.sh"), args...)
	cmd.Env = append(os.Environ(), "GODWIT_SOAK=", "GOFLAGS=-mod=mod", env)
	text, err := cmd.CombinedOutput()
	if err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

func TestScriptCounts(t *testing.T) {
	t.Parallel()
	out, code := tryScript(t, "", "--make", "built", "./good")
	require.Zero(t, code, out)
	require.Regexp(t, `(?s)^made\n.*\n2 passed, 0 failed, 0 skipped\n$`, out)
	out, code = tryScript(t, "", "./good", "./chance", "./crash", "./broken")
	require.Equal(t, 1, code, out)
	require.NotContains(t, out, "FLAKY", "only --retry tries again")
	require.Contains(t, out, "bad luck")
	require.Contains(t, out, "the machine is gone")
	require.True(t, strings.HasSuffix(out, "2 passed, 4 failed, 0 skipped\n"), out)
}

func TestScriptTriesAgain(t *testing.T) {
	t.Parallel()
	out, code := tryScript(t, "", "--retry", "./good", "./chance", "./crash")
	require.Zero(t, code, out)
	require.Regexp(t, `(?s)FLAKY fake/chance TestByChance\n=== it failed:\n.*bad luck.*=== tried again, alone, it passed:\n.*--- PASS: TestByChance`, out)
	require.Regexp(t, `(?s)FLAKY fake/crash \n=== it failed:\n.*the machine is gone.*=== tried again, alone, it passed:\n.*--- PASS: TestCrash`, out)
	require.True(t, strings.HasSuffix(out, "\n5 passed, 0 failed, 0 skipped\n"), out)

	out, code = tryScript(t, "", "--retry", "./chance", "./broken")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "FLAKY fake/chance TestByChance\n")
	require.Contains(t, out, "=== fake/broken TestBroken, tried again, failed again:")
	require.Equal(t, 2, strings.Count(out, "no chance"), out)
	require.True(t, strings.HasSuffix(out, "\n2 passed, 1 failed, 0 skipped\n"), out)
}

func TestScriptExcusesNoRace(t *testing.T) {
	t.Parallel()
	out, code := tryScript(t, "", "--retry", "./racy")
	require.Equal(t, 1, code, out)
	require.NotContains(t, out, "FLAKY")
	require.Contains(t, out, "DATA RACE")
	require.True(t, strings.HasSuffix(out, "\n0 passed, 1 failed, 0 skipped\n"), out)
}

func TestScriptEndsInTime(t *testing.T) {
	t.Parallel()
	out, code := tryScript(t, "GODWIT_TEST_BOUND=1", "--make", "slow", "./good")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "'make slow' was not done within 1 seconds")
	// Long enough to build and to run the first test, wherever that is.
	for _, bound := range []string{"20", "60", "240"} {
		out, code = tryScript(t, "GODWIT_TEST_BOUND="+bound, "--retry", "./hangs")
		require.Equal(t, 1, code, out)
		require.Contains(t, out, "test: not done within "+bound+" seconds; running then:")
		require.NotContains(t, out, "FLAKY")
		if regexp.MustCompile(`(?s)=== fake/hangs TestHangs\n.*so far.*=== fake/hangs TestHangs/inner\n`).MatchString(out) {
			return
		}
	}
	t.Fatal(out)
}

func TestScriptRefusesWhatDidNotRun(t *testing.T) {
	t.Parallel()
	out, code := tryScript(t, "", "--make", "bad", "./good")
	require.Equal(t, 1, code, out)
	require.NotContains(t, out, "passed")
	out, code = tryScript(t, "", "--retry", "./good", "./unbuilt")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "undefined: nothing")
	out, code = tryScript(t, "", "./good", "./skips")
	require.Contains(t, out, "skipped: fake/skips TestSkips\n")
	require.Contains(t, out, "2 passed, 0 failed, 1 skipped\n")
	require.Equal(t, os.Geteuid() == 0, code == 1, out)
}
