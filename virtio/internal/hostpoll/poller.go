package hostpoll

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// What to wait for, and what a handler is told.
const (
	In  = unix.EPOLLIN
	Out = unix.EPOLLOUT
	// Gone comes unasked: the other side hung up, or the descriptor failed.
	Gone = unix.EPOLLHUP | unix.EPOLLERR
)

// Poller watches descriptors. Its methods may be called from any goroutine,
// handlers included.
type Poller struct {
	file *os.File // the epoll descriptor
	raw  syscall.RawConn
	done chan struct{}

	mu       sync.Mutex
	handlers map[uint64]func(events uint32)
	last     uint64
}

// New makes a Poller. Close it.
func New() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		// So that os.NewFile hands it to the runtime's poller.
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("make an epoll descriptor: %w; raise the limit of open files (ulimit -n)", err)
	}
	p := &Poller{file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{}), handlers: map[uint64]func(uint32){}}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("watch an epoll descriptor: %w", err), p.file.Close())
	}
	go p.run()
	return p, nil
}

// Watch is a descriptor that a Poller knows.
type Watch struct {
	p  *Poller
	fd int
	id uint64

	accepts int // of a listener in this turn; the handler's

	mu    sync.Mutex
	armed uint32
	gone  bool
}

// Add makes fd known; it must stay open until Remove. The handler is called by
// the Poller's goroutine, so it must be short, and may come once more after
// Remove. The error is unix.EPERM for a regular file, which never makes anybody
// wait.
func (p *Poller) Add(fd int, handler func(events uint32)) (*Watch, error) {
	w := &Watch{p: p, fd: fd}
	p.mu.Lock()
	p.last++
	w.id = p.last
	p.handlers[w.id] = func(events uint32) {
		w.fired()
		handler(events)
	}
	p.mu.Unlock()
	if err := w.control(unix.EPOLL_CTL_ADD, unix.EPOLLONESHOT); err != nil {
		p.forget(w.id)
		return nil, fmt.Errorf("watch a descriptor: %w", err)
	}
	return w, nil
}

// control calls epoll_ctl. The event carries the watch's id, not the descriptor:
// a number may be somebody else's by the time the event is looked at.
func (w *Watch) control(op int, events uint32) error {
	e := unix.EpollEvent{Events: events, Fd: int32(uint32(w.id)), Pad: int32(uint32(w.id >> 32))}
	var err error
	if cerr := w.p.raw.Control(func(ep uintptr) { err = unix.EpollCtl(int(ep), op, w.fd, &e) }); cerr != nil {
		return cerr
	}
	return err
}

// Arm asks for one call of the handler when one of events holds, now or later.
// What was asked before and has not come stays asked.
func (w *Watch) Arm(events uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone || w.armed|events == w.armed {
		return
	}
	w.armed |= events
	// It fails for a Poller that is closed, and then nobody waits.
	_ = w.control(unix.EPOLL_CTL_MOD, w.armed|unix.EPOLLONESHOT)
}

// fired notes that the descriptor is disarmed. Whoever still wants something
// asks again: it will try first.
func (w *Watch) fired() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = 0
}

// Remove ends the watch. The descriptor is the caller's to close afterwards.
func (w *Watch) Remove() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return
	}
	w.gone = true
	w.p.forget(w.id)
	_ = w.control(unix.EPOLL_CTL_DEL, 0) // as for Arm
}

func (p *Poller) forget(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.handlers, id)
}

func (p *Poller) run() {
	defer close(p.done)
	var events [64]unix.EpollEvent
	for {
		n := 0
		err := p.raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events[:], 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:n] {
			p.mu.Lock()
			h := p.handlers[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
			p.mu.Unlock()
			if h != nil {
				h(e.Events)
			}
		}
	}
}

// Close ends the Poller and waits for a handler that runs.
func (p *Poller) Close() error {
	err := p.file.Close()
	<-p.done
	return err
}
