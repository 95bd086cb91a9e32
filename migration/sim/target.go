package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit/migration"
)

var _ migration.Target = (*Target)(nil)

// Host builds targets. Fail, Hook and Calls are those of every target it
// builds; "Build" is the building itself.
type Host struct {
	script
	world *World

	last   sync.Mutex
	target *Target
}

// NewHost is a destination in the world of a machine.
func NewHost(w *World) *Host { return &Host{world: w} }

// Target is the machine built last, nil if none was.
func (h *Host) Target() *Target {
	h.last.Lock()
	defer h.last.Unlock()
	return h.target
}

// Build is a migration.Builder. Memory that was offered is mapped for reading
// only, so that whoever writes it before Run crashes.
func (h *Host) Build(_ context.Context, offer migration.Offer) (migration.Target, error) {
	if offer.Memory != nil {
		defer offer.Memory.Close()
	}
	done, err := h.enter(h.world, "Build")
	defer done()
	if err != nil {
		return nil, err
	}
	var layout []migration.Extent
	if err := json.Unmarshal(offer.Config, &layout); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var regions []migration.Region
	if offer.Memory != nil {
		regions, err = mapFile(offer.Memory, layout, unix.PROT_READ)
	} else {
		regions, err = mapRAM(layout)
	}
	if err != nil {
		return nil, errors.Join(err, unmapRAM(regions))
	}
	t := &Target{host: h, regions: regions, frozen: offer.Memory != nil}
	h.last.Lock()
	defer h.last.Unlock()
	h.target = t
	return t, nil
}

// Target is a guest at its destination.
type Target struct {
	host    *Host
	regions []migration.Region
	State   []byte // what LoadState was given
	await   bool   // Expect was called
	loaded  bool
	locked  bool
	running bool
	aborted bool
	frozen  bool // the memory is the source's until Run
}

// Page is the page at gpa, for comparing.
func (t *Target) Page(gpa uint64) []byte { return page(t.regions, gpa) }

// Close gives the memory back, of a target that was not aborted.
func (t *Target) Close() error { return unmapRAM(t.regions) }

// Aborted says whether the machine was thrown away.
func (t *Target) Aborted() bool { return t.aborted }

// Memory implements migration.Target.
func (t *Target) Memory() []migration.Region { return t.regions }

// Rehearse lets the engine know what LoadState takes: as long as a test's hook.
func (t *Target) Rehearse() (time.Duration, error) {
	began := time.Now()
	done, err := t.host.enter(t.host.world, "Rehearse")
	defer done()
	if t.loaded || t.running || t.aborted {
		t.host.world.breach("Rehearse called with state loaded %v, running %v, aborted %v", t.loaded, t.running, t.aborted)
	}
	return time.Since(began), err
}

// Populate implements migration.Target. It may be called beside other methods,
// so it is not noted among the calls.
func (t *Target) Populate(extents []migration.Extent) error {
	t.host.mu.Lock()
	err := t.host.fail["Populate"]
	t.host.mu.Unlock()
	if t.frozen {
		t.host.world.breach("Populate of the source's own memory")
		return err
	}
	for _, e := range extents {
		if page(t.regions, e.GPA) == nil {
			t.host.world.breach("Populate of %#x bytes at %#x", e.Len, e.GPA)
			continue
		}
		for _, r := range t.regions {
			if off := e.GPA - r.GPA; e.GPA >= r.GPA && off < uint64(len(r.Bytes)) && e.Len >= hugePage {
				_ = unix.Madvise(r.Bytes[off:off+e.Len], unix.MADV_POPULATE_WRITE) // advice: without it pages come one by one
			}
		}
	}
	return err
}

// Expect holds the engine to its place among the calls.
func (t *Target) Expect() {
	done, _ := t.host.enter(t.host.world, "Expect")
	defer done()
	if t.await || t.loaded || t.running || t.aborted {
		t.host.world.breach("Expect called with state expected %v, loaded %v, running %v, aborted %v", t.await, t.loaded, t.running, t.aborted)
	}
	t.await = true
}

// LoadState implements migration.Target.
func (t *Target) LoadState(r io.Reader) error {
	done, err := t.host.enter(t.host.world, "LoadState")
	defer done()
	if !t.await {
		t.host.world.breach("LoadState called before Expect")
	}
	if err != nil {
		return err
	}
	t.State, err = io.ReadAll(r)
	t.loaded = err == nil
	return err
}

// Acquire implements migration.Target.
func (t *Target) Acquire() error {
	done, err := t.host.enter(t.host.world, "Acquire")
	defer done()
	if !t.loaded {
		t.host.world.breach("Acquire called before LoadState")
	}
	if err == nil {
		err = t.host.world.lock("target")
	}
	t.locked = err == nil
	return err
}

// Run implements migration.Target.
func (t *Target) Run() error {
	done, err := t.host.enter(t.host.world, "Run")
	defer done()
	if !t.locked || t.running || t.aborted {
		t.host.world.breach("Run called with disk %v, running %v, aborted %v", t.locked, t.running, t.aborted)
	}
	if err != nil {
		return err
	}
	if t.frozen {
		if err := thaw(t.regions); err != nil {
			return err
		}
		t.frozen = false
	}
	t.running = true
	t.host.world.run("target", true)
	return nil
}

// Abort implements migration.Target. The memory is gone afterwards: an engine
// that still wrote to it would crash.
func (t *Target) Abort() error {
	done, err := t.host.enter(t.host.world, "Abort")
	defer done()
	if t.running || t.aborted {
		t.host.world.breach("Abort called with running %v, aborted %v", t.running, t.aborted)
	}
	t.aborted = true
	t.host.world.unlock("target")
	return errors.Join(err, unmapRAM(t.regions))
}
