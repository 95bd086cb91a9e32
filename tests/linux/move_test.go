package linux

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/vmm"
)

// move migrates m over loopback TCP to a machine that the same process builds,
// whose console goes on in out.
func move(t testing.TB, m *vmm.Machine, out *console, in vmm.Incoming, o migration.SendOptions) *vmm.Machine {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	in.Serial = out
	var arrived *vmm.Machine
	done := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(l),
			vmm.BuildTarget(in, func(m *vmm.Machine) { arrived = m }), migration.ReceiveOptions{Silence: patience, Lease: patience})
		done <- err
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
	o.Silence = patience
	rep, err := migration.Send(context.Background(), m.Source(), dial, o)
	require.NoError(t, err)
	require.NoError(t, <-done)
	t.Cleanup(func() { require.NoError(t, arrived.Close()) })
	m.MigratedTo()
	require.NoError(t, m.Close())
	text, err := json.Marshal(rep)
	require.NoError(t, err)
	t.Logf("%s", text)
	return arrived
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
// nothing of that notices.
func TestMoveUnderLoad(t *testing.T) {
	for _, cpus := range []int{1, 4} {
		t.Run(strconv.Itoa(cpus), func(t *testing.T) {
			disk := diskCopy(t)
			m, out := boot(t, linuxConfig(disk, cpus, "godwit.run=witness,pace=20,mem=16,touch=64"))
			in := vmm.Incoming{Disks: map[string]string{"root": disk}}
			waitCount(t, out, 10)
			for range 3 {
				have := counts(t, out.String())
				m = move(t, m, out, in, migration.SendOptions{Verify: true, Streams: 2})
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
			require.Equal(t, done[1], strconv.Itoa(counts(t, text)))
			requireClean(t, disk)
		})
	}
}
