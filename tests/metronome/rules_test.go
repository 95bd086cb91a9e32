package metronome_test

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
	"godwit/migration"
	"godwit/migration/policy"
	"godwit/migration/sabotage"
	"godwit/migration/wire"
	"godwit/vmm"
)

// busy is a guest of 8192 pages that writes to 20,000 a second, here and there. In
// someWrites it writes to some 3,700 of them; to write to all of these again, and
// so to hide what was lost, would take it seconds.
const (
	busy       = "fill=32 ws=32 rate=20000 beat=20"
	someWrites = 5000
)

// frameOf says what frame begins at p[0], if one does: a header ends with its own
// checksum. The engine begins every frame with a write of its own.
func frameOf(p []byte) (typ wire.Type, last, ok bool) {
	if len(p) < wire.HeaderSize || wire.Checksum(p[:20]) != binary.LittleEndian.Uint32(p[20:]) {
		return 0, false, false
	}
	return wire.Type(p[0]), p[1] == wire.FlagLast, true
}

// sourceWrites waits until the guest has done n more writes, as long as it runs.
func (c *copyHere) sourceWrites(ctx context.Context, n uint64) error {
	in, err := readInfo(ctx, c.m)
	for goal := writes(in) + n; err == nil && writes(in) < goal; in, err = readInfo(ctx, c.m) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.m.State() != vmm.StateRunning {
			return nil // paused for the last round
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

// beforeRound calls f before a ROUND frame leaves that is not the last one.
type beforeRound struct {
	net.Conn
	f func() error
}

func (c *beforeRound) Write(p []byte) (int, error) {
	if typ, last, ok := frameOf(p); ok && typ == wire.TypeRound && !last {
		if err := c.f(); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

// afterPages calls f after page data has left, for the first few writes.
type afterPages struct {
	net.Conn
	left int
	f    func() error
}

func (c *afterPages) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err == nil && len(p) >= metronome.PageSize && c.left > 0 {
		c.left--
		err = c.f()
	}
	return n, err
}

// Between the reading of a chunk's pages and the end of its sending the guest
// writes a lot, some of it to the chunk. Only if bits are cleared before pages
// are read do these writes arrive: each stream waits 16 times for 300 writes to
// 8192 pages, some nine of which meet its chunk of 256.
func TestRuleClearOrder(t *testing.T) {
	t.Parallel()
	c := bootHere(t, guest(2, 128, busy))
	ctx := deadline(t)
	next, _, err := c.move(route{
		o: migration.SendOptions{Streams: 2, Policies: policy.Set{Stop: rounds(3)}},
		dialed: func(conn net.Conn, index int) net.Conn {
			return &afterPages{conn, 16, func() error { return c.sourceWrites(ctx, 300) }}
		},
	})
	require.NoError(t, err)
	in := next.swept()
	require.Zero(t, in.Bad, "%+v", in.Kinds)
}

// A device, here a goroutine, writes guest memory all through the migration. What
// it wrote last must arrive, although KVM's log knows nothing of it.
func TestRuleVMMDirty(t *testing.T) {
	t.Parallel()
	for _, verify := range []bool{false, true} {
		c := bootHere(t, guest(2, 128, busy))
		ctx := deadline(t)
		w := newMailboxWriter(c)
		next, _, err := c.move(route{
			o: migration.SendOptions{Streams: 2, Verify: verify, Policies: policy.Set{Stop: rounds(3)}},
			source: func(s migration.Source) migration.Source {
				return &quietWhenPaused{s, w}
			},
			// Every page of the mailbox is written again after round 1 and 2 have left.
			dialed: func(conn net.Conn, index int) net.Conn {
				return &beforeRound{conn, func() error { return w.wait(ctx, 2) }}
			},
		})
		w.stop()
		require.NoError(t, err)
		require.Greater(t, w.last, uint64(4))
		var got [8]byte
		for page := range uint64(metronome.MailboxPages) {
			require.NoError(t, next.m.Memory().ReadAt(got[:], metronome.MailboxGPA+page*metronome.PageSize))
			require.Equal(t, w.last, binary.LittleEndian.Uint64(got[:]), "page %d of the mailbox at the destination, verify %v", page, verify)
		}
		require.Zero(t, next.swept().Bad)
	}
}

// mailboxWriter writes a counter to every page of the mailbox, over and over.
type mailboxWriter struct {
	c      *copyHere
	turns  atomic.Uint64
	last   uint64 // in all pages, after stop
	once   sync.Once
	stopIt chan struct{}
	done   chan struct{}
}

func newMailboxWriter(c *copyHere) *mailboxWriter {
	w := &mailboxWriter{c: c, stopIt: make(chan struct{}), done: make(chan struct{})}
	c.t.Cleanup(w.stop) // before the machine is closed
	go w.run()
	return w
}

func (w *mailboxWriter) run() {
	defer close(w.done)
	for n := uint64(1); ; n++ {
		p := binary.LittleEndian.AppendUint64(nil, n)
		for page := range uint64(metronome.MailboxPages) {
			if err := w.c.m.Memory().WriteAt(p, metronome.MailboxGPA+page*metronome.PageSize); err != nil {
				w.c.t.Error(err)
				return
			}
		}
		w.last = n
		w.turns.Store(n)
		select {
		case <-w.stopIt:
			return
		case <-time.After(100 * time.Microsecond): // leaves the processor to others
		}
	}
}

func (w *mailboxWriter) stop() {
	w.once.Do(func() { close(w.stopIt) })
	<-w.done
}

// wait waits for n more turns.
func (w *mailboxWriter) wait(ctx context.Context, n uint64) error {
	for goal := w.turns.Load() + n; w.turns.Load() < goal; {
		if err := ctx.Err(); err != nil {
			return err
		}
		time.Sleep(100 * time.Microsecond)
	}
	return nil
}

// quietWhenPaused stops the writer with the machine, as a device would.
type quietWhenPaused struct {
	migration.Source
	w *mailboxWriter
}

func (q *quietWhenPaused) Pause(ctx context.Context) error {
	q.w.stop()
	return q.Source.Pause(ctx)
}

// One stream carries nearly all of round 1, and the network delivers it late. The
// other carries nearly all of what follows, with newer copies of the same pages.
func TestRuleBarrier(t *testing.T) {
	t.Parallel()
	c := bootHere(t, guest(2, 128, busy))
	h := newHoldUp(deadline(t), c)
	next, _, err := c.move(route{
		o:        migration.SendOptions{Streams: 2, Policies: policy.Set{Stop: rounds(2)}},
		dialed:   h.dialed,
		accepted: h.accepted,
	})
	require.NoError(t, err)
	in := next.swept()
	require.Zero(t, in.Bad, "%+v", in.Kinds)
}

// Without the barrier the late stream is held until everything newer has landed.
// With it nothing newer can come, however long it is held: this long is enough to
// see that the engine bears it.
const heldAnyway = 300 * time.Millisecond

// holdUp is a network with a slow and a fast way.
type holdUp struct {
	ctx      context.Context
	c        *copyHere
	sent     [4]chan struct{} // closed when the slow way has been given its share of round n
	newer    [4]chan struct{} // closed when the fast way has been given its share of round n
	goal     atomic.Int64     // bytes that the fast way carries up to the last ROUND; 0: not known yet
	landed   chan struct{}    // closed when all of these are in the destination's memory
	landOnce sync.Once
	mu       sync.Mutex
	fast     string // local address of the fast way's connection
}

func newHoldUp(ctx context.Context, c *copyHere) *holdUp {
	h := &holdUp{ctx: ctx, c: c, landed: make(chan struct{})}
	for i := range h.sent {
		h.sent[i], h.newer[i] = make(chan struct{}), make(chan struct{})
	}
	return h
}

func (h *holdUp) wait(c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-h.ctx.Done():
		return h.ctx.Err()
	}
}

// dialed makes the first data connection the slow way and the second the fast one.
func (h *holdUp) dialed(conn net.Conn, index int) net.Conn {
	switch index {
	case 1:
		w := &slowWay{Conn: conn, h: h, late: make(chan []byte, 1<<16), closed: make(chan struct{}), round: 1}
		go w.deliver()
		return w
	case 2:
		h.mu.Lock()
		defer h.mu.Unlock()
		h.fast = conn.LocalAddr().String()
		return &fastWay{Conn: conn, h: h, round: 1}
	}
	return conn
}

// slowWay takes what it is given at once, and delivers it late.
type slowWay struct {
	net.Conn
	h      *holdUp
	late   chan []byte
	round  int // being written
	once   sync.Once
	closed chan struct{}
}

func (w *slowWay) Write(p []byte) (int, error) {
	typ, _, ok := frameOf(p)
	switch {
	case ok && typ == wire.TypeRaw && w.round > 1:
		// The fast way takes the rest of every later round.
		if err := w.h.wait(w.h.newer[w.round]); err != nil {
			return 0, err
		}
	case ok && typ == wire.TypeRound && w.round == 1:
		// So that round 2 holds newer copies of what round 1 held.
		if err := w.h.c.sourceWrites(w.h.ctx, someWrites); err != nil {
			return 0, err
		}
	}
	if string(p[:min(len(p), len(wire.Preamble))]) == wire.Preamble {
		return w.Conn.Write(p)
	}
	w.late <- append([]byte(nil), p...)
	if ok && typ == wire.TypeRound {
		close(w.h.sent[w.round])
		w.round++
	}
	return len(p), nil
}

func (w *slowWay) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Conn.Close()
}

// deliver passes on what the slow way was given. It ends with the connection, or
// with the test's patience.
func (w *slowWay) deliver() {
	if w.h.wait(w.h.sent[1]) != nil {
		return
	}
	if sabotage.On(sabotage.Barrier) {
		if w.h.wait(w.h.landed) != nil {
			return
		}
	} else {
		time.Sleep(heldAnyway)
	}
	for {
		select {
		case b := <-w.late:
			if _, err := w.Conn.Write(b); err != nil {
				return // the engine learns of it from its reader
			}
		case <-w.closed:
			return
		}
	}
}

// fastWay leaves round 1 to the slow way.
type fastWay struct {
	net.Conn
	h     *holdUp
	round int
	bytes int64
}

func (w *fastWay) Write(p []byte) (int, error) {
	typ, last, ok := frameOf(p)
	if ok && typ == wire.TypeRaw && w.round == 1 {
		if err := w.h.wait(w.h.sent[1]); err != nil {
			return 0, err
		}
	}
	n, err := w.Conn.Write(p)
	w.bytes += int64(n)
	if ok && typ == wire.TypeRound {
		if last {
			w.h.goal.Store(w.bytes)
		}
		close(w.h.newer[w.round])
		w.round++
	}
	return n, err
}

// accepted finds the fast way's other end.
func (h *holdUp) accepted(conn net.Conn) net.Conn { return &landing{Conn: conn, h: h} }

// landing sees when the destination asks for more than the fast way has for it:
// then it has put everything before into memory.
type landing struct {
	net.Conn
	h     *holdUp
	bytes int64
}

func (l *landing) Read(p []byte) (int, error) {
	if goal := l.h.goal.Load(); goal > 0 && l.bytes >= goal && l.isFast() {
		l.h.landOnce.Do(func() { close(l.h.landed) })
	}
	n, err := l.Conn.Read(p)
	l.bytes += int64(n)
	return n, err
}

func (l *landing) isFast() bool {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	return l.Conn.RemoteAddr().String() == l.h.fast
}
