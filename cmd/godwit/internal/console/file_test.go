package console

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestFileSpec(t *testing.T) {
	for text, want := range map[string]Spec{
		"file:a.log":             {Kind: "file", Path: "a.log"},
		"file:a=b.log,limit=4K":  {Kind: "file", Path: "a=b.log", Limit: 4 << 10},
		"file:a,,b.log,limit=1G": {Kind: "file", Path: "a,b.log", Limit: 1 << 30},
	} {
		got, err := ParseSpec(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for text, why := range map[string]string{
		"file:a.log,limit=":             "without a value",
		"file:a.log,limit":              "limit",
		"file:a.log,limit=1":            "at least 4K",
		"file:a.log,limit=many":         "for example 512M",
		"file:a.log,limit=9999999T":     "at least 4K",
		"file:a.log,limit=4K,limit=4K":  "given twice",
		"file:a.log,size=4K":            "limit=SIZE",
		"file:a,b.log":                  "a comma in PATH twice",
		"file:,limit=4K":                "file",
		"unix:":                         "limit=SIZE",
		"stdio,limit=4K":                "limit=SIZE",
		"file:a.log,limit=-1":           "for example",
		"file:a.log,limit=4K,,limit=8K": "for example",
	} {
		_, err := ParseSpec(text)
		require.ErrorIs(t, err, ErrSpec, text)
		require.ErrorContains(t, err, why, text)
	}
}

// TestFileLimit: the file begins anew when it is full, and one older is kept. A
// link stays one.
func TestFileLimit(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real.log"), filepath.Join(dir, "link.log")
	require.NoError(t, os.WriteFile(real, []byte("old\n"), 0o600))
	require.NoError(t, os.Symlink(real, link))
	c, err := Open(Spec{Kind: "file", Path: link, Limit: minLimit})
	require.NoError(t, err)
	var all strings.Builder
	all.WriteString("old\n")
	for i := range 3000 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		n, err := c.Write([]byte(line))
		require.NoError(t, err)
		require.Len(t, line, n)
		for _, path := range []string{real, real + ".1"} {
			if st, err := os.Stat(path); err == nil {
				require.LessOrEqual(t, st.Size(), int64(minLimit))
			}
		}
	}
	big := strings.Repeat("x", 3*minLimit) + "\n"
	all.WriteString(big)
	n, err := c.Write([]byte(big))
	require.NoError(t, err)
	require.Len(t, big, n)
	require.NoError(t, c.Close())
	before, err := os.ReadFile(real + ".1")
	require.NoError(t, err)
	latest, err := os.ReadFile(real)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(all.String(), string(before)+string(latest)))
	require.Len(t, before, minLimit)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 3)
	st, err := os.Lstat(link)
	require.NoError(t, err)
	require.NotZero(t, st.Mode()&os.ModeSymlink)
	st, err = os.Stat(real)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, st.Mode().Perm())

	_, err = Open(Spec{Kind: "file", Path: os.DevNull, Limit: minLimit})
	require.ErrorContains(t, err, "not a regular file")
}

// TestFileWithoutRoom: output that a full file system does not take is lost, and
// that is said once, in the file when it goes on, and at the end.
func TestFileWithoutRoom(t *testing.T) {
	dir := t.TempDir()
	size := func(flags uintptr, n string) {
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", flags, "size="+n))
	}
	size(0, "8k")
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	path := filepath.Join(dir, "log")
	var said []string
	c, err := Open(Spec{Kind: "file", Path: path, Say: func(text string) { said = append(said, text) }})
	require.NoError(t, err)
	line := strings.Repeat("y", 1023) + "\n"
	lost := 0
	write := func(times int) {
		for range times {
			n, err := c.Write([]byte(line))
			if lost += len(line) - n; err != nil {
				require.ErrorIs(t, err, unix.ENOSPC)
			}
		}
	}
	write(20)
	require.NotZero(t, lost)
	require.Len(t, said, 1, "%q", said)
	require.Contains(t, said[0], "no space left on device")
	size(unix.MS_REMOUNT, "64k")
	write(1)
	require.Len(t, said, 2)
	require.Contains(t, said[1], fmt.Sprintf("%d bytes are lost", lost))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(text), fmt.Sprintf("[godwit: %d bytes of serial output lost]\r\n"+line, lost))
	require.NoError(t, func() error { lost = 0; write(100); return nil }())
	require.ErrorContains(t, c.Close(), fmt.Sprintf("the last %d bytes of serial output are not in", lost))
	require.Len(t, said, 3)
}
