package blockfile

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// loopDevice puts a block device with sectors of the given size over a fresh
// image, where the test may.
func loopDevice(t *testing.T, fill []byte, sector uint32) string {
	t.Helper()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("block devices need root and the loop driver: %v", err)
	}
	defer ctl.Close()
	back, err := os.OpenFile(image(t, fill), os.O_RDWR, 0)
	require.NoError(t, err)
	defer back.Close()
	// Somebody else may take the free device before we configure it.
	for range 10 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skipf("no free loop device: %v", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Skipf("loop device: %v", err)
		}
		cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Size: sector}
		cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		if err := unix.IoctlLoopConfigure(int(dev.Fd()), &cfg); err != nil {
			dev.Close()
			continue
		}
		// With autoclear the last close frees the device.
		t.Cleanup(func() { dev.Close() })
		return path
	}
	t.Skip("no loop device could be configured")
	return ""
}

// TestConformanceBlockDevice puts block devices through the suite: ordinary ones
// and such with 4 KiB sectors.
func TestConformanceBlockDevice(t *testing.T) {
	for _, sector := range []uint32{512, 4096} {
		for _, cache := range []Cache{CacheWriteback, CacheNone} {
			t.Run(fmt.Sprintf("%d %v", sector, cache), func(t *testing.T) {
				conformance(t, func(t *testing.T, fill []byte, o Options) File {
					path := loopDevice(t, fill, sector)
					o.Cache = cache
					f, err := Open(path, o)
					require.NoError(t, err)
					t.Cleanup(func() { require.NoError(t, f.Close()) })
					require.Equal(t, int(sector), f.BlockSize())
					return f
				})
			})
		}
	}
}
