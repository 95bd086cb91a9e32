package api

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestClientSaysWhatIsMissing(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "s"))
	_, err := c.Describe(context.Background())
	require.ErrorContains(t, err, "--api-sock")
	require.ErrorIs(t, err, os.ErrNotExist)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.Error(t, c.WaitReady(ctx))
}
