package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/vmm"
)

// Each JSON block of a page is a machine's configuration as --config reads it.
func TestConfigurationsInTheDocs(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "docs", "*.md"))
	require.NoError(t, err)
	found := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		_, rest, more := strings.Cut(string(text), "```json\n")
		for ; more; _, rest, more = strings.Cut(rest, "```json\n") {
			block, after, closed := strings.Cut(rest, "```")
			require.True(t, closed, page)
			_, err := vmm.ParseConfig([]byte(block))
			require.NoError(t, err, "%s: %s", page, block)
			rest = after
			found++
		}
	}
	require.Positive(t, found)
}
