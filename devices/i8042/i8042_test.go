package i8042

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/bus"
	"godwit/devices/bus/bustest"
	"godwit/devices/state"
	"godwit/devices/state/statetest"
)

type machine struct {
	b             bus.Bus
	c             *Controller
	resets, edges int
}

func newMachine(t testing.TB) *machine {
	m := &machine{}
	m.c = New(bus.InterruptFunc(func() error { m.edges++; return nil }), func() { m.resets++ })
	require.NoError(t, m.c.Attach(&m.b))
	return m
}

func (m *machine) in(port uint64) uint8 {
	var p [1]byte
	m.b.Read(port, p[:])
	return p[0]
}

func (m *machine) out(port uint64, v uint8) { m.b.Write(port, []byte{v}) }

// Every command with what it needs and what it answers at once.
func TestCommands(t *testing.T) {
	const none = 0x100
	for _, tc := range []struct {
		name   string
		cmd    uint8
		param  int
		reply  int
		resets int
	}{
		{"self test", 0xaa, none, 0x55, 0},
		{"keyboard port is sound", 0xab, none, 0x00, 0},
		{"mouse port is not", 0xa9, none, 0x01, 0},
		{"control byte", 0x20, none, controlAtReset, 0},
		{"input port", 0xc0, none, 0x80, 0},
		{"output port", 0xd0, none, 0xcf, 0},
		{"keyboard loop", 0xd2, 0x42, 0x42, 0},
		{"mouse loop", 0xd3, 0x5a, 0x5a, 0},
		{"byte to the mouse", 0xd4, 0xf2, 0xfe, 0},
		{"A20 off", 0xd1, 0xdd, none, 0},
		{"reset by output port", 0xd1, 0xfe, none, 1},
		{"reset", 0xfe, none, none, 1},
		{"reset with other lines", 0xf0, none, none, 1},
		{"pulse of nothing", 0xff, none, none, 0},
		{"unknown", 0x77, none, none, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			require.Zero(t, m.in(CommandPort)&0x43, "nothing to read, nothing pending, no timeout")
			m.out(CommandPort, tc.cmd)
			if tc.param != none {
				m.out(DataPort, uint8(tc.param))
			}
			require.Zero(t, m.in(CommandPort)&2, "a command never leaves the controller busy")
			if tc.reply == none {
				require.Zero(t, m.in(CommandPort)&statusOutputFull)
			} else {
				require.NotZero(t, m.in(CommandPort)&statusOutputFull)
				require.Equal(t, uint8(tc.reply), m.in(DataPort))
				require.Zero(t, m.in(CommandPort)&statusOutputFull, "reading takes the byte")
			}
			require.Equal(t, tc.resets, m.resets)
		})
	}
}

// What drivers/input/serio/i8042.c does: flush, read the control byte twice,
// write it with the ports off, look for a mouse port, ask the keyboard.
func TestLinuxProbe(t *testing.T) {
	m := newMachine(t)
	require.Zero(t, m.in(CommandPort)&statusOutputFull, "i8042_flush ends at once")
	for range 2 {
		m.out(CommandPort, 0x20)
		require.Equal(t, uint8(controlAtReset), m.in(DataPort))
	}
	m.out(CommandPort, 0x60)
	m.out(DataPort, controlAtReset|controlNoKbd)
	m.out(CommandPort, 0x20)
	require.Equal(t, uint8(controlAtReset|controlNoKbd), m.in(DataPort))

	m.out(CommandPort, 0xd3)
	m.out(DataPort, 0x5a)
	require.Zero(t, m.in(CommandPort)&0x20, "i8042_check_aux: not marked as from a mouse")
	m.out(CommandPort, 0xa9)
	require.Equal(t, uint8(1), m.in(DataPort), "i8042_check_aux fails at once")
	m.out(CommandPort, 0xa8)
	m.out(CommandPort, 0x20)
	require.NotZero(t, m.in(DataPort)&controlNoAux, "the mouse port cannot be enabled")

	require.Zero(t, m.edges)
	m.out(CommandPort, 0x60)
	m.out(DataPort, controlInterrupt)
	m.out(DataPort, 0xf2)
	require.Equal(t, 1, m.edges, "the keyboard's answer comes with an interrupt")
	require.Equal(t, uint8(statusTimeout|statusOutputFull), m.in(CommandPort)&(statusTimeout|statusOutputFull))
	m.c.Rearm()
	require.Equal(t, 2, m.edges)
	require.Equal(t, uint8(0xfe), m.in(DataPort))
	m.c.Rearm()
	require.Equal(t, 2, m.edges, "nothing waits any more")

	m.out(CommandPort, 0xad)
	m.out(CommandPort, 0x20)
	require.NotZero(t, m.in(DataPort)&controlNoKbd)
	m.out(CommandPort, 0xae)
	m.out(CommandPort, 0x20)
	require.Zero(t, m.in(DataPort)&controlNoKbd)
}

func TestState(t *testing.T) {
	m := newMachine(t)
	m.out(CommandPort, 0x60)
	m.out(DataPort, 0x45)
	m.out(DataPort, 0xf4)
	m.out(CommandPort, 0xd1)
	statetest.Golden(t, m.c, func() state.Saver { return newMachine(t).c })
}

func TestRestoreRejects(t *testing.T) {
	for name, data := range map[string][]byte{
		"pending command without a byte": {0x24, 0xcf, 0x14, 0, 0xaa},
		"status bits":                    {0x24, 0xcf, 0x16, 0, 0},
		"held in reset":                  {0x24, 0xce, 0x14, 0, 0},
		"mouse port":                     {0x04, 0xcf, 0x14, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, newMachine(t).c.Restore(1, state.NewDecoder(data)), state.ErrFormat)
		})
	}
}

func FuzzAccesses(f *testing.F) {
	var seed []byte
	for _, cmd := range []uint8{0x20, 0x60, 0xd1, 0xd2, 0xd3, 0xd4, 0xaa, 0xfe} {
		seed = append(seed, bustest.Step(true, CommandPort, 1, cmd)...)
		seed = append(seed, bustest.Step(true, DataPort, 1, 0x41)...)
		seed = append(seed, bustest.Step(false, DataPort, 8, 0)...)
	}
	f.Add(seed, statetest.Data(f, newMachine(f).c))
	f.Fuzz(func(t *testing.T, program, saved []byte) {
		m := newMachine(t)
		_ = m.c.Restore(1, state.NewDecoder(saved))
		bustest.Play(&m.b, DataPort, CommandPort-DataPort+1, program, nil)
		require.NoError(t, statetest.Restore(newMachine(t).c, statetest.Stream(t, m.c)))
	})
}
