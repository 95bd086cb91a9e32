package blockfile

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func tryFile(t *testing.T, o Options) *raw {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{7}, 1<<20), 0o600))
	r, err := openRaw(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// TestTryRead: what the page cache holds is read, what it lost is not waited for.
func TestTryRead(t *testing.T) {
	r := tryFile(t, Options{})
	bufs := [][]byte{make([]byte, 512), nil, make([]byte, 4096)}
	done, err := r.TryPreadv(bufs, 4096)
	require.NoError(t, err)
	if r.noNowait.Load() {
		t.Log("this file system has no RWF_NOWAIT")
		require.False(t, done)
		return
	}
	require.True(t, done)
	require.Equal(t, bytes.Repeat([]byte{7}, 4096), bufs[2])

	require.NoError(t, r.Flush())
	require.NoError(t, unix.Fadvise(r.fd, 0, 0, unix.FADV_DONTNEED))
	done, err = r.TryPreadv(bufs, 512<<10)
	require.NoError(t, err)
	if done {
		t.Log("this file system keeps everything in memory")
	}
	n, err := r.Preadv(bufs, 512<<10)
	require.NoError(t, err)
	require.Equal(t, 4608, n)
	done, err = r.TryPreadv(bufs, 512<<10)
	require.NoError(t, err)
	require.True(t, done, "it was just read")
}

// TestTryRefuses what would wait by its nature.
func TestTryRefuses(t *testing.T) {
	buf := [][]byte{make([]byte, 4096)}
	for _, c := range []struct {
		cache       Cache
		read, write bool
	}{{CacheWriteback, true, true}, {CacheWritethrough, true, false}, {CacheNone, false, false}} {
		r := tryFile(t, Options{Cache: c.cache})
		done, err := r.TryPreadv(buf, 0)
		require.NoError(t, err)
		require.True(t, done == c.read || r.noNowait.Load(), c.cache)
		done, err = r.TryPwritev(buf, 0)
		require.NoError(t, err)
		require.Equal(t, c.write, done, c.cache)
	}
}

// TestTryJudges as Preadv and Pwritev do.
func TestTryJudges(t *testing.T) {
	buf := [][]byte{make([]byte, 512)}
	r := tryFile(t, Options{})
	done, err := r.TryPreadv(buf, 1<<20)
	require.True(t, done)
	require.ErrorIs(t, err, ErrRange)
	done, err = r.TryPwritev(buf, 100)
	require.True(t, done)
	require.ErrorIs(t, err, ErrRange)
	require.NoError(t, r.Unlock())
	done, err = r.TryPwritev(buf, 0)
	require.True(t, done)
	require.ErrorIs(t, err, ErrNotLocked)

	done, err = r.TryPreadv(make([][]byte, iovMax+1), 0)
	require.False(t, done)
	require.NoError(t, err)
}

// TestCacheFlags: what each mode asks the kernel for.
func TestCacheFlags(t *testing.T) {
	for cache, want := range map[Cache]int{CacheWriteback: 0, CacheWritethrough: unix.O_DSYNC, CacheNone: unix.O_DIRECT} {
		r := tryFile(t, Options{Cache: cache})
		got, err := unix.FcntlInt(uintptr(r.fd), unix.F_GETFL, 0)
		require.NoError(t, err)
		require.Equal(t, want, got&(unix.O_DSYNC|unix.O_DIRECT), cache)
		require.Equal(t, cache != CacheWritethrough, r.WriteCache(), cache)
	}
}

// TestSlowWrites: after a write that waited, none is tried for a while.
func TestSlowWrites(t *testing.T) {
	r := tryFile(t, Options{})
	begin := time.Now()
	r.pace.took(begin, begin.Add(slowWrite))
	end := begin.Add(slowWrite + 1)
	require.False(t, r.pace.slow(end))
	r.pace.took(begin, end)
	require.True(t, r.pace.slow(end))
	require.True(t, r.pace.slow(end.Add(slowFor-1)))
	require.False(t, r.pace.slow(end.Add(slowFor)))
	require.Less(t, slowFor, time.Second)

	buf := [][]byte{make([]byte, 512)}
	for _, f := range []interface {
		TryPwritev(bufs [][]byte, off int64) (bool, error)
	}{r, &HostFile{r: r}} {
		r.pace.took(begin, begin.Add(time.Hour))
		done, err := f.TryPwritev(buf, 0)
		require.NoError(t, err)
		require.False(t, done)
		r.pace.until.Store(0)
		done, err = f.TryPwritev(buf, 0)
		require.NoError(t, err)
		require.True(t, done)
	}
}
