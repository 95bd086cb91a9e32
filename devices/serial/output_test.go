package serial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// valve is a writer that takes nothing while it is shut. Its waiting is seen
// by synctest, so the tests below run on synctest's clock.
type valve struct {
	buffer
	mu       sync.Mutex
	open     chan struct{}
	delay    time.Duration // per Write once open
	deadline bool
}

func newValve() *valve { return &valve{open: make(chan struct{})} }

func (v *valve) Write(p []byte) (int, error) {
	v.mu.Lock()
	open := v.open
	v.mu.Unlock()
	<-open
	v.mu.Lock()
	late := v.deadline
	v.mu.Unlock()
	if late {
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(v.delay)
	return v.buffer.Write(p)
}

// deadlineValve can be told to give up.
type deadlineValve struct{ *valve }

func (v deadlineValve) SetWriteDeadline(t time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !t.IsZero() && !v.deadline {
		v.deadline = true
		close(v.open)
	}
	return nil
}

// full writes blindly until the ring is full and the writer holds a chunk.
func (p *port) full() {
	for range ringSize {
		p.out8(regData, 'a')
	}
}

func TestOutputIsGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &countingWriter{}
		p := newPort(t, w)
		for _, c := range "no newline" {
			p.out8(regData, uint8(c))
		}
		require.Empty(t, w.String())
		time.Sleep(linger)
		synctest.Wait()
		require.Equal(t, "no newline", w.String())
		require.Equal(t, 1, w.calls)

		p.out8(regData, 'x')
		p.out8(regData, '\n')
		synctest.Wait()
		require.Equal(t, "no newlinex\n", w.String(), "a line goes at once")
		require.Equal(t, uint64(12), p.Stats().Written)
	})
}

type countingWriter struct {
	buffer
	calls int
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.calls++
	return w.buffer.Write(p)
}

// A guest that does not look at LSR is held 10 ms per stall; then its bytes
// are dropped, counted and marked, and output goes on after the mark.
func TestBlindGuestIsHeldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		p := newPort(t, w)
		p.full()
		before := time.Now()
		for range 1000 {
			p.out8(regData, 'b')
		}
		require.LessOrEqual(t, time.Since(before), holdLimit)
		require.Equal(t, uint64(1000), p.Stats().Lost)
		close(w.open)
		synctest.Wait()
		p.out8(regData, 'c')
		require.NoError(t, p.Drain(t.Context()))
		require.Equal(t, strings.Repeat("a", ringSize)+"\r\n[godwit: 1000 bytes of serial output lost]\r\nc", w.String())

		before = time.Now()
		p.full()
		require.Zero(t, time.Since(before), "the next stall is a new one")
	})
}

// A writer that is slow but moves costs a blind guest time, not bytes, as long
// as the time of a stall lasts.
func TestBlindGuestGetsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		w.delay = time.Millisecond
		p := newPort(t, w)
		p.full()
		close(w.open)
		for range 3 * chunkSize {
			p.out8(regData, 'b')
		}
		require.NoError(t, p.Drain(t.Context()))
		require.Zero(t, p.Stats().Lost)
		require.Equal(t, strings.Repeat("a", ringSize)+strings.Repeat("b", 3*chunkSize), w.String())
	})
}

// A guest that polls sees THRE clear for 10 ms and is never held in a write.
func TestPollingGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		p := newPort(t, w)
		sent := 0
		var waited time.Duration
		for range 2 * ringSize / fifoSize {
			begin := time.Now()
			for p.in(regLSR)&lsrTHRE == 0 {
				time.Sleep(time.Microsecond)
			}
			waited += time.Since(begin)
			begin = time.Now()
			for range fifoSize {
				p.out8(regData, 'p')
				sent++
			}
			require.Zero(t, time.Since(begin))
		}
		require.LessOrEqual(t, waited, holdLimit+time.Microsecond)
		require.Greater(t, waited, holdLimit-time.Microsecond)
		close(w.open)
		require.NoError(t, p.Drain(t.Context()))
		s := p.Stats()
		require.Equal(t, uint64(sent), uint64(strings.Count(w.String(), "p"))+s.Lost-uint64(strings.Count(lossMark(s.Lost), "p")))
	})
}

func lossMark(n uint64) string {
	return fmt.Sprintf("\r\n[godwit: %d bytes of serial output lost]\r\n", n)
}

// tty is the transmitting half of Linux's 8250 driver: interrupts are edges
// that latch, the handler runs until IIR is quiet, and THRE is all that makes
// it write.
type tty struct {
	p     *port
	todo  string
	fired chan struct{}
}

func newTTY(t *testing.T, w interface {
	Write(p []byte) (int, error)
}, todo string) *tty {
	d := &tty{todo: todo, fired: make(chan struct{}, 1)}
	d.p = &port{}
	d.p.UART = New("serial/0", latch(d.fired), w)
	t.Cleanup(func() { _ = d.p.Close() })
	d.p.open()
	return d
}

type latch chan struct{}

func (l latch) Trigger() error { signal(l); return nil }

// run sends everything, or returns false when no interrupt comes for limit.
func (d *tty) run(limit time.Duration) bool {
	d.p.out8(regIER, ierTHRE|ierReceived)
	for len(d.todo) > 0 {
		select {
		case <-d.fired:
		case <-time.After(limit):
			return false
		}
		for d.p.in(regIIR)&iirNone == 0 {
			if d.p.in(regLSR)&lsrTHRE == 0 {
				continue
			}
			n := min(fifoSize, len(d.todo))
			for _, c := range []byte(d.todo[:n]) {
				d.p.out8(regData, c)
			}
			if d.todo = d.todo[n:]; len(d.todo) == 0 {
				d.p.out8(regIER, ierReceived)
			}
		}
	}
	return true
}

// A guest that waits for its interrupt loses nothing to a slow writer, however
// slow, and never hangs.
func TestInterruptDrivenGuestLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		w.delay = 900 * time.Millisecond
		close(w.open)
		text := strings.Repeat("the quick brown fox\n", 4*ringSize/20)
		d := newTTY(t, w, text)
		require.True(t, d.run(time.Minute))
		require.NoError(t, d.p.Drain(t.Context()))
		require.Equal(t, text, w.String())
		require.Zero(t, d.p.Stats().Lost)
	})
}

// In a stall IIR and LSR agree that there is nothing to do, or the handler of
// such a guest would spin.
func TestStallIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		p := newPort(t, w)
		p.out8(regIER, ierTHRE)
		p.full()
		require.Zero(t, p.in(regLSR)&(lsrTHRE|lsrTEMT))
		require.Equal(t, uint8(iirNone), p.in(regIIR))
		p.out8(regIER, 0)
		p.out8(regIER, ierTHRE)
		require.Equal(t, uint8(iirNone), p.in(regIIR))
		p.newEdges()
		close(w.open)
		require.NoError(t, p.Drain(t.Context()))
		synctest.Wait()
		require.Equal(t, int64(1), p.newEdges())
		require.Equal(t, uint8(iirTHRE), p.in(regIIR))
	})
}

// When the writer takes nothing at all, it is let go on after a second.
func TestInterruptDrivenGuestIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		d := newTTY(t, w, strings.Repeat("x", 3*ringSize))
		begin := time.Now()
		require.True(t, d.run(time.Minute))
		require.Less(t, time.Since(begin), patience+10*holdLimit)
		require.GreaterOrEqual(t, time.Since(begin), patience)
		lost := d.p.Stats().Lost
		require.Greater(t, lost, uint64(ringSize))
		close(w.open)
		require.NoError(t, d.p.Drain(t.Context()))
		require.Contains(t, w.String(), lossMark(lost))

		// A printk in between restores IER and gets its edge again.
		d.p.out8(regIER, 0)
		signal(d.fired)
		<-d.fired
		d.p.out8(regIER, ierTHRE)
		<-d.fired
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		p := newPort(t, w)
		require.NoError(t, p.Drain(t.Context()), "nothing to do")
		p.out8(regData, 'a')
		p.out8(regData, 'b')
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := p.Drain(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "2 bytes left")
		close(w.open)
		require.NoError(t, p.Drain(t.Context()))
		require.Equal(t, "ab", w.String(), "what Drain gave up on is not lost")
	})
}

// Flow tells whether anybody reads, before the guest has to stand still for it.
func TestFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		p := newPort(t, w)
		require.NoError(t, p.Flow(t.Context()), "nothing to do")
		p.full()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, p.Flow(ctx), context.DeadlineExceeded)
		w.mu.Lock()
		w.delay = time.Minute // for each chunk
		w.mu.Unlock()
		close(w.open)
		before := time.Now()
		require.NoError(t, p.Flow(t.Context()))
		require.Equal(t, time.Minute, time.Since(before), "one chunk is enough")
		require.NoError(t, p.Drain(t.Context()))
		require.Zero(t, p.Stats().Lost)
	})
}

func TestCloseFlushes(t *testing.T) {
	var w buffer
	p := newPort(t, &w)
	for _, c := range "last words" {
		p.out8(regData, uint8(c))
	}
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	require.Equal(t, "last words", w.String())
	p.out8(regData, 'x')
	require.Equal(t, uint64(1), p.Stats().Lost)
	require.NotZero(t, p.in(regLSR)&lsrTHRE)
}

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		p := newPort(t, w)
		p.full()
		begin := time.Now()
		require.ErrorContains(t, p.Close(), "a write blocks for ever with 65536 bytes left")
		require.Equal(t, closeLimit, time.Since(begin), "there is no deadline to set")
		close(w.open)
	})
	synctest.Test(t, func(t *testing.T) {
		w := deadlineValve{newValve()}
		p := newPort(t, w)
		p.full()
		begin := time.Now()
		require.ErrorContains(t, p.Close(), "65536 bytes dropped")
		require.Equal(t, closeLimit, time.Since(begin))
		require.ErrorIs(t, p.Stats().WriteErr, os.ErrDeadlineExceeded)
	})
}

// A vCPU that is held in a write does not wait for Close.
func TestCloseReleasesHeldGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newValve()
		p := newPort(t, w)
		p.full()
		released := make(chan time.Duration)
		begin := time.Now()
		go func() {
			p.out8(regData, 'x')
			released <- time.Since(begin)
		}()
		synctest.Wait()
		go p.Close()
		require.Zero(t, <-released)
		close(w.open)
		require.NoError(t, p.Close())
	})
}

type brokenWriter struct{ short bool }

var errBroken = errors.New("broken")

func (w brokenWriter) Write(p []byte) (int, error) {
	if w.short {
		return len(p) / 2, nil
	}
	return -1, errBroken
}

func TestWriteErrorsAreCounted(t *testing.T) {
	p := newPort(t, brokenWriter{})
	for range 10 {
		p.out8(regData, 'x')
	}
	require.NoError(t, p.Drain(t.Context()))
	s := p.Stats()
	require.Equal(t, uint64(10), s.Lost)
	require.ErrorIs(t, s.WriteErr, errBroken)

	p = newPort(t, brokenWriter{short: true})
	p.out8(regData, 'x')
	p.out8(regData, '\n')
	require.NoError(t, p.Drain(t.Context()))
	require.Error(t, p.Stats().WriteErr)
}

func BenchmarkTransmit(b *testing.B) {
	var w buffer
	p := newPort(b, discard{&w})
	c := []byte{'x'}
	b.ReportAllocs()
	for b.Loop() {
		p.Write(regData, c)
	}
}

type discard struct{ *buffer }

func (discard) Write(p []byte) (int, error) { return len(p), nil }
