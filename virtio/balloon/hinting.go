package balloon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"godwit/kvm/guestmem"
	"godwit/virtio/queue"
)

// Values of free_page_hint_cmd_id: virtio 1.2, 5.5.6.5. All others name a session.
const (
	cmdStop  = 0 // VIRTIO_BALLOON_CMD_ID_STOP
	cmdDone  = 1 // VIRTIO_BALLOON_CMD_ID_DONE
	cmdFirst = 1 << 31
)

// hinting is the state of free page hinting.
//
//	        FreePages             its id comes            another id comes
//	idle ────────────> requested ────────────> hinting ────────────────> told
//	  ^                    │                      │                        │
//	  └────────────────────┴── FreePages returns ─┴────────────────────────┘
//
// Only in hinting do pages count. So what is still in the queue from a session
// that is over means nothing.
type hinting struct {
	command atomic.Uint32 // what the driver reads

	mu      sync.Mutex
	last    uint32 // the latest session's id
	phase   hintPhase
	session *session // nil in idle
}

// session is one call of FreePages.
type session struct {
	found func([]guestmem.Extent)
	told  chan struct{} // closed when the driver has told all it knows
	gone  chan struct{} // closed by a reset, which has ended the session then
}

type hintPhase int

const (
	hintIdle hintPhase = iota
	hintRequested
	hintHinting
	hintTold
)

var (
	errHintBusy = errors.New("the guest is being asked for its free pages already")
	errReset    = errors.New("the guest has reset its balloon")
)

// FreePages asks the driver which pages are free, and hands them to found, runs of
// whole pages in no order, as they come. It returns when the driver has told all,
// or when ctx ends, with its cause; then the session is over, found is not called any
// more, and the driver has its pages back. found is called by one goroutine at a
// time and must not block.
//
// A page that found is given was free after FreePages was called. The guest may
// use it again at any moment, also before found is called: who leaves it out of
// a copy must know all writes since before FreePages was called.
//
// A guest whose free pages hold a pattern other than zeros is asked as well, but
// found hears nothing of it: the copy would be without the pattern.
func (d *Device) FreePages(ctx context.Context, found func([]guestmem.Extent)) error {
	if err := d.CanHint(); err != nil {
		return err
	}
	h := &d.hint
	s, err := h.begin(found)
	if err != nil {
		return fmt.Errorf("virtio-balloon: %w", err)
	}
	d.configChanged()
	select {
	case <-s.told:
	case <-s.gone:
		return fmt.Errorf("virtio-balloon: %w", errReset)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if h.end(s) {
		d.configChanged()
	}
	return err
}

// CanHint says why there is nobody to ask.
func (d *Device) CanHint() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.cfg.Hinting:
		return fmt.Errorf("virtio-balloon: %w: the machine has a balloon without hinting; start it with --balloon hinting", ErrNoHinting)
	case d.notify == nil || d.features&featureHinting == 0 || d.roles[roleHinting] < 0:
		return fmt.Errorf("virtio-balloon: %w: no driver, or one without VIRTIO_BALLOON_F_FREE_PAGE_HINT, runs the balloon", ErrNoHinting)
	}
	return nil
}

// begin opens a session with an id that no earlier one had.
func (h *hinting) begin(found func([]guestmem.Extent)) (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.session != nil {
		return nil, errHintBusy
	}
	h.last = max(h.last+1, cmdFirst) // wraps to the first
	h.phase = hintRequested
	h.session = &session{found: found, told: make(chan struct{}), gone: make(chan struct{})}
	h.command.Store(h.last)
	return h.session, nil
}

// read gives the latest session, and the command that the driver reads.
func (h *hinting) read() (last, command uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last, h.command.Load()
}

// set is for a device that comes from elsewhere.
func (h *hinting) set(last, command uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = last
	h.command.Store(command)
}

// end closes the session, unless a reset has. Nobody is in found when it returns.
func (h *hinting) end(s *session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.session != s {
		return false
	}
	h.phase, h.session = hintIdle, nil
	h.command.Store(cmdDone)
	return true
}

// abandon is a reset: a new driver reads that there is no session.
func (h *hinting) abandon() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.session != nil {
		close(h.session.gone)
	}
	h.phase, h.session = hintIdle, nil
	h.command.Store(cmdStop)
}

// says takes in a command id from the driver.
func (h *hinting) says(id uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.phase == hintRequested && id == h.last:
		h.phase = hintHinting
	case h.phase == hintHinting && id != h.last:
		h.phase = hintTold
		close(h.session.told)
	}
}

// take hands pages on and says whether somebody wanted them.
func (h *hinting) take(extents []guestmem.Extent) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase != hintHinting {
		return false
	}
	h.session.found(extents)
	return true
}

// hints takes in a chain of the hint queue: a command id to read, or free pages as
// buffers to write, of which nobody writes any.
func (w *worker) hints(c *queue.Chain) {
	switch n := queue.Len(c.Readable()); {
	case n == 0:
	case n == int64(len(w.id)):
		c.Take(w.id[:])
		w.dev.hint.says(binary.LittleEndian.Uint32(w.id[:]))
	default:
		w.dev.stats.guestErrors.Add(1)
	}
	if bytes := w.list.whole(c); bytes > 0 && !w.poisoned() && w.dev.hint.take(w.list.extents) {
		w.dev.stats.hintedBytes.Add(bytes)
	}
}
