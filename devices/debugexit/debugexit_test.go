package debugexit

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/bus"
	"godwit/devices/bus/bustest"
	"godwit/devices/state"
	"godwit/devices/state/statetest"
)

func TestCodes(t *testing.T) {
	var got []uint8
	d := New(func(code uint8) { got = append(got, code) })
	var b bus.Bus
	require.NoError(t, d.Attach(&b))
	for _, v := range []uint8{0, 1, 255} {
		b.Write(Port, []byte{v})
	}
	b.Write(Port, []byte{7, 0}) // wider than the port
	require.Equal(t, []uint8{0, 1, 255}, got)
	p := []byte{9}
	b.Read(Port, p)
	require.Equal(t, []byte{0}, p)
}

func TestState(t *testing.T) {
	statetest.Golden(t, New(func(uint8) {}), func() state.Saver { return New(func(uint8) {}) })
}

func FuzzAccesses(f *testing.F) {
	f.Add(append(bustest.Step(true, Port, 1, 3), bustest.Step(false, Port, 8, 0)...), []byte{})
	f.Fuzz(func(t *testing.T, program, saved []byte) {
		d := New(func(uint8) {})
		dec := state.NewDecoder(saved)
		_ = d.Restore(1, dec)
		require.Equal(t, len(saved) > 0, dec.Finish() != nil, "the state is empty")
		var b bus.Bus
		require.NoError(t, d.Attach(&b))
		bustest.Play(&b, Port-8, 16, program, nil)
	})
}
