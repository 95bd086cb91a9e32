package linux

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/migration"
	"godwit/vmm"
)

// move migrates m to a machine that the same process builds, whose console goes
// on in out: over loopback TCP, or over a unix socket for a local hand-over.
func move(t testing.TB, m *vmm.Machine, out *console, in vmm.Incoming, o migration.SendOptions) *vmm.Machine {
	t.Helper()
	m, _ = moveReported(t, m, out, in, o)
	return m
}

// moveReported is move, and what the source says of it.
func moveReported(t testing.TB, m *vmm.Machine, out *console, in vmm.Incoming, o migration.SendOptions) (*vmm.Machine, *migration.Report) {
	t.Helper()
	network, addr := "tcp", "127.0.0.1:0"
	if o.Local {
		network, addr = "unix", filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, addr)
	require.NoError(t, err)
	defer l.Close()
	in.Serial = out
	var arrived *vmm.Machine
	done := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(l),
			vmm.BuildTarget(in, func(m *vmm.Machine) { arrived = m }), migration.ReceiveOptions{Silence: patience, Lease: time.Minute})
		done <- err
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, l.Addr().String())
	}
	o.Silence = patience
	rep, err := migration.Send(context.Background(), m.Source(), dial, o)
	require.NoError(t, err)
	require.NoError(t, <-done)
	t.Cleanup(func() { require.NoError(t, arrived.Close()) })
	examineOnFailure(t, "machine that arrived", machineInfo(arrived, out))
	m.MigratedTo()
	require.NoError(t, m.Close())
	text, err := json.Marshal(rep)
	require.NoError(t, err)
	t.Logf("%s", text)
	return arrived, rep
}

var countLine = regexp.MustCompile(`count (\d+) t=(\d+)\D`)

// counts gives the numbers that witness has counted so far; it checks that they
// have neither gap nor repeat and that their times never go back.
func counts(t testing.TB, text string) int {
	t.Helper()
	lastTime := -1
	found := countLine.FindAllStringSubmatch(text, -1)
	for i, f := range found {
		n, _ := strconv.Atoi(f[1])
		at, _ := strconv.Atoi(f[2])
		require.Equal(t, i+1, n, "the count has a gap or a repeat")
		require.GreaterOrEqual(t, at, lastTime, "time went back at count %d", n)
		lastTime = at
	}
	return len(found)
}

func waitCount(t testing.TB, out *console, n int) {
	t.Helper()
	out.until(t, fmt.Sprintf("count %d", n), func(text string) bool {
		return len(countLine.FindAllString(text, -1)) >= n
	})
}

// TestMoveUnderLoad: while a workload counts on the console, writes and syncs a
// file, churns memory and keeps known values in vector registers, Linux moves;
// nothing of that notices. Nor when its memory is handed over as it is, clock
// pages and rings of the disk included.
func TestMoveUnderLoad(t *testing.T) {
	for name, c := range map[string]struct {
		cpus int
		o    migration.SendOptions
	}{
		"1":       {1, migration.SendOptions{Verify: true, Streams: 2}},
		"4":       {4, migration.SendOptions{Verify: true, Streams: 2}},
		"2 local": {2, migration.SendOptions{Verify: true, Local: true}},
	} {
		t.Run(name, func(t *testing.T) {
			disk := diskCopy(t)
			cfg := linuxConfig(disk, c.cpus, "godwit.run=witness,pace=20,mem=16,touch=64")
			if c.o.Local {
				cfg.Machine.MemoryBacking = guestmem.Memfd.String()
			}
			m, out := boot(t, cfg)
			in := vmm.Incoming{Disks: map[string]string{"root": disk}}
			waitCount(t, out, 10)
			for range 3 {
				have := counts(t, out.String())
				m = move(t, m, out, in, c.o)
				waitCount(t, out, have+20)
			}
			typeLine(t, m, "poweroff")
			require.Equal(t, vmm.ExitPowerOff, waitEnd(t, m, out).Kind, out)
			require.NoError(t, m.Close()) // and with it all that the guest wrote is out
			text := out.String()
			require.NotContains(t, text, "witness ERROR")
			require.Contains(t, text, "vectors=256")
			done := regexp.MustCompile(`witness done count=(\d+) errors=(\d+) file_lines=(\d+)`).FindStringSubmatch(text)
			require.NotNil(t, done, text)
			require.Equal(t, "0", done[2])
			require.Equal(t, done[1], done[3], "every counted line is in the file")
			require.Equal(t, done[1], strconv.Itoa(counts(t, text)), text)
			requireClean(t, disk)
		})
	}
}
