package balloon

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/queue"
)

// Memory is where the device gives pages back to the host.
type Memory interface {
	// Discard gives back the memory behind extents: ascending, of whole pages,
	// each RAM of one region. They read as zeros from then on and count as written.
	// Workers of several queues call it at once; extents is not kept.
	Discard(extents []guestmem.Extent) error
	// Regions lists the RAM in address order.
	Regions() []guestmem.Region
}

// PageSize is the unit of the balloon in bytes, whatever the guest's is: virtio
// 1.2, 5.5.6.
const PageSize = 4096

// MaxStatsInterval is the longest that Config.StatsInterval may be.
const MaxStatsInterval = time.Hour

// Config is what the guest is offered.
type Config struct {
	Memory Memory
	// Target is the size in pages that the balloon starts with, at most the RAM.
	Target uint32
	// DeflateOnOOM lets the guest take pages out of the balloon, against the
	// target, before it kills processes for want of memory.
	DeflateOnOOM bool
	// StatsInterval is how often the guest is asked for figures, whole seconds up
	// to MaxStatsInterval; 0 means never, and then it cannot be changed.
	StatsInterval time.Duration
	// Reporting and Hinting offer VIRTIO_BALLOON_F_REPORTING and
	// VIRTIO_BALLOON_F_FREE_PAGE_HINT.
	Reporting, Hinting bool
}

// Errors to test for with errors.Is.
var (
	// ErrTarget: the balloon cannot have this size.
	ErrTarget = errors.New("bad balloon size")
	// ErrNoStats: the device was made without statistics.
	ErrNoStats = errors.New("the balloon has no statistics")
	// ErrInterval: statistics cannot be polled at this interval.
	ErrInterval = errors.New("bad interval for balloon statistics")
	// ErrNoHinting: there is no driver that gives hints.
	ErrNoHinting = errors.New("the guest does not hint free pages")
)

// Device is one balloon.
type Device struct {
	cfg   Config
	ram   []guestmem.Extent
	pages uint32 // of RAM

	target, actual, poison atomic.Uint32 // configuration fields
	interval               atomic.Int64  // of statistics, a time.Duration

	workers virtio.Workers
	hint    hinting
	polled  polled
	stats   counters

	// What the owner's calls, which come one at a time, leave for them and others.
	mu       sync.Mutex
	notify   virtio.Notifier // nil while inactive
	features uint64
	roles    roles
	restored bool // roles are those of a saved device, and hold for the next Activate
	tell     bool // Resume tells the driver that the configuration changed

	errMu   sync.Mutex
	lastErr error
}

var _ virtio.Device = (*Device)(nil)

// New makes a device that is inactive.
func New(cfg Config) (*Device, error) {
	if cfg.Memory == nil {
		return nil, fmt.Errorf("virtio-balloon: no memory given")
	}
	d := &Device{cfg: cfg}
	var bytes uint64
	for _, r := range cfg.Memory.Regions() {
		n := uint64(len(r.Bytes))
		d.ram = append(d.ram, guestmem.Extent{GPA: r.GPA, Len: n})
		bytes += n
	}
	d.pages = uint32(min(bytes/PageSize, 1<<32-1))
	if err := d.checkTarget(cfg.Target); err != nil {
		return nil, err
	}
	if cfg.StatsInterval != 0 {
		if err := checkInterval(cfg.StatsInterval); err != nil {
			return nil, err
		}
	}
	d.target.Store(cfg.Target)
	d.interval.Store(int64(cfg.StatsInterval))
	d.forget()
	return d, nil
}

func (d *Device) checkTarget(pages uint32) error {
	if pages > d.pages {
		return fmt.Errorf("virtio-balloon: %w: %d MiB, and the guest has %d MiB", ErrTarget, pages>>8, d.pages>>8)
	}
	return nil
}

func checkInterval(i time.Duration) error {
	if i < time.Second || i > MaxStatsInterval || i%time.Second != 0 {
		return fmt.Errorf("virtio-balloon: %w: %v; give whole seconds up to %v", ErrInterval, i, MaxStatsInterval)
	}
	return nil
}

// Type implements virtio.Device.
func (d *Device) Type() uint32 { return virtio.TypeBalloon }

// SetTarget asks the guest for a balloon of so many pages. It takes its time, and
// may stop short of it. Any goroutine may call it.
func (d *Device) SetTarget(pages uint32) error {
	if err := d.checkTarget(pages); err != nil {
		return err
	}
	d.target.Store(pages)
	d.configChanged()
	return nil
}

// configChanged tells a driver that is there.
func (d *Device) configChanged() {
	d.mu.Lock()
	notify := d.notify
	d.mu.Unlock()
	if notify != nil {
		notify.ConfigChanged()
	}
}

// Activate implements virtio.Device. It starts a worker per queue in use.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	d.notify, d.features = a.Notifier, a.Features
	if !d.restored {
		d.roles = assign(a.Features, a.Queues)
	}
	d.restored = false
	roles := d.roles
	d.mu.Unlock()
	if err := roles.agree(a.Features); err != nil {
		return err
	}
	keepPoison := a.Features&featurePoison != 0
	for role, i := range roles {
		if i < 0 || a.Queues[i] == nil {
			continue
		}
		w := &worker{Line: virtio.Line{Queue: a.Queues[i], Notifier: a.Notifier, Workers: &d.workers}, dev: d, keepPoison: keepPoison}
		switch role {
		case roleInflate:
			w.answer = w.inflate
		case roleDeflate:
			w.answer = w.deflate
		case roleHinting:
			w.answer = w.hints
		case roleReporting:
			w.answer = w.report
		case roleStats:
			p := &d.polled
			p.start(w, a.Kicks[i])
			d.workers.Start(a.Kicks[i], p.serve)
			continue
		}
		d.workers.Start(a.Kicks[i], w.serve)
	}
	return nil
}

// Reset implements virtio.Device. The target is the host's wish and stays.
func (d *Device) Reset() {
	d.workers.Stop()
	d.polled.stop()
	d.hint.abandon()
	d.forget()
}

// forget is everything of a driver's.
func (d *Device) forget() {
	d.actual.Store(0)
	d.poison.Store(0)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notify, d.features, d.roles, d.restored, d.tell = nil, 0, noRoles, false, false
}

// Pause implements virtio.Device. The stats buffer goes back to the driver, which
// takes that for a question and answers it after Resume.
func (d *Device) Pause() error {
	d.workers.Pause()
	d.polled.letGo()
	return nil
}

// Resume implements virtio.Device.
func (d *Device) Resume() error {
	d.mu.Lock()
	tell := d.tell
	d.tell = false
	d.mu.Unlock()
	d.workers.Resume()
	if tell {
		d.configChanged()
	}
	return nil
}

// worker serves one queue but that of statistics.
type worker struct {
	virtio.Line
	dev        *Device
	answer     func(*queue.Chain)
	keepPoison bool
	list       pageList
	id         [4]byte
}

// serve answers chains until the queue is empty or the workers are to yield.
// Nothing here fills a buffer: every answer has 0 bytes.
func (w *worker) serve() {
	w.Serve(func() error {
		return w.Each(func(c *queue.Chain) (bool, error) {
			w.answer(c)
			return true, w.Push(c, 0)
		})
	})
}
