package main

import (
	"encoding/json"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/api"
	"godwit/migration"
	"godwit/vmm"
)

// hostile is what a terminal would obey, turn around or take for another message.
const hostile = "\x1b]0;x\a\x1b[2J\u009b2J\r\nforged\u202e\u2066\u200f\u061c\x7f\b"

// obeyed are the characters of hostile that must reach no terminal; godwit's own
// lines end with a new line.
const obeyed = "\x1b\a\u009b\r\u202e\u2066\u200f\u061c\x7f\b"

// hostileServer is an API server whose every text is hostile.
func hostileServer(t *testing.T) (socket string) {
	socket = filepath.Join(t.TempDir(), "h.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	answer := func(status int, v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			text, _ := json.Marshal(v)
			w.WriteHeader(status)
			_, _ = w.Write(text)
		}
	}
	info := api.Info{Info: vmm.Info{ID: hostile, State: hostile, MemoryBacking: hostile, Exits: []uint64{1},
		Drives:    []vmm.DriveInfo{{ID: hostile, Path: hostile, Format: hostile}},
		Networks:  []vmm.NetworkInfo{{ID: hostile, MAC: hostile, Tap: hostile}},
		PausedFor: hostile}, LastMigration: &api.Note{To: hostile, Text: hostile}}
	info.Serial.LastError = hostile
	fault := api.Fault{Message: "no" + hostile}
	var mux http.ServeMux
	mux.HandleFunc("GET /vm/info", answer(200, info))
	mux.HandleFunc("PATCH /vm", answer(500, fault))
	mux.HandleFunc("PUT /actions", answer(400, fault))
	mux.HandleFunc("GET /migration", func(w http.ResponseWriter, r *http.Request) {
		answer(200, api.MigrationStatus{To: hostile, Progress: migration.Progress{Phase: hostile}})(w, r)
		answer(200, api.MigrationStatus{To: hostile, Report: &migration.Report{Status: hostile, Error: "no" + hostile}})(w, r)
	})
	mux.HandleFunc("PUT /migration", func(w http.ResponseWriter, r *http.Request) {
		answer(200, api.MigrationStatus{To: hostile, Progress: migration.Progress{Phase: hostile}})(w, r)
		answer(200, api.MigrationStatus{To: hostile, Report: &migration.Report{Status: migration.Completed,
			Verify: &migration.Verified{Source: hostile, Destination: hostile}}})(w, r)
	})
	s := &http.Server{Handler: &mux}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return socket
}

func TestNothingOfAnAPIServerIsObeyed(t *testing.T) {
	socket := hostileServer(t)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"info", 0, `\x1b]0;x\a\x1b[2J\u009b2J`},
		{"info --json", 0, `\u001b]0;x\u0007\u001b[2J\u009b2J`},
		{"pause", 1, `no\x1b]0;x\a`},
		{"stop", 2, `no\x1b]0;x\a`},
		{"migration status", 0, `to \x1b]0;x\a`},
		{"migration status --json", 0, `\u009b`},
		{"migration status --watch", 0, `no\x1b]0;x\a`},
		{"migrate --to tcp:h:1", 0, `moved to \x1b]0;x\a`},
		{"migrate --to file:x", 0, `moved to \x1b]0;x\a`},
		{"resume --force", 1, `no\x1b]0;x\a`},
	} {
		t.Run(c.args, func(t *testing.T) {
			code, stdout, stderr := godwit(t, append(strings.Fields(c.args), "--api-sock", socket)...)
			require.Equal(t, c.code, code, stderr)
			require.Contains(t, stdout+stderr, c.says)
			require.False(t, strings.ContainsAny(stdout+stderr, obeyed), "%q", stdout+stderr)
			require.NotContains(t, "\n"+stdout+stderr, "\nforged", "a line of its own")
		})
	}
}

func TestNothingOfAnArgumentIsObeyed(t *testing.T) {
	for _, args := range [][]string{{hostile}, {"info", "--api-sock", hostile}, {"image", "info", hostile}, {"receive", "--listen", "file:/" + hostile}} {
		_, stdout, stderr := godwit(t, args...)
		require.False(t, strings.ContainsAny(stdout+stderr, obeyed), "%q", stdout+stderr)
		require.Contains(t, stderr, `\x1b`)
	}
}

// No file but words.go and the terminal's own writes to stdout or stderr what has
// not become plain.
func TestEveryMessageGoesThroughOnePlace(t *testing.T) {
	direct := regexp.MustCompile(`fmt\.Print|fmt\.Fprint\w*\(os\.Std\w+, |os\.Std(out|err)\.Write|io\.WriteString\(os\.Std|\bprintln?\(`)
	allowed := map[string]int{"words.go": 3, "cli.go": 3, "internal/console/console.go": 1}
	found := map[string]int{}
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if n := len(direct.FindAll(text, -1)); n > 0 {
			found[path] = n
		}
		return err
	}))
	require.Equal(t, allowed, found)
}
