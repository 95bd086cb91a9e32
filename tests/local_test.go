package tests

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/migration"
)

// The memory changes hands between two processes, as a user has it done; what
// cannot be is said before anything begins.
func TestLocalHandOver(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	a, b, in := filepath.Join(dir, "a"), filepath.Join(dir, "b"), "unix:"+filepath.Join(dir, "in")
	p := start(t, append(metronomeArgs(a, "fill=64 ws=16 rate=2000"), "--memory-backing", "memfd")...)
	p.awaitBeats(3)
	for want, args := range map[string][]string{
		"unix socket only":     {"--to", "tcp:127.0.0.1:1"},
		"nothing is left here": {"--to", in, "--keep"},
		"4 streams":            {"--to", in, "--streams", "4"},
	} {
		code, _, errs := godwit(t, append([]string{"migrate", "--api-sock", a, "--local"}, args...)...)
		require.NotZero(t, code)
		require.Contains(t, errs, want)
	}
	q := start(t, "receive", "--listen", in, "--api-sock", b, "--once")
	q.await(q.err, "listening on")
	code, out, errs := godwit(t, "migrate", "--api-sock", a, "--to", in, "--local", "--verify", "--json")
	require.Zero(t, code, errs)
	var r migration.Report
	lastJSON(t, out, &r)
	require.Equal(t, migration.Completed, r.Status)
	require.True(t, r.Local)
	require.Zero(t, r.WireBytes)
	require.Equal(t, r.Verify.Source, r.Verify.Destination)
	p.ends(0)
	q.awaitBeats(20)
	require.Contains(t, q.err.String(), "pages handed over, none copied")
	require.Regexp(t, `metronome beat .* bad=0 `, q.out.String())
	require.NotContains(t, q.out.String(), "metronome bad")
	q.signal(unix.SIGTERM)
	q.ends(0)
}

// A machine whose memory is no file says how to start one that is, and runs on.
func TestLocalNeedsMemfd(t *testing.T) {
	needKVM(t)
	a := filepath.Join(t.TempDir(), "a")
	p := start(t, metronomeArgs(a, "fill=8")...)
	p.awaitBeats(2)
	code, _, errs := godwit(t, "migrate", "--api-sock", a, "--to", "unix:"+a, "--local")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "--memory-backing memfd")
	p.awaitBeats(2)
}
