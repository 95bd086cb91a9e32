package zero

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mapped gives anonymous memory with an unreadable page on either side.
func mapped(t testing.TB, size int) []byte {
	m, err := unix.Mmap(-1, 0, size+2*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(m)) })
	require.NoError(t, unix.Mprotect(m[:PageSize], unix.PROT_NONE))
	require.NoError(t, unix.Mprotect(m[PageSize+size:], unix.PROT_NONE))
	return m[PageSize : PageSize+size : PageSize+size]
}

// A read beside the slice would end the test with SIGSEGV.
func TestReadsNothingBeside(t *testing.T) {
	twins(t, func(t *testing.T) {
		mem := mapped(t, 66*PageSize)
		bitmap := make([]uint64, 2)
		for n := 0; n <= len(mem); n++ {
			if n > 3*PageSize && n%PageSize > 65 && n%PageSize < PageSize-65 {
				continue
			}
			for _, p := range [][]byte{mem[:n], mem[len(mem)-n:]} {
				require.Equal(t, (n+PageSize-1)/PageSize, Classify(p, bitmap))
			}
			if n <= 3*PageSize {
				require.True(t, Page(mem[:n]))
				require.True(t, Page(mem[len(mem)-n:]))
			}
		}
	})
}

// What never changes is classified right while everything beside it changes.
// Mapped memory, as a guest's is: the race detector does not see it.
func TestMemoryThatChanges(t *testing.T) {
	twins(t, func(t *testing.T) {
		const pages, busy, held = 64, 5, 9
		mem := mapped(t, pages*PageSize)
		mem[held*PageSize+4000] = 1
		var stop atomic.Bool
		var writes atomic.Uint64
		var wg sync.WaitGroup
		wg.Go(func() {
			word := (*uint64)(unsafe.Pointer(&mem[busy*PageSize+2048]))
			other := (*uint64)(unsafe.Pointer(&mem[held*PageSize]))
			for i := uint64(0); !stop.Load(); i++ {
				atomic.StoreUint64(word, i%2)
				atomic.StoreUint64(other, i%3)
				writes.Store(i)
				if i%64 == 0 {
					runtime.Gosched()
				}
			}
		})
		defer wg.Wait()
		defer stop.Store(true)
		bitmap := make([]uint64, 1)
		for n := 0; n < 2000 || writes.Load() < 1000; n++ {
			Classify(mem, bitmap)
			bitmap[0] |= 1 << busy // either answer is right
			require.Equal(t, ^uint64(0)&^(1<<held), bitmap[0])
			require.False(t, Page(mem[held*PageSize:(held+1)*PageSize]))
			runtime.Gosched()
		}
	})
}
