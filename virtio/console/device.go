package console

import (
	"fmt"
	"sync"
	"sync/atomic"

	"godwit/virtio"
	"godwit/virtio/internal/hostpoll"
)

// Feature bits: virtio 1.2, 5.3.3.
const (
	featureSize       = 1 << 0 // VIRTIO_CONSOLE_F_SIZE
	featureMultiport  = 1 << 1 // VIRTIO_CONSOLE_F_MULTIPORT
	featureEmergWrite = 1 << 2 // VIRTIO_CONSOLE_F_EMERG_WRITE
)

const (
	// MaxPorts is the most that a device may have.
	MaxPorts = 16
	// MaxName is the longest name of a port, bytes.
	MaxName = 64

	queueSize = 64

	// Queues: virtio 1.2, 5.3.2.
	controlRX, controlTX = 2, 3
)

// Port says what the guest sees of a port.
type Port struct {
	// Name is what the guest knows a channel by; a port without one is a console.
	Name string
}

// Config says what kind of device the guest sees.
type Config struct {
	Ports []Port // 1 to MaxPorts
}

// Device is one virtio-console device.
type Device struct {
	poll    *hostpoll.Poller
	ports   []*port
	workers virtio.Workers

	guestErrors atomic.Uint64

	mu     sync.Mutex // what control messages are about: see control.go
	notify virtio.Notifier
	kicks  []*virtio.Kick // nil while inactive
	multi  bool           // MULTIPORT was negotiated
}

var _ virtio.Device = (*Device)(nil)

// New makes a device that is inactive, with nothing behind its ports. Close it,
// after its transport.
func New(cfg Config) (*Device, error) {
	if n := len(cfg.Ports); n < 1 || n > MaxPorts {
		return nil, fmt.Errorf("virtio-console: %d ports; give 1 to %d", n, MaxPorts)
	}
	d := &Device{}
	for i, p := range cfg.Ports {
		if len(p.Name) > MaxName {
			return nil, fmt.Errorf("virtio-console: port %d: name %.80q is longer than %d bytes", i, p.Name, MaxName)
		}
		d.ports = append(d.ports, newPort(d, i, p))
	}
	var err error
	if d.poll, err = hostpoll.New(); err != nil {
		return nil, fmt.Errorf("virtio-console: %w", err)
	}
	return d, nil
}

// Close gives up what is behind the ports.
func (d *Device) Close() error {
	for _, p := range d.ports {
		p.host.close()
	}
	return d.poll.Close()
}

// several says whether the device needs MULTIPORT to tell the guest what it has.
func (d *Device) several() bool { return len(d.ports) > 1 || d.ports[0].name != "" }

// Type implements virtio.Device.
func (d *Device) Type() uint32 { return virtio.TypeConsole }

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := uint64(featureSize | featureEmergWrite)
	if d.several() {
		f |= featureMultiport
	}
	return f
}

// QueueSizes implements virtio.Device: virtio 1.2, 5.3.2.
func (d *Device) QueueSizes() []uint16 {
	n := 2
	if d.several() {
		n = 2 * (len(d.ports) + 1)
	}
	sizes := make([]uint16, n)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// queues gives a port's queue numbers.
func queues(port int) (rx, tx int) {
	if port == 0 {
		return 0, 1
	}
	return 2*port + 2, 2*port + 3
}

// Activate implements virtio.Device. It starts a worker per queue.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	d.notify, d.kicks = a.Notifier, a.Kicks
	d.multi = a.Features&featureMultiport != 0
	d.mu.Unlock()
	start := func(i int, serve func(*virtio.Line) error) {
		if i >= len(a.Queues) || a.Queues[i] == nil {
			return
		}
		l := &virtio.Line{Queue: a.Queues[i], Notifier: a.Notifier, Workers: &d.workers}
		d.workers.Start(a.Kicks[i], func() { l.Serve(func() error { return serve(l) }) })
	}
	for i, p := range d.ports {
		if i > 0 && !d.multi {
			break // a driver without MULTIPORT knows port 0 only
		}
		rx, tx := queues(i)
		start(rx, p.receive)
		start(tx, p.transmit)
	}
	if d.multi {
		start(controlRX, d.tell)
		start(controlTX, d.listen)
	}
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.workers.Stop()
	for _, p := range d.ports {
		p.host.await(false) // what was in the rings is gone
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notify, d.kicks, d.multi = nil, nil, false
	for _, p := range d.ports {
		p.guest, p.sent = guestSide{}, 0
	}
}

// Pause implements virtio.Device.
func (d *Device) Pause() error {
	d.workers.Pause()
	return nil
}

// Resume implements virtio.Device.
func (d *Device) Resume() error {
	d.workers.Resume()
	return nil
}

// kickLocked wakes the worker of a queue, if there is one. The caller holds mu.
func (d *Device) kickLocked(queue int) {
	if queue < len(d.kicks) {
		// It fails for a device whose transport is closed: nobody waits any more.
		_ = d.kicks[queue].Signal()
	}
}
