package vmm

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// console collects what a guest writes and lets a test wait for it.
type console struct {
	mu   sync.Mutex
	cond *sync.Cond
	text strings.Builder
}

func newConsole() *console {
	c := &console{}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	c.cond.Broadcast()
	return len(p), nil
}

// waitFor returns the console's text once it holds n times what.
func (c *console) waitFor(t testing.TB, what string, n int) string {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cond.Broadcast()
	})
	defer late.Stop()
	deadline := time.Now().Add(time.Minute)
	c.mu.Lock()
	defer c.mu.Unlock()
	for strings.Count(c.text.String(), what) < n {
		if time.Now().After(deadline) {
			t.Fatalf("no %q on the console after a minute:\n%s", what, c.text.String())
		}
		c.cond.Wait()
	}
	return c.text.String()
}

func metronomeConfig(args string) Config {
	return Config{
		ID:         "test",
		BootSource: BootSource{Guest: GuestMetronome, AppendArgs: args},
		Machine:    MachineConfig{MemSizeMiB: 128, VCPUCount: 1},
	}
}

func start(t testing.TB, cfg Config) (*Machine, *console) {
	t.Helper()
	out := newConsole()
	m, err := New(cfg, Options{Serial: out})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	require.NoError(t, m.Start())
	return m, out
}

func TestMetronomeRuns(t *testing.T) {
	for _, cpus := range []int{1, 2, 4} {
		cfg := metronomeConfig("fill=16 ws=8 rate=1000 beat=50")
		cfg.Machine.VCPUCount = cpus
		m, out := start(t, cfg)
		text := out.waitFor(t, "beat", 3)
		require.Contains(t, text, "metronome up")
		t.Log(text)
		info, err := m.Info()
		require.NoError(t, err)
		t.Logf("%+v", info)
		require.NoError(t, m.Pause(context.Background()))
		require.Equal(t, StatePaused, m.State())
		require.NoError(t, m.Resume())
		n := strings.Count(out.waitFor(t, "beat", 1), "beat")
		out.waitFor(t, "beat", n+2)
	}
}
