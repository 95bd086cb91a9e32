package hostpoll

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func newPoller(t testing.TB) *Poller {
	t.Helper()
	p, err := New()
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func wait(t testing.TB, c <-chan uint32) uint32 {
	t.Helper()
	select {
	case e := <-c:
		return e
	case <-time.After(time.Minute):
		require.FailNow(t, "an event was lost")
		return 0
	}
}

// TestOneCallPerArm, whether the event comes before or after.
func TestOneCallPerArm(t *testing.T) {
	p := newPoller(t)
	a, b := pair(t)
	events := make(chan uint32, 100)
	w, err := p.Add(a, func(e uint32) { events <- e })
	require.NoError(t, err)
	_, err = unix.Write(b, []byte("x"))
	require.NoError(t, err)
	for range 50 {
		w.Arm(In)
		require.EqualValues(t, In, wait(t, events))
	}
	require.Empty(t, events)
	w.Arm(Out)
	require.EqualValues(t, Out, wait(t, events))
	_, err = unix.Read(a, make([]byte, 1))
	require.NoError(t, err)
	for range 50 {
		w.Arm(In)
		require.Empty(t, events)
		_, err = unix.Write(b, []byte("x"))
		require.NoError(t, err)
		require.EqualValues(t, In, wait(t, events))
		_, err = unix.Read(a, make([]byte, 1))
		require.NoError(t, err)
	}
	w.Remove()
	w.Remove()
	w.Arm(In)
	require.NoError(t, p.Close())
	w.Arm(In)
}

// TestMany descriptors at once, more than one look can bring.
func TestMany(t *testing.T) {
	p := newPoller(t)
	events := make(chan int, 300)
	for i := range 200 {
		a, b := pair(t)
		w, err := p.Add(a, func(uint32) { events <- i })
		require.NoError(t, err)
		w.Arm(In)
		_, err = unix.Write(b, []byte("x"))
		require.NoError(t, err)
	}
	seen := map[int]bool{}
	for range 200 {
		select {
		case i := <-events:
			require.False(t, seen[i])
			seen[i] = true
		case <-time.After(time.Minute):
			require.FailNow(t, "an event was lost")
		}
	}
}

func TestRegularFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer f.Close()
	_, err = newPoller(t).Add(int(f.Fd()), func(uint32) {})
	require.ErrorIs(t, err, unix.EPERM)
}

func TestVec(t *testing.T) {
	a, b := pair(t)
	var v Vec
	bufs := [][]byte{[]byte("abc"), []byte("def"), []byte("ghi")}
	require.EqualValues(t, 5, v.Append(bufs, 2, 5))
	n, err := v.Write(a)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	v.Reset()
	in := [][]byte{make([]byte, 2), make([]byte, 10)}
	require.EqualValues(t, 12, v.Append(in, 0, 1<<30))
	n, err = v.Read(b)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	require.Equal(t, "cd", string(in[0]))
	require.Equal(t, "efg", string(in[1][:3]))
	_, err = v.Read(b)
	require.ErrorIs(t, err, unix.EAGAIN)

	v.Reset()
	many := make([][]byte, 100)
	for i := range many {
		many[i] = []byte{byte(i)}
	}
	require.EqualValues(t, maxVec, v.Append(many, 0, 1<<30))
	require.Zero(t, v.Append(many, 100, 1))
}
