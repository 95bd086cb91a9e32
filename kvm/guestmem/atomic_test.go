package guestmem

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestLoadStore(t *testing.T) {
	m := newMemory(t, HoleStart+PageSize, Options{})
	for _, base := range []uint64{0, 0x1ff8, HoleStart - 8, HoleEnd, HoleEnd + PageSize - 8} {
		t.Run(fmt.Sprintf("%#x", base), func(t *testing.T) {
			want := make([]byte, 8)
			got := make([]byte, 8)
			check := func() {
				t.Helper()
				require.NoError(t, m.ReadAt(got, base))
				require.Equal(t, want, got)
				require.Equal(t, []uint64{base >> PageShift}, drain(m))
			}
			binary.LittleEndian.PutUint64(want, 0x8877665544332211)
			require.NoError(t, m.StoreUint64(base, 0x8877665544332211))
			check()
			for off := uint64(0); off < 8; off += 2 {
				v := uint16(0xa0b0 + off)
				binary.LittleEndian.PutUint16(want[off:], v)
				require.NoError(t, m.StoreUint16(base+off, v))
				check()
				l, err := m.LoadUint16(base + off)
				require.NoError(t, err)
				require.Equal(t, v, l)
			}
			for off := uint64(0); off < 8; off += 4 {
				v := uint32(0xc0d0e0f0 + off)
				binary.LittleEndian.PutUint32(want[off:], v)
				require.NoError(t, m.StoreUint32(base+off, v))
				check()
				l, err := m.LoadUint32(base + off)
				require.NoError(t, err)
				require.Equal(t, v, l)
			}
			l, err := m.LoadUint64(base)
			require.NoError(t, err)
			require.Equal(t, binary.LittleEndian.Uint64(want), l)
			require.Empty(t, drain(m), "loads do not mark")
		})
	}
}

func TestLoadStoreRefuse(t *testing.T) {
	m := newMemory(t, HoleStart+PageSize, Options{})
	call := func(size, gpa uint64) (load, store error) {
		switch size {
		case 2:
			_, load = m.LoadUint16(gpa)
			store = m.StoreUint16(gpa, 1)
		case 4:
			_, load = m.LoadUint32(gpa)
			store = m.StoreUint32(gpa, 1)
		case 8:
			_, load = m.LoadUint64(gpa)
			store = m.StoreUint64(gpa, 1)
		}
		return load, store
	}
	for _, size := range []uint64{2, 4, 8} {
		for off := uint64(1); off < size; off++ {
			load, store := call(size, 64+off)
			require.ErrorIs(t, load, ErrMisaligned)
			require.ErrorIs(t, store, ErrMisaligned)
		}
		for _, gpa := range []uint64{HoleStart, HoleEnd - 8, HoleEnd + PageSize, 1 << 63, ^uint64(7)} {
			load, store := call(size, gpa)
			require.ErrorIs(t, load, ErrOutOfRange)
			require.ErrorIs(t, store, ErrOutOfRange)
		}
	}
	require.Empty(t, drain(m))
}

// Both 16-bit stores must agree, and keep what somebody else writes to the other
// half of the word at the same time.
func TestStoreUint16KeepsNeighbour(t *testing.T) {
	stores := map[string]func(*uint16, uint16){"native": storeUint16, "cas": casUint16}
	m := newMemory(t, PageSize, Options{})
	b, err := m.Writable(0, 8)
	require.NoError(t, err)
	for name, store := range stores {
		for _, half := range []int{0, 2, 4, 6} {
			t.Run(fmt.Sprintf("%s/%d", name, half), func(t *testing.T) {
				mine := (*uint16)(unsafe.Pointer(&b[half]))
				other := uint64(half ^ 2)
				var wg sync.WaitGroup
				wg.Go(func() {
					for i := range 20000 {
						store(mine, uint16(i))
					}
				})
				for i := range 20000 {
					require.NoError(t, m.StoreUint16(other, uint16(i)))
					v, err := m.LoadUint16(other)
					require.NoError(t, err)
					if v != uint16(i) {
						t.Fatalf("wrote %d to the other half, it holds %d", i, v)
					}
				}
				wg.Wait()
				require.Equal(t, uint16(19999), binary.LittleEndian.Uint16(b[half:]))
				require.Equal(t, uint16(19999), binary.LittleEndian.Uint16(b[other:]))
			})
		}
	}
}

// Dekker's pattern, as in virtio's event index: each side stores, fences, reads
// the other's. Without the fence both may read the old value. The raw store is
// used, since the marking in StoreUint16 happens to be a barrier on x86 too.
func TestFence(t *testing.T) {
	const rounds = 5000
	m := newMemory(t, PageSize, Options{})
	b, err := m.Writable(0, PageSize)
	require.NoError(t, err)
	var (
		turn [2]atomic.Uint32
		saw  [2][rounds]uint16
		wg   sync.WaitGroup
	)
	side := func(me int) {
		mine := (*uint16)(unsafe.Pointer(&b[256*me])) // on cache lines of their own
		other := uint64(256 * (1 - me))
		for i := range uint32(rounds) {
			turn[me].Store(i + 1)
			for turn[1-me].Load() < i+1 {
				runtime.Gosched()
			}
			storeUint16(mine, uint16(i+1))
			Fence()
			saw[me][i], _ = m.LoadUint16(other)
		}
	}
	wg.Go(func() { side(0) })
	wg.Go(func() { side(1) })
	wg.Wait()
	for i := range rounds {
		now := uint16(i + 1)
		require.True(t, saw[0][i] == now || saw[1][i] == now,
			"round %d: neither side saw the other (%d, %d)", now, saw[0][i], saw[1][i])
	}
}

// A value that is published by a store must be seen with what was written before.
func TestStorePublishes(t *testing.T) {
	m := newMemory(t, PageSize, Options{})
	const rounds = 5000
	var (
		wg    sync.WaitGroup
		taken atomic.Uint32
	)
	wg.Go(func() {
		for i := uint32(1); i <= rounds; i++ {
			_ = m.WriteAt(binary.LittleEndian.AppendUint32(nil, i), 512)
			_ = m.StoreUint16(0, uint16(i))
			for taken.Load() != i {
				runtime.Gosched()
			}
		}
	})
	var data [4]byte
	for i := uint32(1); i <= rounds; i++ {
		for {
			if v, _ := m.LoadUint16(0); v == uint16(i) {
				break
			}
			runtime.Gosched()
		}
		require.NoError(t, m.ReadAt(data[:], 512))
		require.Equal(t, i, binary.LittleEndian.Uint32(data[:]))
		taken.Store(i)
	}
	wg.Wait()
}
