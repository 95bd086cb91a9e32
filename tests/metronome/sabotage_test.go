package metronome_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration/sabotage"
)

// With a safety rule switched off, the test that guards it must fail, and for the
// right reason; in the same build with every rule on it must pass. Shown in child
// processes of a sabotage build.
func TestSabotageIsNoticed(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "sabotaged.test")
	out, err := exec.Command("go", "test", "-c", "-tags", "sabotage", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	run := func(t *testing.T, off sabotage.Rule, tests string) (string, error) {
		cmd := exec.CommandContext(deadline(t), bin, "-test.run", tests)
		cmd.Env = append(os.Environ(), sabotage.Env+"="+string(off))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		text, err := run(t, "", "^TestRule(ClearOrder|Barrier|VMMDirty)$")
		require.NoError(t, err, "with every rule on:\n%s", text)
	})
	for _, c := range []struct {
		rule      sabotage.Rule
		test, why string
	}{
		{sabotage.ClearOrder, "TestRuleClearOrder", "Stale"},
		{sabotage.Barrier, "TestRuleBarrier", "Stale"},
		{sabotage.VMMDirty, "TestRuleVMMDirty", "of the mailbox at the destination"},
	} {
		t.Run(string(c.rule), func(t *testing.T) {
			t.Parallel()
			for range shortOr(1, 10) {
				// What is lost may be of the guest's own stack, say, and end it before it
				// can tell: then once more.
				text := ""
				for try := 0; try < 3 && !strings.Contains(text, c.why); try++ {
					var err error
					text, err = run(t, c.rule, "^"+c.test+"$")
					require.Error(t, err, "%s is switched off and %s passes", c.rule, c.test)
				}
				require.Contains(t, text, c.why, "%s must fail because memory differs", c.test)
				t.Log(linesWith(text, "Error:", "Messages:"))
			}
		})
	}
}

// linesWith gives the lines of text that hold one of marks, as one.
func linesWith(text string, marks ...string) (found string) {
	for line := range strings.Lines(text) {
		for _, m := range marks {
			if strings.Contains(line, m) {
				found += strings.TrimSpace(line) + " "
			}
		}
	}
	return found
}
