package boot

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
)

func newMem(t testing.TB, mib uint64) *guestmem.Memory {
	t.Helper()
	m, err := guestmem.New(mib<<20, guestmem.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func image(name string, b []byte) Image {
	return Image{Name: name, ReaderAt: bytes.NewReader(b), Size: int64(len(b))}
}

// bzImage makes the smallest file that passes as one: a header and n bytes of
// protected-mode code.
func bzImage(n int, change func(h []byte)) []byte {
	le := binary.LittleEndian
	b := make([]byte, 2*512+n)
	b[hdrSetupSects] = 1
	le.PutUint32(b[0x1f4:], uint32(n/16))
	le.PutUint16(b[hdrBootFlag:], 0xaa55)
	b[hdrJump], b[hdrJump+1] = 0xeb, 0x66
	copy(b[hdrMagic:], "HdrS")
	le.PutUint16(b[hdrVersion:], 0x020f)
	b[hdrLoadFlags] = loadedHigh
	le.PutUint16(b[hdrXLoadFlags:], xlfKernel64)
	le.PutUint32(b[hdrCmdlineSize:], 2047)
	le.PutUint32(b[hdrInitrdMax:], 0x7fffffff)
	le.PutUint64(b[hdrPrefAddress:], 0x1000000)
	le.PutUint32(b[hdrInitSize:], 1<<20)
	for i := range n {
		b[1024+i] = byte(i * 7)
	}
	if change != nil {
		change(b)
	}
	return b
}

func TestBzImage(t *testing.T) {
	le := binary.LittleEndian
	mem := newMem(t, 64)
	kernel, initrd := bzImage(4096, nil), bytes.Repeat([]byte("rd"), 3000)
	rd := image("rd", initrd)
	e, err := Load(mem, Config{Kernel: image("k", kernel), Initrd: &rd, Cmdline: "console=ttyS0 x", CPUs: 2})
	require.NoError(t, err)
	require.Equal(t, Long64, e.Mode)
	require.EqualValues(t, 0x1000200, e.RIP)
	require.EqualValues(t, zeroPageAddr, e.RSI)

	got := make([]byte, 4096)
	require.NoError(t, mem.ReadAt(got, 0x1000000))
	require.Equal(t, kernel[1024:], got)
	require.NoError(t, mem.ReadAt(got, zeroPageAddr))
	require.EqualValues(t, cmdlineAddr, le.Uint32(got[hdrCmdLinePtr:]))
	require.Equal(t, "HdrS", string(got[hdrMagic:hdrMagic+4]))
	require.EqualValues(t, 4, got[zpE820Entries], "base, EBDA, BIOS area, high memory")
	at, n := uint64(le.Uint32(got[hdrRamdiskImage:])), le.Uint32(got[hdrRamdiskSize:])
	require.EqualValues(t, len(initrd), n)
	require.Zero(t, at%guestmem.PageSize)
	require.GreaterOrEqual(t, at, uint64(0x1100000))
	back := make([]byte, n)
	require.NoError(t, mem.ReadAt(back, at))
	require.Equal(t, initrd, back)
	line := make([]byte, 16)
	require.NoError(t, mem.ReadAt(line, cmdlineAddr))
	require.Equal(t, "console=ttyS0 x\x00", string(line))

	// The identity map: 2 MiB page 5 is at 10 MiB, page 2047 just below 4 GiB.
	for _, page := range []uint64{5, 2047} {
		v, err := mem.LoadUint64(pdAddr + 8*page)
		require.NoError(t, err)
		require.Equal(t, page<<21, v&^0xfff)
	}
}

func TestMemoryMapKeepsTheHole(t *testing.T) {
	mem := newMem(t, 5<<10)
	m := memoryMap(mem)
	last := m[len(m)-1]
	require.Equal(t, memRange{4 << 30, 2 << 30, e820RAM}, last)
	require.Equal(t, memRange{1 << 20, 3<<30 - 1<<20, e820RAM}, m[len(m)-2])
}

func TestBadKernels(t *testing.T) {
	le := binary.LittleEndian
	for name, tc := range map[string]struct {
		kernel []byte
		mib    uint64
		want   error
		says   string
	}{
		"empty":           {nil, 64, ErrKernel, "shorter than 4 bytes"},
		"text":            {bytes.Repeat([]byte("hello "), 300), 64, ErrKernel, "neither bzImage nor ELF"},
		"truncated head":  {bzImage(4096, nil)[:0x250], 64, ErrKernel, "too few"},
		"truncated setup": {bzImage(4096, nil)[:1024], 64, ErrKernel, "truncated"},
		"truncated body":  {bzImage(8192, nil)[:1024+4096], 64, ErrKernel, "truncated"},
		"old protocol":    {bzImage(4096, func(h []byte) { le.PutUint16(h[hdrVersion:], 0x0204) }), 64, ErrKernel, "older than 2.12"},
		"zImage":          {bzImage(4096, func(h []byte) { h[hdrLoadFlags] = 0 }), 64, ErrKernel, "zImage"},
		"32-bit":          {bzImage(4096, func(h []byte) { le.PutUint16(h[hdrXLoadFlags:], 0) }), 64, ErrKernel, "64-bit entry"},
		"needs more":      {bzImage(4096, nil), 16, ErrMemory, "raise --memory"},
		"absurd address":  {bzImage(4096, func(h []byte) { le.PutUint64(h[hdrPrefAddress:], 1<<63) }), 64, ErrMemory, "no amount of memory"},
		"absurd size":     {bzImage(4096, func(h []byte) { le.PutUint32(h[hdrInitSize:], 1<<32-1) }), 64, ErrMemory, "no amount of memory"},
		"tiny guest":      {bzImage(4096, nil), 2, ErrMemory, "at least"},
		"elf head alone":  {[]byte("\x7fELF\x02\x01\x01"), 64, ErrKernel, "whole"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(newMem(t, tc.mib), Config{Kernel: image("some-file", tc.kernel), CPUs: 1})
			require.ErrorIs(t, err, tc.want)
			require.ErrorContains(t, err, tc.says)
			require.ErrorContains(t, err, "some-file")
		})
	}
}

func TestBadCmdline(t *testing.T) {
	for name, line := range map[string]string{"too long": strings.Repeat("a", 3000), "control": "a\nb", "nul": "a\x00b"} {
		_, err := Load(newMem(t, 64), Config{Kernel: image("k", bzImage(4096, nil)), Cmdline: line, CPUs: 1})
		require.ErrorIs(t, err, ErrCmdline, name)
	}
}

func TestInitrdThatDoesNotFit(t *testing.T) {
	rd := Image{Name: "rd", ReaderAt: bytes.NewReader(nil), Size: 60 << 20}
	_, err := Load(newMem(t, 64), Config{Kernel: image("k", bzImage(4096, nil)), Initrd: &rd, CPUs: 1})
	require.ErrorIs(t, err, ErrMemory)
	rd.Size = 0
	_, err = Load(newMem(t, 64), Config{Kernel: image("k", bzImage(4096, nil)), Initrd: &rd, CPUs: 1})
	require.ErrorContains(t, err, "empty")
}

func TestCmdline(t *testing.T) {
	require.Contains(t, DefaultCmdline(CmdlineOptions{Root: "/dev/vda"}), "root=/dev/vda rw")
	require.Contains(t, DefaultCmdline(CmdlineOptions{Root: "/dev/vda", ReadOnly: true}), "root=/dev/vda ro")
	require.NotContains(t, DefaultCmdline(CmdlineOptions{}), "root=")
	for _, tc := range [][3]string{
		{"a b", "c", "a b c"}, {"", "c", "c"}, {"a", " ", "a"},
		{"a -- init args", "c", "a c -- init args"}, {"-- x", "c", "c -- x"},
	} {
		require.Equal(t, tc[2], JoinCmdline(tc[0], tc[1]))
	}
}

func TestMPTable(t *testing.T) {
	mem := newMem(t, 64)
	require.NoError(t, writeMPTable(mem, 3))
	b := make([]byte, 4096)
	require.NoError(t, mem.ReadAt(b, mpTableAddr))
	require.Equal(t, "_MP_", string(b[:4]))
	require.Zero(t, checksum(b[:16]))
	table := b[16:]
	require.Equal(t, "PCMP", string(table[:4]))
	n := binary.LittleEndian.Uint16(table[4:])
	require.Zero(t, checksum(table[:n]))
	// Walk the entries: processors have 20 bytes, the others 8 (MP 1.4, table 4-3).
	cpus, count, off := 0, 0, 44
	for ; off < int(n); count++ {
		if table[off] == mpProcessor {
			require.EqualValues(t, cpus, table[off+1])
			cpus++
			off += 20
		} else {
			off += 8
		}
	}
	require.Equal(t, int(n), off)
	require.EqualValues(t, count, binary.LittleEndian.Uint16(table[34:]))
	require.Equal(t, 3, cpus)
	for _, bad := range []int{0, -1, MaxCPUs + 1} {
		require.ErrorContains(t, writeMPTable(mem, bad), "vCPUs")
	}
}
