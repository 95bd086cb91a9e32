package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"godwit/migration"
	"godwit/migration/policy"
)

var _ migration.HintSource = (*Machine)(nil)

// Machine is a guest at its source. It runs from the start.
type Machine struct {
	script
	world   *World
	regions []migration.Region
	config  []byte
	State   []byte // what SaveState writes
	// Hints, where set, is how the guest answers FreePages.
	Hints func(ctx context.Context, found func([]migration.Extent)) error
	// AllSet has the log begin with every touched page in it, as KVM's may.
	AllSet bool

	cpu     sync.RWMutex // held shared by a write, exclusively by pausing
	paused  bool         // guarded by cpu
	bits    sync.Mutex   // guards what follows
	touched migration.Bitmap
	dirty   migration.Bitmap
	logging bool
	pace    policy.Pace
	paces   []policy.Pace // all that were set

	pauseTried, released bool // engine's goroutine only
	ended                chan struct{}
	reason               error
}

// NewMachine is a running guest with untouched memory of the given layout.
// Close gives its memory back.
func NewMachine(w *World, layout ...migration.Extent) (*Machine, error) {
	config, err := json.Marshal(layout)
	if err != nil {
		return nil, err
	}
	regions, err := mapRAM(layout)
	if err != nil {
		return nil, errors.Join(err, unmapRAM(regions))
	}
	return newMachine(w, layout, config, regions)
}

// newMachine is NewMachine with memory that is mapped already.
func newMachine(w *World, layout []migration.Extent, config []byte, regions []migration.Region) (*Machine, error) {
	last := layout[len(layout)-1]
	words := ((last.GPA+last.Len)/pageSize + 63) / 64
	m := &Machine{world: w, regions: regions, config: config, State: []byte("state of the simulated machine"), pace: policy.FullSpeed,
		touched: make(migration.Bitmap, words), dirty: make(migration.Bitmap, words), ended: make(chan struct{})}
	if err := w.lock("source"); err != nil {
		return nil, errors.Join(err, unmapRAM(regions))
	}
	w.run("source", true)
	return m, nil
}

// Close gives the memory back.
func (m *Machine) Close() error { return unmapRAM(m.regions) }

// Write changes the page at gpa by f, as the guest would: the bytes land, then
// the page counts as dirty. It returns false, and does nothing, while the
// machine is paused.
func (m *Machine) Write(gpa uint64, f func(page []byte)) bool {
	m.cpu.RLock()
	defer m.cpu.RUnlock()
	if m.paused {
		return false
	}
	m.write(gpa, f)
	return true
}

func (m *Machine) write(gpa uint64, f func(page []byte)) {
	f(page(m.regions, gpa))
	m.bits.Lock()
	defer m.bits.Unlock()
	w, bit := gpa/pageSize/64, uint64(1)<<(gpa/pageSize%64)
	m.touched[w] |= bit
	if m.logging {
		m.dirty[w] |= bit
	}
}

// Page is the page at gpa, for comparing.
func (m *Machine) Page(gpa uint64) []byte { return page(m.regions, gpa) }

// End lets the guest end by itself.
func (m *Machine) End(reason error) {
	m.reason = reason
	close(m.ended)
}

// Unharmed says why the machine is not as it was before a migration that
// failed: running, log off, full speed, disk its own.
func (m *Machine) Unharmed() error {
	m.cpu.RLock()
	defer m.cpu.RUnlock()
	m.bits.Lock()
	defer m.bits.Unlock()
	switch {
	case m.paused:
		return errors.New("the source is paused")
	case m.logging:
		return errors.New("the source's dirty log is on")
	case !m.pace.Free():
		return fmt.Errorf("the source is slowed to %v", m.pace)
	case m.released:
		return errors.New("the source has not got its disk back")
	}
	return nil
}

// Config implements migration.Source.
func (m *Machine) Config() ([]byte, error) {
	done, err := m.enter(m.world, "Config")
	defer done()
	return m.config, err
}

// Memory implements migration.Source.
func (m *Machine) Memory() []migration.Region { return m.regions }

// Touched implements migration.Source.
func (m *Machine) Touched() ([]migration.Extent, error) {
	done, err := m.enter(m.world, "Touched")
	defer done()
	if err != nil {
		return nil, err
	}
	m.bits.Lock()
	defer m.bits.Unlock()
	if !m.logging && !m.paused {
		m.world.breach("Touched called with the log off")
	}
	var es []migration.Extent
	for gfn := range uint64(len(m.touched)) * 64 {
		if m.touched[gfn/64]>>(gfn%64)&1 == 1 {
			es = append(es, migration.Extent{GPA: gfn * pageSize, Len: pageSize})
		}
	}
	return es, nil
}

// StartDirtyLog implements migration.Source.
func (m *Machine) StartDirtyLog() error {
	done, err := m.enter(m.world, "StartDirtyLog")
	defer done()
	if err != nil {
		return err
	}
	m.bits.Lock()
	defer m.bits.Unlock()
	m.logging = true
	clear(m.dirty)
	if m.AllSet {
		copy(m.dirty, m.touched)
	}
	return nil
}

// StopDirtyLog implements migration.Source.
func (m *Machine) StopDirtyLog() error {
	done, err := m.enter(m.world, "StopDirtyLog")
	defer done()
	if err != nil {
		return err
	}
	m.bits.Lock()
	defer m.bits.Unlock()
	m.logging = false
	return nil
}

// Dirty implements migration.Source.
func (m *Machine) Dirty(dst migration.Bitmap) error {
	done, err := m.enter(m.world, "Dirty")
	defer done()
	if err != nil {
		return err
	}
	m.bits.Lock()
	defer m.bits.Unlock()
	if !m.logging {
		m.world.breach("Dirty called with the log off")
	}
	for i, w := range m.dirty {
		dst[i] |= w
	}
	return nil
}

// Clear implements migration.Source.
func (m *Machine) Clear(gfns []uint64) error {
	done, err := m.enterShared(m.world, "Clear")
	defer done()
	if err != nil {
		return err
	}
	m.bits.Lock()
	defer m.bits.Unlock()
	if !m.logging {
		m.world.breach("Clear called with the log off")
	}
	for i, gfn := range gfns {
		if i > 0 && gfn <= gfns[i-1] {
			m.world.breach("Clear called with page %#x after %#x", gfn, gfns[i-1])
		}
		if page(m.regions, gfn*pageSize) == nil {
			m.world.breach("Clear of page %#x, which is not RAM", gfn)
			continue
		}
		m.dirty[gfn/64] &^= 1 << (gfn % 64)
	}
	return nil
}

// CanHint implements migration.HintSource.
func (m *Machine) CanHint() error {
	if m.Hints == nil {
		return errors.New("the simulated guest does not hint")
	}
	return m.failing("CanHint")
}

// FreePages implements migration.HintSource.
func (m *Machine) FreePages(ctx context.Context, found func([]migration.Extent)) error {
	done, err := m.enter(m.world, "FreePages")
	defer done()
	if err != nil {
		return err
	}
	m.bits.Lock()
	logging, paused := m.logging, m.paused
	m.bits.Unlock()
	if !logging || paused {
		m.world.breach("FreePages called with the log on %v, paused %v", logging, paused)
	}
	return m.Hints(ctx, found)
}

// VCPUs implements migration.Source.
func (m *Machine) VCPUs() int { return 1 }

// CanPace implements migration.Source. It can, unless the test has it fail.
func (m *Machine) CanPace(policy.Pace) error { return m.failing("CanPace") }

// SetPace implements migration.Source. A pace that fails is in force all the
// same, as the contract allows.
func (m *Machine) SetPace(p policy.Pace) error {
	done, err := m.enter(m.world, "SetPace")
	defer done()
	m.bits.Lock()
	defer m.bits.Unlock()
	if p != p.Clamp() {
		m.world.breach("SetPace(%+v)", p)
	}
	if p.By == policy.ByDirtyLimit && !m.logging {
		m.world.breach("SetPace(%v) with the log off", p)
	}
	if err != nil && p.Free() {
		return err
	}
	m.pace, m.paces = p, append(m.paces, p)
	return err
}

// Pace is how the guest is slowed at present.
func (m *Machine) Pace() policy.Pace {
	m.bits.Lock()
	defer m.bits.Unlock()
	return m.pace
}

// Paces lists every pace that was set, in order.
func (m *Machine) Paces() []policy.Pace {
	m.bits.Lock()
	defer m.bits.Unlock()
	return slices.Clone(m.paces)
}

// Pause implements migration.Source.
func (m *Machine) Pause(ctx context.Context) error {
	done, err := m.enter(m.world, "Pause")
	defer done()
	m.pauseTried = true
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.cpu.Lock()
	defer m.cpu.Unlock()
	if m.paused {
		m.world.breach("Pause called twice")
	}
	m.paused = true
	m.world.run("source", false)
	return nil
}

// Resume implements migration.Source.
func (m *Machine) Resume() error {
	done, err := m.enter(m.world, "Resume")
	defer done()
	if !m.pauseTried || m.released {
		m.world.breach("Resume called with paused %v, disk released %v", m.paused, m.released)
	}
	if err != nil {
		return err
	}
	m.cpu.Lock()
	defer m.cpu.Unlock()
	m.paused, m.pauseTried = false, false
	m.world.run("source", true)
	return nil
}

// SaveState implements migration.Source.
func (m *Machine) SaveState(w io.Writer) error {
	done, err := m.enter(m.world, "SaveState")
	defer done()
	if !m.paused {
		m.world.breach("SaveState called while running")
	}
	if err != nil {
		return err
	}
	_, err = w.Write(m.State)
	return err
}

// Release implements migration.Source.
func (m *Machine) Release() error {
	done, err := m.enter(m.world, "Release")
	defer done()
	if !m.paused {
		m.world.breach("Release called while running")
	}
	m.released = true
	if err != nil {
		return err
	}
	m.world.unlock("source")
	return nil
}

// Reclaim implements migration.Source.
func (m *Machine) Reclaim() error {
	done, err := m.enter(m.world, "Reclaim")
	defer done()
	if !m.released {
		m.world.breach("Reclaim called without Release")
	}
	if err == nil {
		err = m.world.lock("source")
	}
	if err == nil {
		m.released = false
	}
	return err
}

// Ended implements migration.Source.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// EndReason implements migration.Source.
func (m *Machine) EndReason() error { return m.reason }
