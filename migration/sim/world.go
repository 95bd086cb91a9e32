package sim

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"godwit/migration"
)

// ErrDiskHeld says that the other side holds the disk's lock.
var ErrDiskHeld = errors.New("disk is locked by another process")

// World is what is true of all copies of one guest.
type World struct {
	mu      sync.Mutex
	holder  string // of the disk's lock
	running map[string]bool
	broken  []error
}

// NewWorld is a world without machines.
func NewWorld() *World { return &World{running: map[string]bool{}} }

// Check returns everything that broke a rule so far, nil if nothing did.
func (w *World) Check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.broken...)
}

// Running lists who runs the guest: "source", "target" or both, which is an
// error of Check too.
func (w *World) Running() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for _, n := range []string{"source", "target"} {
		if w.running[n] {
			names = append(names, n)
		}
	}
	return names
}

func (w *World) breach(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, fmt.Errorf(format, args...))
}

func (w *World) run(name string, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running[name] = on
	if w.running["source"] && w.running["target"] {
		w.broken = append(w.broken, fmt.Errorf("%s starts while another copy runs", name))
	}
	if on && w.holder != name {
		w.broken = append(w.broken, fmt.Errorf("%s runs without its disk", name))
	}
}

func (w *World) lock(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holder != "" && w.holder != name {
		return fmt.Errorf("%w: %s", ErrDiskHeld, w.holder)
	}
	w.holder = name
	return nil
}

func (w *World) unlock(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holder == name {
		w.holder = ""
	}
}

// script is what a test may change about any method of a machine.
type script struct {
	mu    sync.Mutex
	fail  map[string]error
	hook  func(method string)
	calls []string
	busy  int // methods being called
	share int // of them, those that may be called side by side
}

// Fail makes a method fail with err from now on; nil heals it. The method then
// has no effect.
func (s *script) Fail(method string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.fail = map[string]error{}
	}
	s.fail[method] = err
}

// Hook sets what runs before each method's effect, in the caller's goroutine.
func (s *script) Hook(f func(method string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// Calls lists the methods called so far, in order.
func (s *script) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

// failing says whether a method that anyone may call at any time must fail.
func (s *script) failing(method string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fail[method]
}

// enter notes a call and says whether it must fail. Its first result ends the
// call.
func (s *script) enter(w *World, method string) (func(), error) { return s.call(w, method, 0) }

// enterShared is enter for a method that may be called while it is being
// called.
func (s *script) enterShared(w *World, method string) (func(), error) { return s.call(w, method, 1) }

func (s *script) call(w *World, method string, shared int) (func(), error) {
	s.mu.Lock()
	s.calls = append(s.calls, method)
	s.busy++
	s.share += shared
	if s.busy > 1 && s.busy != s.share {
		defer w.breach("%s called while another call is under way", method)
	}
	err, hook := s.fail[method], s.hook
	s.mu.Unlock()
	if hook != nil {
		hook(method)
	}
	return func() {
		s.mu.Lock()
		s.busy--
		s.share -= shared
		s.mu.Unlock()
	}, err
}

// mapRAM maps memory for a layout.
func mapRAM(layout []migration.Extent) ([]migration.Region, error) {
	var regions []migration.Region
	for _, e := range layout {
		mem, err := unix.Mmap(-1, 0, int(e.Len), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return regions, fmt.Errorf("map %d bytes of guest memory: %w", e.Len, err)
		}
		if e.Len >= hugePage {
			_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // advice: without it pages are small
		}
		regions = append(regions, migration.Region{GPA: e.GPA, Bytes: mem})
	}
	return regions, nil
}

func unmapRAM(regions []migration.Region) error {
	var errs []error
	for _, r := range regions {
		errs = append(errs, unix.Munmap(r.Bytes))
	}
	return errors.Join(errs...)
}

func page(regions []migration.Region, gpa uint64) []byte {
	for _, r := range regions {
		if off := gpa - r.GPA; gpa >= r.GPA && off < uint64(len(r.Bytes)) {
			off &^= pageSize - 1
			return r.Bytes[off : off+pageSize : off+pageSize]
		}
	}
	return nil
}

const (
	pageSize = 4096
	hugePage = 2 << 20
)
