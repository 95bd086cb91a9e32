package vmm

import (
	"context"
	"encoding/json"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/wire"
)

func TestGrant(t *testing.T) {
	free, err := freeMemoryMiB()
	require.NoError(t, err)
	require.Positive(t, free)
	for name, c := range map[string]struct {
		in         Incoming
		mib, cpus  int
		handedOver bool
		says       string
	}{
		"small":                 {Incoming{}, 16, 1, false, ""},
		"more than is free":     {Incoming{}, 1 << 30, 1, false, "--max-memory 1073741824M"},
		"granted all the same":  {Incoming{MaxMemoryMiB: 1 << 30}, 1 << 30, 1, false, ""},
		"handed over":           {Incoming{}, 1 << 30, 1, true, ""},
		"more than the grant":   {Incoming{MaxMemoryMiB: 64}, 65, 1, false, "at most 64; start it with --max-memory 65M"},
		"more, and handed over": {Incoming{MaxMemoryMiB: 64}, 65, 1, true, "at most 64"},
		"too many vCPUs":        {Incoming{MaxVCPUs: 2}, 16, 3, false, "at most 2; start it with --max-cpus 3"},
		"as many vCPUs":         {Incoming{MaxVCPUs: 2}, 16, 2, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.in.grant(Config{Machine: MachineConfig{MemSizeMiB: c.mib, VCPUCount: c.cpus}}, c.handedOver)
			if c.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrIncompatible)
			require.ErrorContains(t, err, c.says)
		})
	}
	for text, says := range map[string]string{"": "no MemAvailable", "MemAvailable: x kB\n": "invalid syntax", "SwapFree: 1 kB\n": "no MemAvailable"} {
		_, err := parseFreeMiB([]byte(text))
		require.ErrorContains(t, err, says)
	}
	n, err := parseFreeMiB([]byte("MemTotal: 9 kB\nMemAvailable:    2048 kB\nSwapFree: 1024 kB\n"))
	require.NoError(t, err)
	require.Equal(t, 3, n)
}

// A source that announces all of memory as touched, and sends it as zeros, costs
// the destination none.
func TestAnnouncedMemoryCostsNothing(t *testing.T) {
	const mib = 256
	m, err := New(Config{ID: "vm", Machine: MachineConfig{MemSizeMiB: mib}, BootSource: BootSource{Guest: GuestMetronome}}, Options{})
	require.NoError(t, err)
	defer m.Close()
	config, err := json.Marshal(wireConfig{Config: m.cfg, CPUID: m.cpuid, TSCKHz: m.tscKHz})
	require.NoError(t, err)
	l, err := net.Listen("unix", t.TempDir()+"/s")
	require.NoError(t, err)
	defer l.Close()
	var arrived *Machine
	end := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(l), BuildTarget(Incoming{}, func(m *Machine) { arrived = m }), migration.ReceiveOptions{Silence: time.Minute})
		end <- err
	}()
	var conns []net.Conn
	open := func(h wire.Hello) (*wire.Writer, *wire.Reader, wire.Hello) {
		conn, err := net.Dial("unix", l.Addr().String())
		require.NoError(t, err)
		conns = append(conns, conn)
		w, r := wire.NewWriter(conn), wire.NewReader(conn)
		require.NoError(t, w.Open(wire.TypeHello, h.Append(nil)))
		require.NoError(t, r.Preamble())
		f, err := r.Next()
		require.NoError(t, err)
		var answer wire.Hello
		require.NoError(t, answer.Decode(f.Body))
		return w, r, answer
	}
	h := wire.Hello{MinVersion: 1, MaxVersion: 1, Role: wire.RoleControl, PageSize: wire.PageSize, Streams: 1}
	ctl, in, answer := open(h)
	require.NoError(t, ctl.Frame(wire.TypeConfig, wire.FlagLast, config))
	all := wire.AppendExtents(nil, []wire.Extent{{Len: mib << 20}})
	require.NoError(t, ctl.Frame(wire.TypeLayout, 0, all))
	f, err := in.Next()
	require.NoError(t, err)
	require.Equal(t, wire.TypeBuilt, f.Type)
	h.Role, h.Nonce = wire.RoleData, answer.Nonce
	data, _, _ := open(h)
	before := residentMiB(t, arrived)
	// Zeros in two parts with a page left out of each huge page: no piece is whole.
	require.NoError(t, ctl.Frame(wire.TypeExtents, wire.FlagLast, all))
	var runs []byte
	for gpa := uint64(0); gpa < mib<<20; gpa += 2 << 20 {
		runs = wire.AppendRun(runs, wire.Run{GPA: gpa, Pages: 511})
	}
	require.NoError(t, data.Frame(wire.TypeZero, 0, runs))
	for until := time.Now().Add(time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		require.LessOrEqual(t, residentMiB(t, arrived)-before, 32, "what was announced or zero takes the lead at most")
	}
	for _, conn := range conns {
		require.NoError(t, conn.Close())
	}
	require.ErrorIs(t, <-end, migration.ErrConnection)
}

// residentMiB is how much of a machine's memory is there.
func residentMiB(t *testing.T, m *Machine) int {
	es, err := m.mem.touched()
	require.NoError(t, err)
	n := uint64(0)
	for _, e := range es {
		n += e.Len
	}
	return int(n >> 20)
}
