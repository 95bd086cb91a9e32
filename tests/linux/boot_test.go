package linux

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/vmm"
)

// TestBootShellPowerOff: Linux reaches our init with no initrd, root on
// virtio-blk; the shell answers; poweroff ends the machine with a clean disk.
func TestBootShellPowerOff(t *testing.T) {
	for _, kernel := range []string{bzImagePath, vmlinuxPath} {
		for _, cpus := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/%d", kernel, cpus), func(t *testing.T) {
				disk := diskCopy(t)
				cfg := linuxConfig(disk, cpus, "")
				cfg.BootSource.KernelImagePath = kernel
				m, out := boot(t, cfg)
				typeLine(t, m, "echo sum=$((6*7)) cpus=$(nproc)")
				out.waitFor(t, fmt.Sprintf("sum=42 cpus=%d", cpus))
				typeLine(t, m, "echo kept > /data/word; poweroff")
				require.Equal(t, vmm.ExitPowerOff, waitEnd(t, m, out).Kind, out)
				require.NoError(t, m.Close())
				requireClean(t, disk)
			})
		}
	}
}
