package balloon

import (
	"encoding/binary"
	"sync"
	"time"

	"godwit/virtio"
	"godwit/virtio/queue"
)

// statSize is the size of struct virtio_balloon_stat: virtio 1.2, 5.5.6.3.
const statSize = 10

// maxStats is how many entries of a buffer are read. The specification knows ten;
// a driver that knows more tells those first.
const maxStats = 64

// GuestStats is what the guest said about its memory last. A nil member is one that
// it did not tell.
// What is not named bytes are events since boot.
type GuestStats struct {
	At               time.Time `json:"at"`
	SwapInBytes      *uint64   `json:"swap_in_bytes,omitempty"`
	SwapOutBytes     *uint64   `json:"swap_out_bytes,omitempty"`
	MajorFaults      *uint64   `json:"major_faults,omitempty"`
	MinorFaults      *uint64   `json:"minor_faults,omitempty"`
	FreeBytes        *uint64   `json:"free_bytes,omitempty"`
	TotalBytes       *uint64   `json:"total_bytes,omitempty"`
	AvailableBytes   *uint64   `json:"available_bytes,omitempty"`
	CacheBytes       *uint64   `json:"cache_bytes,omitempty"`
	HugetlbAllocated *uint64   `json:"hugetlb_allocations,omitempty"`
	HugetlbFailed    *uint64   `json:"hugetlb_failures,omitempty"`
}

// field finds the place of a tag, nil if it is unknown: virtio 1.2, 5.5.6.4.
func (s *GuestStats) field(tag uint16) **uint64 {
	list := [...]**uint64{&s.SwapInBytes, &s.SwapOutBytes, &s.MajorFaults, &s.MinorFaults, &s.FreeBytes,
		&s.TotalBytes, &s.AvailableBytes, &s.CacheBytes, &s.HugetlbAllocated, &s.HugetlbFailed}
	if int(tag) >= len(list) {
		return nil
	}
	return list[tag]
}

// polled is the stats queue: virtio 1.2, 5.5.6.3. The device asks by giving the
// driver its buffer back, and the driver answers by making it available again,
// filled. So the device holds it in between, until the interval is over.
type polled struct {
	mu    sync.Mutex
	w     *worker      // nil while there is no stats queue
	held  *queue.Chain // the buffer, for the worker, or anybody while it is parked
	timer *time.Timer  // signals kick when the driver is to be asked
	kick  *virtio.Kick
	due   bool
	ever  bool
	last  GuestStats
}

func (p *polled) start(w *worker, kick *virtio.Kick) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.w, p.kick = w, kick
}

// stop forgets the queue. The workers have ended.
func (p *polled) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.disarm()
	p.w, p.kick, p.held = nil, nil, nil
	p.ever, p.last = false, GuestStats{}
}

func (p *polled) disarm() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	p.due = false
}

// arm has the driver asked after the interval.
func (p *polled) arm(interval time.Duration) {
	p.disarm()
	var t *time.Timer
	t = time.AfterFunc(interval, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.timer != t {
			return // disarmed meanwhile
		}
		p.due = true
		_ = p.kick.Signal() // a closed one belongs to a device that is going
	})
	p.timer = t
}

// letGo gives the buffer back, with the worker parked.
func (p *polled) letGo() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.disarm()
	if p.w == nil {
		return
	}
	if err := p.ask(); err != nil {
		p.w.Notifier.NeedsReset(err)
	}
}

// ask gives the buffer back, where there is one, which makes the driver fill it.
func (p *polled) ask() error {
	c := p.held
	if c == nil {
		return nil
	}
	p.held, p.due = nil, false
	return p.w.Push(c, 0)
}

// serve is the worker's.
func (p *polled) serve() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.w.Serve(p.drain)
}

func (p *polled) drain() error {
	if p.due {
		if err := p.ask(); err != nil {
			return err
		}
	}
	for !p.w.dev.workers.Yield() {
		c, err := p.w.Pop()
		if err != nil || c == nil {
			return err
		}
		// A driver has one buffer. One that gives more gets the older ones back.
		if err := p.ask(); err != nil {
			return err
		}
		p.read(c)
		p.held = c
		p.arm(time.Duration(p.w.dev.interval.Load()))
	}
	return nil
}

// read takes in what the driver tells. The buffer it comes in is copied first.
func (p *polled) read(c *queue.Chain) {
	s, entry := GuestStats{At: time.Now()}, [statSize]byte{}
	told := false
	for range maxStats {
		if !c.Take(entry[:]) {
			break
		}
		if f := s.field(binary.LittleEndian.Uint16(entry[:])); f != nil {
			v := binary.LittleEndian.Uint64(entry[2:])
			*f, told = &v, true
		}
	}
	if told {
		p.last, p.ever = s, true
	}
}

// GuestStats is what the guest told last, false if nothing yet. Any goroutine may
// call it.
func (d *Device) GuestStats() (GuestStats, bool) {
	p := &d.polled
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last, p.ever
}

// StatsInterval is how often the guest is asked, 0 for never.
func (d *Device) StatsInterval() time.Duration { return time.Duration(d.interval.Load()) }

// SetStatsInterval changes how often the guest is asked. The queue is there or not
// from the start, so it cannot be switched on or off.
func (d *Device) SetStatsInterval(i time.Duration) error {
	if d.interval.Load() == 0 {
		return ErrNoStats
	}
	if err := checkInterval(i); err != nil {
		return err
	}
	d.interval.Store(int64(i))
	p := &d.polled
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil && p.timer != nil {
		p.arm(i)
	}
	return nil
}
