package blockfile_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/blockfile/tool"
)

// An image that another process only locked, as a destination that gives up does,
// has the history that it had; a mark shows in it and changes nothing else.
func TestHistory(t *testing.T) {
	for _, format := range []blockfile.Format{blockfile.FormatRaw, blockfile.FormatQcow2} {
		t.Run(format.String(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d")
			require.NoError(t, tool.Create(tool.NewImage{Path: path, Size: 1 << 20, Format: format.String()}))
			a, err := blockfile.Open(path, blockfile.Options{Format: format})
			require.NoError(t, err)
			defer a.Close()
			_, err = a.Pwritev([][]byte{make([]byte, 4096)}, 0)
			require.NoError(t, err)
			require.NoError(t, a.Flush())
			require.NoError(t, a.Unlock())
			was, err := a.(blockfile.Historian).History()
			require.NoError(t, err)
			require.True(t, was.Known())

			b, err := blockfile.Open(path, blockfile.Options{Format: format, NoLock: true})
			require.NoError(t, err)
			require.NoError(t, b.Lock())
			require.NoError(t, b.(blockfile.Historian).SetMark("b"))
			require.Error(t, b.(blockfile.Historian).SetMark(strings.Repeat("x", 1000)))
			require.NoError(t, b.Close())
			require.NoError(t, a.Lock())
			now, err := a.(blockfile.Historian).History()
			require.NoError(t, err)
			require.Equal(t, blockfile.History{Mark: "b", Modified: was.Modified}, now)
		})
	}
}
