// Package statetest is the one test that every state.Saver goes through: what
// is saved today must be byte for byte what the golden file holds, and every
// version that was ever saved must still restore.
//
//	func TestState(t *testing.T) {
//		statetest.Golden(t, deviceWithInterestingState(t), func() state.Saver { return newDevice(t) })
//	}
//
// `go test ./devices/serial -run TestState -update` writes the file of the
// current version. A file of an older version is never written again.
package statetest

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
)

var update = flag.Bool("update", false, "write the golden file of each Saver's current version")

// Stream returns s saved as the only section of a whole state stream.
func Stream(t testing.TB, s state.Saver) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := state.NewWriter(&buf)
	require.NoError(t, w.WriteSaver(s))
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// Data returns what s saves, without the framing.
func Data(t testing.TB, s state.Saver) []byte {
	t.Helper()
	var e state.Encoder
	require.NoError(t, s.Save(&e))
	return e.Data()
}

// Restore restores s, alone, from a stream that Stream returned.
func Restore(s state.Saver, stream []byte) error {
	sections, err := state.Read(bytes.NewReader(stream), state.DefaultLimits)
	if err != nil {
		return err
	}
	if err := sections.Restore(s); err != nil {
		return err
	}
	return sections.Done()
}

// Golden compares the stream of s with testdata/<id>-v<version>.state, with
// any '/' in the id replaced by '_'. Then it restores the file of every
// version, each into a new part from fresh, and demands that the current
// version saves again to the same bytes. It also restores every truncation of
// the current data, all of which must be refused.
func Golden(t *testing.T, s state.Saver, fresh func() state.Saver) {
	t.Helper()
	base := filepath.Join("testdata", strings.ReplaceAll(s.StateID(), "/", "_")+"-v")
	current := base + strconv.FormatUint(uint64(s.StateVersion()), 10) + ".state"
	stream := Stream(t, s)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(current, stream, 0o644))
	}
	want, err := os.ReadFile(current)
	require.NoError(t, err, "no golden file; run this test with -update and commit it")
	require.Equal(t, want, stream,
		"the saved form changed: raise StateVersion, keep reading the old one, and run with -update")

	for v := uint32(1); v <= s.StateVersion(); v++ {
		file := fmt.Sprintf("%s%d.state", base, v)
		old, err := os.ReadFile(file)
		require.NoError(t, err)
		part := fresh()
		require.NoError(t, Restore(part, old), file)
		if v == s.StateVersion() {
			require.Equal(t, want, Stream(t, part), "a restored part must save to the same bytes")
		}
	}

	data := Data(t, s)
	for n := range data {
		d := state.NewDecoder(data[:n])
		err := fresh().Restore(s.StateVersion(), d)
		if err == nil {
			err = d.Finish()
		}
		require.Error(t, err, "restore of the first %d of %d bytes", n, len(data))
	}
}
