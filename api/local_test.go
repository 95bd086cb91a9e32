package api

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/sim"
	"godwit/vmm"
)

// What a hand-over of the memory cannot do is refused before it begins, by name.
func TestLocalMigrationRefuses(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	for says, q := range map[string]MigrationRequest{
		"over a unix socket only": {To: "tcp:h:1", Local: true},
		"as in unix:in.sock":      {To: "file:/nowhere/x", Local: true},
		"nothing is left here":    {To: r.to, Local: true, Keep: true},
		"2 streams":               {To: r.to, Local: true, Streams: 2},
		"bandwidth limit":         {To: r.to, Local: true, Bandwidth: 1 << 30},
		"page codec":              {To: r.to, Local: true, Codec: "lz4"},
		"stop-and-copy":           {To: r.to, Local: true, Mode: "stop-and-copy"},
		"no other process":        {To: r.to, Local: true}, // the fake's memory is its own
	} {
		_, err := r.c.Migrate(context.Background(), q, nil)
		refused(t, err, 400, says)
	}
	require.Equal(t, vmm.StateRunning, r.vm.State())
	require.Empty(t, r.vm.sim.Calls())
}

// A guest whose memory was handed over never runs here again, whatever its user
// insists on.
func TestLocalMigrationIsForGood(t *testing.T) {
	r := newRig(t)
	world := sim.NewWorld()
	m, err := sim.NewLocalMachine(world, migration.Extent{GPA: 0, Len: 1 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	r.vm.from, r.host = m, sim.NewHost(world)
	r.inst.Set("local", r.vm)
	r.receive()
	st, err := r.c.Migrate(context.Background(), MigrationRequest{To: r.to, Local: true, Verify: true}, nil)
	require.NoError(t, err)
	require.Equal(t, migration.Completed, st.Report.Status, st.Report.Error)
	require.True(t, st.Report.Local)
	require.NoError(t, <-r.received)
	require.True(t, r.vm.hasMoved())
	for _, force := range []bool{false, true} {
		r.vm.set(vmm.StatePaused) // as if it had not ended
		refused(t, r.c.Resume(context.Background(), force), 409, "runs elsewhere")
	}
	require.Equal(t, []string{"target"}, world.Running())
	require.NoError(t, world.Check())
}
