package serial

import (
	"io"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/devices/bus"
	"godwit/devices/bus/bustest"
	"godwit/devices/state"
	"godwit/devices/state/statetest"
)

// typedInto is a port in the middle of everything: FIFO and queue filled, an
// overrun, unread modem changes, a THR interrupt not acknowledged.
func typedInto(t testing.TB) *port {
	p := newPort(t, io.Discard)
	p.out8(regLCR, lcrDLAB)
	p.Write(regData, []byte{0x0c, 0x01})
	p.out8(regLCR, 0x1b)
	p.out8(regSCR, 0x5a)
	p.out8(regFCR, fcrEnable|0x80)
	p.out8(regMCR, mcrLoop)
	for c := range uint8(20) {
		p.out8(regData, 'a'+c)
	}
	p.out8(regMCR, mcrDTR|mcrRTS|mcrOUT2)
	p.in(regData)
	p.out8(regIER, ierTHRE|ierModem)
	p.input(t, "waiting in the queue")
	return p
}

func TestState(t *testing.T) {
	p := typedInto(t)
	statetest.Golden(t, p, func() state.Saver { return newPort(t, io.Discard) })

	moved := newPort(t, io.Discard)
	moved.input(t, "!") // typed at the destination already
	require.NoError(t, statetest.Restore(moved, statetest.Stream(t, p)))
	require.Zero(t, moved.newEdges(), "Restore sends nothing")
	moved.Rearm()
	require.Equal(t, int64(1), moved.newEdges())
	require.Equal(t, uint8(iirFIFO|iirTHRE), moved.in(regIIR))
	var got []byte
	for moved.in(regLSR)&lsrDataReady != 0 {
		got = append(got, moved.in(regData))
	}
	require.Equal(t, "bcdefghijklmnopwaiting in the queue!", string(got))
}

func TestSaveDemandsDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		p := newPort(t, w)
		p.out8(regData, 'x')
		var e state.Encoder
		require.ErrorContains(t, p.Save(&e), "drain it first")
		close(w.open)
		require.NoError(t, p.Drain(t.Context()))
		require.NoError(t, p.Save(&e))
	})
}

func TestRestoreRejects(t *testing.T) {
	good := append([]byte(nil), statetest.Data(t, newPort(t, io.Discard))...)
	for _, tc := range []struct {
		name string
		at   int
		v    byte
	}{
		{"IER", 0, 0x10},
		{"FCR bits", 1, 0x02},
		{"FCR trigger without FIFO", 1, 0x80},
		{"MCR", 3, 0x20},
		{"LSR", 7, 0x01},
		{"MSR", 8, 0x10},
		{"THR flag", 9, 2},
		{"FIFO length", 10, 17},
		{"queue length", 15, 0x20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := append([]byte(nil), good...)
			data[tc.at] = tc.v
			require.ErrorIs(t, newPort(t, io.Discard).Restore(1, state.NewDecoder(data)), state.ErrFormat)
		})
	}
	// Two bytes where only RBR is there to hold them.
	data := append([]byte(nil), good[:10]...)
	data = append(data, 2, 0, 0, 0, 'a', 'b', 0, 0, 0, 0)
	require.ErrorIs(t, newPort(t, io.Discard).Restore(1, state.NewDecoder(data)), state.ErrFormat)
}

func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRing(rapid.IntRange(1, 20).Draw(t, "capacity"))
		var want []byte
		next := byte(0)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				p := make([]byte, rapid.IntRange(0, 25).Draw(t, "n"))
				for i := range p {
					p[i] = next
					next++
				}
				n := r.write(p)
				require.Equal(t, min(len(p), len(r.buf)-len(want)), n)
				want = append(want, p[:n]...)
			case 1:
				if r.free() > 0 {
					r.put(next)
					want = append(want, next)
					next++
				}
			case 2:
				if r.len() > 0 {
					require.Equal(t, want[0], r.pop())
					want = want[1:]
				}
			case 3:
				s := r.span(rapid.IntRange(0, 25).Draw(t, "max"))
				require.Equal(t, string(want[:len(s)]), string(s))
				r.discard(len(s))
				want = want[len(s):]
			}
			require.Equal(t, len(want), r.len())
			require.Equal(t, string(want), string(r.bytes()))
		}
	})
}

// The line follows the cause: whatever the guest and the host do, a pending
// interrupt has had its edge, and the state can move.
func FuzzAccesses(f *testing.F) {
	var seed []byte
	for _, s := range []struct {
		reg uint16
		v   uint8
	}{{regFCR, 0xc1}, {regMCR, 0x0b}, {regIER, 0x0f}, {regData, 'x'}, {regMCR, 0x1b}, {regData, 'y'}, {regLCR, 0x80}} {
		seed = append(seed, bustest.Step(true, COM1+s.reg, 1, s.v)...)
		seed = append(seed, bustest.Step(false, COM1, 8, 0)...)
	}
	f.Add(seed, statetest.Data(f, typedInto(f)), []byte("input"))
	f.Fuzz(func(t *testing.T, program, saved, typed []byte) {
		p := newPort(t, io.Discard)
		_ = p.Restore(1, state.NewDecoder(saved))
		p.Rearm()
		var b bus.Bus
		require.NoError(t, p.Attach(&b, COM1))
		bustest.Play(&b, COM1, Ports, program, func() {
			if len(typed) > 0 {
				p.enqueue(typed[:1])
				typed = typed[1:]
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.raised != (p.cause() != iirNone) {
				t.Fatalf("the line is %v, IIR would be %#02x", p.raised, p.cause())
			}
		})
		require.NoError(t, p.Drain(t.Context()))
		require.NoError(t, statetest.Restore(newPort(t, io.Discard), statetest.Stream(t, p)))
	})
}
