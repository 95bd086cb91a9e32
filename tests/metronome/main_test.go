package metronome_test

import (
	"context"
	"os"
	"testing"
	"time"

	"godwit/vmm"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(serveChild())
	}
	os.Exit(m.Run())
}

// patience bounds every wait for a condition. It is far above what any of them
// takes and only keeps a broken build from hanging.
const patience = 2 * time.Minute

// soak says that the long forms are wanted.
func soak() bool { return os.Getenv("GODWIT_SOAK") != "" }

// shortOr gives the size of a test in its short and its long form.
func shortOr(short, long int) int {
	if soak() {
		return long
	}
	return short
}

// deadline is a context that ends with the test, or when patience has run out.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// guest is a machine with metronome.
func guest(cpus, memMiB int, args string) vmm.Config {
	return vmm.Config{
		ID:         "metronome",
		BootSource: vmm.BootSource{Guest: vmm.GuestMetronome, AppendArgs: args},
		Machine:    vmm.MachineConfig{VCPUCount: cpus, MemSizeMiB: memMiB},
	}
}
