package mmio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"godwit/devices/bus"
	"godwit/devices/state"
	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/queue"
)

// Config is what a Transport is made of. All but Log must be set.
type Config struct {
	// ID names the saved state, for example "virtio/disk0".
	ID        string
	Memory    *guestmem.Memory
	Device    virtio.Device
	Interrupt bus.Interrupt
	// Log hears what a driver did wrong. Nil is silence.
	Log *slog.Logger
}

// Transport is one virtio-mmio device.
type Transport struct {
	id     string
	mem    *guestmem.Memory
	dev    virtio.Device
	irq    bus.Interrupt
	log    *slog.Logger
	maxima []uint16
	kicks  []*virtio.Kick

	// Workers set bits in these while a vCPU waits, holding mu, for workers to
	// stop; so they are not under mu.
	status     atomic.Uint32
	pending    atomic.Uint32 // InterruptStatus
	generation atomic.Uint32 // ConfigGeneration
	complaints atomic.Uint32 // messages logged

	mu             sync.Mutex // the rest, and every call to dev but for its config
	deviceSel      uint32
	driverSel      uint32
	driverFeatures uint64
	queueSel       uint32
	queues         []queueRegs
	active         bool // dev is activated
	paused         bool
	closed         bool
}

var (
	_ bus.Device      = (*Transport)(nil)
	_ state.Saver     = (*Transport)(nil)
	_ virtio.Notifier = (*Transport)(nil)
)

// maxQueues bounds what a device may have: each costs an eventfd.
const maxQueues = 1024

// New gives a reset device. Close it.
func New(cfg Config) (*Transport, error) {
	if cfg.Memory == nil || cfg.Device == nil || cfg.Interrupt == nil {
		return nil, fmt.Errorf("virtio-mmio %q: memory, device and interrupt must all be given", cfg.ID)
	}
	t := &Transport{
		id: cfg.ID, mem: cfg.Memory, dev: cfg.Device, irq: cfg.Interrupt, log: cfg.Log,
		maxima: cfg.Device.QueueSizes(),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if n := len(t.maxima); n == 0 || n > maxQueues {
		return nil, fmt.Errorf("virtio-mmio %q: %d queues; a device has 1 to %d", cfg.ID, n, maxQueues)
	}
	t.queues = make([]queueRegs, len(t.maxima))
	for i, m := range t.maxima {
		if m == 0 || m > queue.MaxSize || m&(m-1) != 0 {
			return nil, errors.Join(fmt.Errorf("virtio-mmio %q: queue %d has size %d, not a power of two up to %d", cfg.ID, i, m, queue.MaxSize), t.Close())
		}
		k, err := virtio.NewKick()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("virtio-mmio %q: %w", cfg.ID, err), t.Close())
		}
		t.kicks = append(t.kicks, k)
	}
	return t, nil
}

// Kicks gives a non-blocking eventfd per queue, to be bound to NotifyOffset with
// the queue's number as datamatch. The Transport owns them: unbind before Close.
func (t *Transport) Kicks() []int {
	fds := make([]int, len(t.kicks))
	for i, k := range t.kicks {
		fds[i] = k.Fd()
	}
	return fds
}

// Close stops the device, waits for its workers, and frees the eventfds. The
// vCPUs must have stopped before.
func (t *Transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.reset()
	var errs []error
	for _, k := range t.kicks {
		errs = append(errs, k.Close())
	}
	return errors.Join(errs...)
}

// Read implements bus.Device.
func (t *Transport) Read(off uint64, p []byte) {
	if off >= regConfig {
		t.dev.ReadConfig(off-regConfig, p)
		return
	}
	clear(p)
	if off%4 == 0 && len(p) == 4 {
		binary.LittleEndian.PutUint32(p, t.readRegister(off))
	}
}

func (t *Transport) readRegister(off uint64) uint32 {
	switch off {
	case regMagic:
		return magic
	case regVersion:
		return version
	case regDeviceID:
		return t.dev.Type()
	case regVendorID:
		return vendor
	case regInterruptStatus:
		return t.pending.Load()
	case regStatus:
		return t.status.Load()
	case regConfigGeneration:
		return t.generation.Load()
	case regSHMLenLow, regSHMLenHigh, regSHMBaseLow, regSHMBaseHigh:
		return 0xffffffff // 4.2.2: no such region
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch off {
	case regDeviceFeatures:
		return half(t.offered(), t.deviceSel)
	case regQueueNumMax:
		if t.queueSel < uint32(len(t.queues)) {
			return uint32(t.maxima[t.queueSel])
		}
	case regQueueReady:
		if q := t.selected(); q != nil && q.ready {
			return 1
		}
	}
	return 0
}

// Write implements bus.Device. A write of 0 to the status register, or of 0 to
// QueueReady of a live queue, waits for the request in hand.
func (t *Transport) Write(off uint64, p []byte) {
	if off >= regConfig {
		t.dev.WriteConfig(off-regConfig, p)
		return
	}
	if off%4 != 0 || len(p) != 4 {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	switch off {
	case regQueueNotify:
		t.kick(v)
		return
	case regInterruptACK:
		t.pending.And(^v)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	switch off {
	case regDeviceFeaturesSel:
		t.deviceSel = v
	case regDriverFeaturesSel:
		t.driverSel = v
	case regDriverFeatures:
		t.writeFeatures(v)
	case regQueueSel:
		t.queueSel = v
	case regStatus:
		t.writeStatus(v)
	default:
		t.writeQueue(off, v)
	}
}

// kick is for a guest, or a KVM, without ioeventfd.
func (t *Transport) kick(n uint32) {
	if n >= uint32(len(t.kicks)) {
		return
	}
	if err := t.kicks[n].Signal(); err != nil {
		t.complain("kick lost", err)
	}
}

// offered is every feature that the driver may choose.
func (t *Transport) offered() uint64 { return t.dev.Features() | virtio.RingFeatures }

// writeFeatures takes one half. Features are settled by FEATURES_OK.
func (t *Transport) writeFeatures(v uint32) {
	s := t.status.Load()
	if s&statusDriver == 0 || s&statusFeaturesOK != 0 || t.driverSel > 1 {
		return
	}
	shift := 32 * t.driverSel
	t.driverFeatures = t.driverFeatures&^(0xffffffff<<shift) | uint64(v)<<shift
}

// half picks 32 of 64 bits; there are none beyond.
func half(v uint64, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(v >> (32 * sel))
}
