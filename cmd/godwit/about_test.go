package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"godwit/migration/wire"
)

func TestVersion(t *testing.T) {
	code, out, _ := godwit(t, "version")
	require.Zero(t, code)
	require.Contains(t, out, "migration version 1")
	code, out, _ = godwit(t, "version", "--json")
	require.Zero(t, code)
	var v versionInfo
	require.NoError(t, json.Unmarshal([]byte(out), &v))
	require.Equal(t, thisVersion().Version, v.Version)
	require.Equal(t, wire.Version, v.MigrationVersion)
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		t.Run(shell, func(t *testing.T) {
			code, out, stderr := godwit(t, "completion", shell)
			require.Zero(t, code, stderr)
			require.Contains(t, out, "godwit")
			if path, err := exec.LookPath(shell); err == nil && shell == "bash" {
				check := exec.Command(path, "-n")
				check.Stdin = strings.NewReader(out)
				text, err := check.CombinedOutput()
				require.NoError(t, err, string(text))
			}
		})
	}
	code, out, _ := godwit(t, "__complete", "migrate", "--mod")
	require.Zero(t, code)
	require.Contains(t, out, "--mode", "the script asks the program itself")
	code, _, stderr := godwit(t, "completion", "tcsh")
	require.Equal(t, exitUsage, code)
	require.Contains(t, stderr, "tcsh")
}

// Each command has a page.
func TestManualPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	code, out, stderr := godwit(t, "man", dir)
	require.Zero(t, code, stderr)
	require.Contains(t, out, dir)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		page, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"))
		require.NoError(t, err)
		require.Contains(t, string(page), ".TH")
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
	occupied := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(occupied, nil, 0o600))
	code, _, stderr = godwit(t, "man", occupied)
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, occupied)
}
