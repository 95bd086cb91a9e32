package vmm

import (
	"time"

	"godwit/devices/state"
)

// maxDowntime bounds what a restored guest's clocks are moved ahead by: a
// machine saved to a file last year goes on from its own time.
const maxDowntime = time.Hour

// machineSaver is the first section of a saved machine.
type machineSaver struct{ m *Machine }

var _ state.Saver = (*machineSaver)(nil)

// StateID implements state.Saver.
func (*machineSaver) StateID() string { return "machine" }

// StateVersion implements state.Saver.
func (*machineSaver) StateVersion() uint32 { return 1 }

// Save implements state.Saver.
func (p *machineSaver) Save(e *state.Encoder) error {
	e.Bool(p.m.operatorPaused)
	e.U64(uint64(time.Now().UnixNano()))
	e.U32(p.m.tscKHz)
	return nil
}

// Restore implements state.Saver.
func (p *machineSaver) Restore(_ uint32, d *state.Decoder) error {
	paused, realtime, khz := d.Bool(), d.U64(), d.U32()
	if err := d.Err(); err != nil {
		return err
	}
	p.m.operatorPaused = paused
	p.m.ticksAway = ticksAway(realtime, khz, time.Now())
	return nil
}

// timeAway is how long the guest did not run between the two hosts: now less
// the source's wall time in nanoseconds. Hosts whose clocks disagree, and files
// from long ago, give nonsense; it counts as no time at all.
func timeAway(saved uint64, now time.Time) time.Duration {
	if saved == 0 || saved > uint64(1)<<62 {
		return 0
	}
	away := now.Sub(time.Unix(0, int64(saved)))
	if away < 0 || away > maxDowntime {
		return 0
	}
	return away
}

// ticksAway is how far the guest's TSC, of khz, must move ahead for that time,
// so that it agrees with the kvmclock and a guest that times itself sees the
// gap.
func ticksAway(saved uint64, khz uint32, now time.Time) uint64 {
	return uint64(timeAway(saved, now).Microseconds()) * uint64(khz) / 1000
}
