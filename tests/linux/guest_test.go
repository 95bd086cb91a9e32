package linux

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/vmm"
)

// patience is how long a test waits for a guest to do something. Emulated
// machines are slow and shared ones slower; it is not a measurement.
const patience = 4 * time.Minute

// console collects what a guest writes and lets a test wait for it.
type console struct {
	mu   sync.Mutex
	text strings.Builder
	news chan struct{} // closed and replaced at each write
}

func newConsole() *console { return &console{news: make(chan struct{})} }

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	close(c.news)
	c.news = make(chan struct{})
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// until waits for a condition on the text.
func (c *console) until(t testing.TB, what string, ok func(text string) bool) string {
	t.Helper()
	late := time.After(patience)
	for {
		c.mu.Lock()
		text, news := c.text.String(), c.news
		c.mu.Unlock()
		if ok(text) {
			return text
		}
		select {
		case <-news:
		case <-late:
			t.Fatalf("%s: not on the console within %v:\n%s", what, patience, text)
		}
	}
}

func (c *console) waitFor(t testing.TB, what string) string {
	t.Helper()
	return c.until(t, what, func(text string) bool { return strings.Contains(text, what) })
}

// diskCopy gives the test a root disk of its own.
func diskCopy(t testing.TB) string {
	t.Helper()
	src, err := os.Open(rootfsPath)
	require.NoError(t, err)
	defer src.Close()
	path := filepath.Join(t.TempDir(), "root.ext4")
	dst, err := os.Create(path)
	require.NoError(t, err)
	_, err = io.Copy(dst, src)
	require.NoError(t, err)
	require.NoError(t, dst.Close())
	return path
}

// requireClean has e2fsck judge a disk that no guest uses any more.
func requireClean(t testing.TB, disk string) {
	t.Helper()
	out, err := exec.Command("/sbin/e2fsck", "-fn", disk).CombinedOutput()
	require.NoError(t, err, "e2fsck: %s", out)
}

func linuxConfig(disk string, cpus int, args string) vmm.Config {
	return vmm.Config{
		ID:         "linux",
		BootSource: vmm.BootSource{KernelImagePath: bzImagePath, AppendArgs: args},
		Drives:     []vmm.Drive{{ID: "root", PathOnHost: disk, IsRootDevice: true}},
		Machine:    vmm.MachineConfig{VCPUCount: cpus, MemSizeMiB: 256},
	}
}

// boot starts a guest and waits until its init is up.
func boot(t testing.TB, cfg vmm.Config) (*vmm.Machine, *console) {
	t.Helper()
	out := newConsole()
	m, err := vmm.New(cfg, vmm.Options{Serial: out})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	examineOnFailure(t, "machine that the test booted", machineInfo(m, out))
	require.NoError(t, m.Start())
	waitUp(t, m, out)
	return m, out
}

func waitUp(t testing.TB, m *vmm.Machine, out *console) {
	t.Helper()
	out.until(t, "init", func(text string) bool {
		select {
		case <-m.Ended():
			t.Fatalf("the guest ended: %v\n%s", m.Exit(), text)
		default:
		}
		return strings.Contains(text, "godwit init: reached")
	})
}

// typeLine types a line on the console.
func typeLine(t testing.TB, m *vmm.Machine, line string) {
	t.Helper()
	_, err := m.Input(context.Background(), []byte(line+"\n"))
	require.NoError(t, err)
}

// waitEnd waits until the guest ends and says how.
func waitEnd(t testing.TB, m *vmm.Machine, out *console) vmm.Exit {
	t.Helper()
	select {
	case <-m.Ended():
	case <-time.After(patience):
		t.Fatalf("the guest did not end within %v:\n%s", patience, out)
	}
	return m.Exit()
}
