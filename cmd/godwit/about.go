package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"godwit/api"
	"godwit/cmd/godwit/internal/plain"
	"godwit/migration/wire"
)

// versionInfo is what `godwit version --json` prints.
type versionInfo struct {
	Version          string `json:"version"`
	Revision         string `json:"revision,omitempty"` // of the sources, where the build recorded it
	RevisionTime     string `json:"revision_time,omitempty"`
	Modified         bool   `json:"modified"` // the sources differed from the revision
	GoVersion        string `json:"go_version"`
	Platform         string `json:"platform"`
	MigrationVersion int    `json:"migration_protocol_version"`
}

func thisVersion() versionInfo {
	v := versionInfo{Version: api.Version(), GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, MigrationVersion: wire.Version}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Revision = s.Value
			case "vcs.time":
				v.RevisionTime = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	return v
}

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program and of its migration protocol",
		Example: `  godwit version
  godwit version --json`,
		Args: cobra.NoArgs,
		RunE: action(func(*cobra.Command, []string) error {
			v := thisVersion()
			if asJSON {
				return printJSON(v)
			}
			changed := ""
			if v.Modified {
				changed = ", with changes"
			}
			text := fmt.Sprintf("godwit %s\n", v.Version)
			if v.Revision != "" {
				text += fmt.Sprintf("  revision  %s of %s%s\n", v.Revision, v.RevisionTime, changed)
			}
			show(text + fmt.Sprintf("  built by  %s for %s\n  protocol  migration version %d\n", v.GoVersion, v.Platform, v.MigrationVersion))
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object, as in version --json")
	return cmd
}

func newCompletion() *cobra.Command {
	scripts := map[string]func(*cobra.Command, io.Writer) error{
		"bash":       func(r *cobra.Command, w io.Writer) error { return r.GenBashCompletionV2(w, true) },
		"zsh":        (*cobra.Command).GenZshCompletion,
		"fish":       func(r *cobra.Command, w io.Writer) error { return r.GenFishCompletion(w, true) },
		"powershell": (*cobra.Command).GenPowerShellCompletionWithDesc,
	}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print a script that completes godwit's commands and flags in a shell",
		Long: `Print a script that completes godwit's commands and flags in a shell.

Load it in the running shell, or put it where the shell looks for such scripts.`,
		Example: `  source <(godwit completion bash)
  godwit completion bash > /etc/bash_completion.d/godwit
  godwit completion zsh > "${fpath[1]}/_godwit"
  godwit completion fish > ~/.config/fish/completions/godwit.fish`,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			return scripts[args[0]](cmd.Root(), os.Stdout)
		}),
	}
}

func newMan() *cobra.Command {
	return &cobra.Command{
		Use:   "man FOLDER",
		Short: "Write the manual pages of all commands into a folder",
		Long: `Write the manual pages of all commands into a folder, which is made where it does not exist. Pages of the same names
there are replaced.`,
		Example: `  godwit man /usr/local/share/man/man1
  godwit man man && man -l man/godwit-migrate.1`,
		Args: cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("folder for manual pages: %w", err)
			}
			root := cmd.Root()
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "godwit " + api.Version(), Manual: "godwit"}, args[0]); err != nil {
				return fmt.Errorf("write manual pages into %q: %w", args[0], err)
			}
			pages, err := filepath.Glob(filepath.Join(args[0], "godwit*.1"))
			if err != nil {
				return err
			}
			show(fmt.Sprintf("%d manual pages in %s; the first is godwit.1\n", len(pages), plain.Line(args[0])))
			return nil
		}),
	}
}
