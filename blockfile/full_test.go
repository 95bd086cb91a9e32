package blockfile

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestFull(t *testing.T) {
	for err, want := range map[error]bool{
		unix.ENOSPC:                      true,
		fmt.Errorf("x: %w", unix.EDQUOT): true,
		unix.EIO:                         false,
		nil:                              false,
		errors.New("full"):               false,
		fmt.Errorf("flush: %w; %w", unix.ENOSPC, ErrUnstable): false,
	} {
		require.Equal(t, want, Full(err), "%v", err)
	}
}
