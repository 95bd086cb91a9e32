package vmm

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
	"godwit/migration"
)

// move migrates m to a new machine in this process, over loopback TCP. Silence is
// not what is tried: while KVM makes or destroys a machine, which on a busy host
// can take seconds, it can hold up both ends.
func move(t testing.TB, m *Machine, o migration.SendOptions, out *console) (*Machine, *migration.Report) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var arrived *Machine
	done := make(chan error, 1)
	go func() {
		build := BuildTarget(Incoming{Options: Options{Serial: out}}, func(m *Machine) { arrived = m })
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(l), build, migration.ReceiveOptions{Silence: time.Minute})
		done <- err
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
	o.Silence = time.Minute
	rep, err := migration.Send(context.Background(), m.Source(), dial, o)
	require.NoError(t, err)
	require.NoError(t, <-done)
	t.Cleanup(func() { require.NoError(t, arrived.Close()) })
	m.MigratedTo()
	require.Equal(t, ExitMigrated, m.Exit().Kind)
	return arrived, rep
}

// lastBeat waits for n more beats and gives the newest whole one.
func lastBeat(t testing.TB, out *console, n int) metronome.Beat {
	t.Helper()
	have := strings.Count(out.waitFor(t, "", 0), "metronome beat")
	text := out.waitFor(t, "metronome beat", have+n)
	lines := strings.Split(text, "\r\n")
	for i := len(lines) - 2; i >= 0; i-- {
		if metronome.Kind(lines[i]) == metronome.LineBeat {
			b, err := metronome.ParseBeat(lines[i])
			require.NoError(t, err)
			return b
		}
	}
	t.Fatalf("no whole beat in %q", text)
	return metronome.Beat{}
}

func TestMetronomeMoves(t *testing.T) {
	for _, cpus := range []int{1, 2} {
		cfg := metronomeConfig("fill=64 ws=32 rate=5000 beat=50")
		cfg.Machine.VCPUCount = cpus
		m, out := start(t, cfg)
		before := lastBeat(t, out, 2)
		for range 3 {
			next, rep := move(t, m, migration.SendOptions{Verify: true, Streams: cpus}, out)
			js, _ := json.Marshal(rep)
			t.Logf("%s", js)
			require.Equal(t, rep.Verify.Source, rep.Verify.Destination)
			after := lastBeat(t, out, 3)
			require.Greater(t, after.Writes, before.Writes)
			require.Zero(t, after.Bad)
			t.Logf("%+v", after)
			m, before = next, after
		}
	}
}
