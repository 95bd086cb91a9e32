//go:build linux && amd64

package kvm

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// writeEveryOther writes a byte to every other page from 0x20 to 0x5e.
var writeEveryOther = []byte{
	0xb8, 0x00, 0x20, // mov ax, 0x2000
	0x8e, 0xd8, // again: mov ds, ax
	0xc6, 0x06, 0x00, 0x00, 0x01, // mov byte [0], 1
	0x05, 0x00, 0x02, // add ax, 0x200
	0x3d, 0x00, 0x60, // cmp ax, 0x6000
	0x75, 0xf1, // jne again
	0xf4, // hlt
}

func writtenPages() (pages []uint64) {
	for p := uint64(0x20); p < 0x60; p += 2 {
		pages = append(pages, p)
	}
	return pages
}

func has(bitmap []uint64, page uint64) bool { return bitmap[page/64]>>(page%64)&1 != 0 }

func dirtyLogOf(t *testing.T, g *guest) []uint64 {
	t.Helper()
	bitmap := make([]uint64, guestSize/pageSize/64)
	require.NoError(t, g.vm.GetDirtyLog(0, bitmap))
	return bitmap
}

func requireSuperset(t *testing.T, bitmap []uint64) {
	t.Helper()
	for _, p := range writtenPages() {
		require.True(t, has(bitmap, p), "page %#x was written but is not in the log", p)
	}
}

func TestDirtyLog(t *testing.T) {
	g := newGuest(t, MemLogDirtyPages, writeEveryOther)
	require.Equal(t, ExitHLT, g.run(t))
	requireSuperset(t, dirtyLogOf(t, g))
	require.Equal(t, make([]uint64, 4), dirtyLogOf(t, g), "getting clears")

	g.reset(t)
	require.Equal(t, ExitHLT, g.run(t))
	requireSuperset(t, dirtyLogOf(t, g))

	short := make([]uint64, 3)
	require.ErrorIs(t, g.vm.GetDirtyLog(0, short), ErrBitmap)
	require.EqualError(t, g.vm.GetDirtyLog(0, short),
		"kvm: KVM_GET_DIRTY_LOG (slot 0 has 256 pages, the bitmap 192 bits) on VM: dirty bitmap does not fit")
	require.ErrorIs(t, g.vm.GetDirtyLog(5, short), ErrNoSlot)
}

func TestDirtyLogManualProtect(t *testing.T) {
	g := newGuest(t, MemLogDirtyPages, writeEveryOther, withCap(CapManualDirtyLogProtect2, DirtyLogManualProtectEnable))
	require.Equal(t, ExitHLT, g.run(t))
	first := dirtyLogOf(t, g)
	requireSuperset(t, first)
	require.Equal(t, first, dirtyLogOf(t, g), "getting does not clear")

	// Word 0 holds pages 0x00 to 0x3f, word 1 pages 0x40 to 0x7f.
	require.NoError(t, g.vm.ClearDirtyLog(0, 64, 64, first[1:2]))
	half := dirtyLogOf(t, g)
	require.Equal(t, first[0], half[0])
	require.Zero(t, half[1])
	require.NoError(t, g.vm.ClearDirtyLog(0, 0, 256, first))
	require.Equal(t, make([]uint64, 4), dirtyLogOf(t, g))

	g.reset(t)
	require.Equal(t, ExitHLT, g.run(t))
	requireSuperset(t, dirtyLogOf(t, g))

	require.NoError(t, g.vm.ClearDirtyLog(0, 0, 0, nil))
	require.ErrorIs(t, g.vm.ClearDirtyLog(0, 0, 128, make([]uint64, 1)), ErrBitmap)
	require.ErrorContains(t, g.vm.ClearDirtyLog(0, 3, 64, make([]uint64, 1)),
		"KVM_CLEAR_DIRTY_LOG (slot 0, pages 3+64) on VM: invalid argument")
}

func TestDirtyLogInitiallySet(t *testing.T) {
	g := newGuest(t, MemLogDirtyPages, nil,
		withCap(CapManualDirtyLogProtect2, DirtyLogManualProtectEnable|DirtyLogInitiallySet))
	for page := range uint64(guestSize / pageSize) {
		require.True(t, has(dirtyLogOf(t, g), page))
	}
}

func TestDirtyRing(t *testing.T) {
	const entries = 1024
	g := newGuest(t, MemLogDirtyPages, writeEveryOther, withCap(CapDirtyLogRing, entries*uint64(DirtyRingEntrySize)))
	for _, bad := range []int{0, -1, 1000, 1 << 40} {
		_, err := g.vcpu.MapDirtyRing(bad)
		require.ErrorIs(t, err, unix.EINVAL)
	}
	ring, err := g.vcpu.MapDirtyRing(entries)
	require.NoError(t, err)
	defer ring.Close()
	require.ErrorIs(t, g.vm.GetDirtyLog(0, make([]uint64, 4)), unix.ENXIO)

	require.Zero(t, ring.Published())
	total := uint64(0)
	// Often enough that the ring wraps.
	for range 2*entries/len(writtenPages()) + 1 {
		g.reset(t)
		require.Equal(t, ExitHLT, g.run(t))
		bitmap := make([]uint64, 4)
		n := 0
		total += uint64(len(writtenPages()))
		peeked := ring.Published()
		require.GreaterOrEqual(t, peeked, total)
		require.Equal(t, peeked, ring.Published())
		for p, ok := ring.Next(); ok; p, ok = ring.Next() {
			require.Zero(t, p.Slot)
			require.Less(t, p.Offset, uint64(guestSize/pageSize))
			bitmap[p.Offset/64] |= 1 << (p.Offset % 64)
			n++
		}
		requireSuperset(t, bitmap)
		require.Equal(t, peeked, ring.Published(), "harvesting changes no count")
		total = peeked
		reset, _, err := g.vm.ResetDirtyRings()
		require.NoError(t, err)
		require.Equal(t, n, reset)
	}
	require.NoError(t, ring.Close())
	require.NoError(t, ring.Close())
	_, ok := ring.Next()
	require.False(t, ok)
	require.Equal(t, total, ring.Published())
}

// A ring in memory alone: counting stops at the first entry that KVM has not
// filled, and after one turn where every entry is filled.
func TestPublished(t *testing.T) {
	r := &DirtyRing{entries: make([]dirtyGFN, 4)}
	fill := func(from, to int) {
		for i := from; i < to; i++ {
			r.entries[i%4].Flags = dirtyGFNFlagDirty
		}
	}
	take := func(n int) {
		for range n {
			_, ok := r.Next()
			require.True(t, ok)
		}
	}
	fill(0, 3)
	take(1)
	require.EqualValues(t, 3, r.Published())
	fill(3, 4)
	require.EqualValues(t, 4, r.Published(), "entry 0 is harvested, not filled again")
	take(1)
	r.entries[0].Flags = 0 // reset
	require.EqualValues(t, 4, r.Published())
	fill(4, 5)
	require.EqualValues(t, 5, r.Published())
	r.entries[1].Flags = 0
	fill(5, 6)
	require.EqualValues(t, 6, r.Published(), "all filled: one turn and no more")
	require.EqualValues(t, 6, r.Published())
	take(4)
	require.EqualValues(t, 6, r.Published())
}

func TestMemoryRegions(t *testing.T) {
	g := newGuest(t, 0, []byte{0xc6, 0x06, 0x00, 0x20, 0x01, 0xf4}) // mov byte [0x2000], 1; hlt
	require.Equal(t, ExitHLT, g.run(t))
	require.EqualValues(t, 1, g.mem[0x2000])
	for name, host := range map[string][]byte{
		"empty": nil, "not whole pages": g.mem[:100], "not aligned": g.mem[8 : pageSize+8],
	} {
		require.ErrorIs(t, g.vm.SetUserMemoryRegion(1, 0, 1<<32, host), unix.EINVAL, name)
	}
	require.ErrorContains(t, g.vm.SetUserMemoryRegion(1, 0, 0x2000, g.mem[:pageSize]),
		"KVM_SET_USER_MEMORY_REGION (slot 1, flags 0x0, 4096 bytes at gpa 0x2000) on VM: file exists")

	// A read-only slot turns writes into exits.
	require.NoError(t, g.vm.DeleteMemoryRegion(0))
	require.ErrorIs(t, g.vm.GetDirtyLog(0, make([]uint64, 4)), ErrNoSlot)
	require.NoError(t, g.vm.SetUserMemoryRegion(0, MemReadonly, 0, g.mem))
	g.reset(t)
	require.Equal(t, ExitMMIO, g.run(t))
	m, err := g.vcpu.RunData().MMIO()
	require.NoError(t, err)
	require.Equal(t, MMIO{Addr: 0x2000, Write: true, Data: []byte{1}}, m)
}
