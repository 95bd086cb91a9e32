//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// fakeRun is a struct kvm_run in plain memory, size bytes long.
func fakeRun(size int) *RunData {
	words := make([]uint64, size/8)
	p := unsafe.Pointer(unsafe.SliceData(words))
	return &RunData{mem: unsafe.Slice((*byte)(p), size), run: (*run)(p)}
}

func TestInternalErrorDecoding(t *testing.T) {
	insn := func(size byte, bytes ...byte) (a, b uint64) {
		var w [16]byte
		w[0] = size
		copy(w[1:], bytes)
		return binary.LittleEndian.Uint64(w[:8]), binary.LittleEndian.Uint64(w[8:])
	}
	a, b := insn(9, 0xf0, 0x48, 0x0f, 0xc7, 0x0e, 1, 2, 3, 4)
	long, long2 := insn(200, 1)
	for _, c := range []struct {
		name string
		in   internalExit
		want []byte
		text string
	}{
		{"bytes told", internalExit{1, 3, [16]uint64{1, a, b}}, []byte{0xf0, 0x48, 0x0f, 0xc7, 0x0e, 1, 2, 3, 4},
			"emulation failure (suberror 1), instruction f0 48 0f c7 0e 01 02 03 04"},
		{"flag not set", internalExit{1, 3, [16]uint64{0, a, b}}, nil, ""},
		{"too few words", internalExit{1, 2, [16]uint64{1, a, b}}, nil, ""},
		{"length a lie", internalExit{1, 3, [16]uint64{1, long, long2}}, []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, ""},
		{"other suberror", internalExit{3, 3, [16]uint64{1, a, b}}, nil, ""},
		{"no data", internalExit{2, 0, [16]uint64{}}, nil, "simultaneous exceptions (suberror 2), data []"},
		{"count a lie", internalExit{4, 1 << 31, [16]uint64{7}}, nil, ""},
		{"unknown", internalExit{77, 0, [16]uint64{}}, nil, "unknown internal error (suberror 77), data []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := fakeRun(4096)
			d.run.ExitReason = ExitInternalError
			*payload[internalExit](d) = c.in
			e, err := d.InternalError()
			require.NoError(t, err)
			require.Equal(t, c.in.Suberror, e.Suberror)
			require.Len(t, e.Data, min(int(c.in.Ndata), 16))
			require.Equal(t, c.want, e.Instruction)
			if c.text != "" {
				require.Equal(t, c.text, e.String())
			}
		})
	}
}

func TestIOBounds(t *testing.T) {
	for _, c := range []struct {
		name string
		in   ioExit
		ok   bool
	}{
		{"whole", ioExit{1, 4, 0x10, 16, 4096 - 64}, true},
		{"start", ioExit{0, 1, 0x10, 1, 0}, true},
		{"one past the end", ioExit{1, 4, 0x10, 16, 4096 - 63}, false},
		{"offset wraps", ioExit{1, 4, 0x10, 16, 1<<64 - 1}, false},
		{"count huge", ioExit{1, 255, 0x10, 1<<32 - 1, 0}, false},
		{"count zero", ioExit{1, 4, 0x10, 0, 0}, false},
		{"size zero", ioExit{1, 0, 0x10, 4, 0}, false},
		{"third direction", ioExit{2, 1, 0x10, 1, 0}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := fakeRun(4096)
			d.run.ExitReason = ExitIO
			*payload[ioExit](d) = c.in
			io, err := d.IO()
			if !c.ok {
				require.ErrorIs(t, err, ErrPayload)
				return
			}
			require.NoError(t, err)
			require.Len(t, io.Data, io.Size*io.Count)
			require.Equal(t, len(io.Data), cap(io.Data))
		})
	}
}

func TestSmallPayloads(t *testing.T) {
	d := fakeRun(4096)
	d.run.ExitReason = ExitFailEntry
	*payload[FailEntry](d) = FailEntry{HardwareEntryFailureReason: 0x80000021, CPU: 3}
	f, err := d.FailEntry()
	require.NoError(t, err)
	require.EqualValues(t, 0x80000021, f.HardwareEntryFailureReason)

	d.run.ExitReason = ExitUnknown
	n, err := d.UnknownReason()
	require.NoError(t, err)
	require.EqualValues(t, 0x80000021, n)

	d.run.ExitReason = ExitIOAPICEOI
	v, err := d.EOIVector()
	require.NoError(t, err)
	require.EqualValues(t, 0x21, v)

	d.run.ExitReason = ExitSystemEvent
	*payload[systemEventExit](d) = systemEventExit{Type: SystemEventReset, Ndata: 2, Data: [16]uint64{5, 6, 7}}
	s, err := d.SystemEvent()
	require.NoError(t, err)
	require.Equal(t, SystemEvent{Type: SystemEventReset, Data: []uint64{5, 6}}, s)

	d.run.ExitReason = ExitMemoryFault
	*payload[MemoryFault](d) = MemoryFault{GPA: 0x1000, Size: 4096}
	m, err := d.MemoryFault()
	require.NoError(t, err)
	require.EqualValues(t, 0x1000, m.GPA)

	d.run.ExitReason = ExitX86WRMSR
	*payload[MSRExit](d) = MSRExit{Index: 0x10, Data: 9, Reason: MSRExitReasonFilter}
	msr, err := d.MSR()
	require.NoError(t, err)
	require.EqualValues(t, 9, msr.Data)
	msr.Error = 1
	require.EqualValues(t, 1, payload[MSRExit](d).Error)
}

func TestLAPICRegisters(t *testing.T) {
	var l LAPIC
	l.SetRegister(0x20, 0x0300_0000)
	l.SetRegister(0x3f0, 7)
	require.EqualValues(t, 0x0300_0000, l.Register(0x20))
	require.EqualValues(t, 3, l.Regs[0x23])
	require.EqualValues(t, 7, l.Register(0x3f0))
	for _, off := range []uint16{0x21, 0x400, 0xfff0} {
		before := l
		l.SetRegister(off, 1)
		require.Equal(t, before, l)
		require.Zero(t, l.Register(off))
	}
}

// Whatever struct kvm_run holds, decoding neither panics nor gives data
// outside the mapping.
func FuzzRunData(f *testing.F) {
	seed := func(reason ExitReason, fill func(d *RunData)) {
		d := fakeRun(4096)
		d.run.ExitReason = reason
		fill(d)
		f.Add(d.mem[:512])
	}
	seed(ExitIO, func(d *RunData) { *payload[ioExit](d) = ioExit{1, 4, 0x3f8, 1, 400} })
	seed(ExitIO, func(d *RunData) { *payload[ioExit](d) = ioExit{1, 255, 0x3f8, 1<<32 - 1, 1<<64 - 1} })
	seed(ExitMMIO, func(d *RunData) { *payload[mmioExit](d) = mmioExit{Len: 8} })
	seed(ExitInternalError, func(d *RunData) { *payload[internalExit](d) = internalExit{1, 99, [16]uint64{1, 0xff}} })
	seed(ExitSystemEvent, func(d *RunData) { payload[systemEventExit](d).Ndata = 17 })
	seed(ExitX86RDMSR, func(*RunData) {})
	f.Fuzz(func(t *testing.T, raw []byte) {
		d := fakeRun(4096)
		copy(d.mem, raw)
		inside := func(p []byte) {
			start := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
			base := uintptr(unsafe.Pointer(unsafe.SliceData(d.mem)))
			require.GreaterOrEqual(t, start, base)
			require.LessOrEqual(t, start+uintptr(cap(p)), base+uintptr(len(d.mem)))
		}
		if io, err := d.IO(); err == nil {
			inside(io.Data)
		}
		if m, err := d.MMIO(); err == nil {
			inside(m.Data)
		}
		if e, err := d.InternalError(); err == nil {
			require.LessOrEqual(t, len(e.Data), 16)
			require.LessOrEqual(t, len(e.Instruction), 15)
			require.NotEmpty(t, e.String())
		}
		if s, err := d.SystemEvent(); err == nil {
			require.LessOrEqual(t, len(s.Data), 16)
		}
		_, _ = d.MSR()
		require.NotEmpty(t, d.ExitReason().String())
	})
}
