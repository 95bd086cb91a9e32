package vsock

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"godwit/virtio"
	"godwit/virtio/internal/hostpoll"
	"godwit/virtio/queue"
)

const (
	featureStream = 1 << 0 // VIRTIO_VSOCK_F_STREAM: virtio 1.2, 5.10.3

	// Queues: 5.10.2.
	rxQueue, txQueue, eventQueue = 0, 1, 2
	queueSize                    = 256

	hostCID = 2 // 5.10.4

	// MinCID is the first that a guest may have; MaxCID the last: 5.10.4.
	MinCID = 3
	MaxCID = 1<<32 - 2

	maxConns  = 256
	maxResets = 256
	// bufAlloc is how much of a connection's output the host's side may leave with
	// us, bytes.
	bufAlloc = 128 << 10
	// maxPacket is the most that one packet for the guest carries, bytes.
	maxPacket = 64 << 10
	// firstPort is where the host's own ports begin, above those that a guest's
	// programs are likely to connect to. lastPort leaves out VMADDR_PORT_ANY of
	// Linux's vm_sockets.h.
	firstPort = 1 << 30
	lastPort  = 1<<32 - 2

	// defaultPatience is how long the other side has to finish what it must: a client its
	// CONNECT, the guest its answer to a request or to a shutdown.
	defaultPatience = 10 * time.Second
)

// Config says what the guest sees.
type Config struct {
	GuestCID uint64 // MinCID to MaxCID
}

// Device is one virtio-vsock device.
type Device struct {
	cid     uint64
	poll    *hostpoll.Poller
	workers virtio.Workers
	stats   counters

	mu    sync.Mutex // the rest; held for no longer than a call that does not block
	kicks []*virtio.Kick

	path     string // guest's connections go to path_PORT; none if empty
	listener *net.UnixListener
	knock    *hostpoll.Watch

	conns    map[*conn]struct{} // all
	table    map[key]*conn      // those that the guest knows
	todo     fifo               // may have something for the guest
	resets   []reset            // for the guest, of what is no connection any more
	blocked  bool               // the tx queue waits until resets are fewer
	nextPort uint32             // from firstPort to lastPort
	paused   bool
	patience time.Duration
	// keepsLast is the constant, but in tests of a kernel that gives less.
	keepsLast int

	move move
}

var _ virtio.Device = (*Device)(nil)

// New makes a device that is inactive, and connected with nothing. Close it,
// after its transport.
//
// Its own ports start anywhere: after a move the guest may still have sockets of
// the connections that the device before it made, and Linux gives a socket that
// was reset up only when its program closes it. A request for the same two ports
// would meet that one.
func New(cfg Config) (*Device, error) {
	if cfg.GuestCID < MinCID || cfg.GuestCID > MaxCID {
		return nil, fmt.Errorf("virtio-vsock: guest CID %d; give %d to %d", cfg.GuestCID, MinCID, uint64(MaxCID))
	}
	d := &Device{
		cid: cfg.GuestCID, conns: map[*conn]struct{}{}, table: map[key]*conn{},
		resets: make([]reset, 0, maxResets+maxConns), nextPort: firstPort + rand.Uint32N(lastPort-firstPort+1), patience: defaultPatience,
		keepsLast: keepsLast,
		move:      move{limit: holdLimit},
	}
	var err error
	if d.poll, err = hostpoll.New(); err != nil {
		return nil, fmt.Errorf("virtio-vsock: %w", err)
	}
	return d, nil
}

// Close ends all connections and gives up the host's side. Where the kernel does
// not take what the host's readers have not read, it waits for them: see drain.
func (d *Device) Close() error {
	err := d.StopListening()
	d.mu.Lock()
	d.endAll()
	d.release()
	d.path = ""
	d.mu.Unlock()
	d.drain()
	if perr := d.poll.Close(); err == nil {
		err = perr
	}
	return err
}

// Type implements virtio.Device.
func (d *Device) Type() uint32 { return virtio.TypeVsock }

// Features implements virtio.Device.
func (d *Device) Features() uint64 { return featureStream }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize, queueSize} }

// ReadConfig implements virtio.Device: the guest's CID (5.10.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off < 8 {
		var c [8]byte
		binary.LittleEndian.PutUint64(c[:], d.cid)
		copy(p, c[off:])
	}
}

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device. It starts a worker per queue.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	d.kicks = a.Kicks
	if a.Queues[eventQueue] == nil {
		d.release() // nobody to wait for
	}
	d.mu.Unlock()
	for i, serve := range []func(*line) error{rxQueue: d.receive, txQueue: d.transmit, eventQueue: d.event} {
		if a.Queues[i] == nil {
			continue
		}
		l := &line{Line: virtio.Line{Queue: a.Queues[i], Notifier: a.Notifier, Workers: &d.workers}}
		d.workers.Start(a.Kicks[i], func() { l.Serve(func() error { return serve(l) }) })
	}
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.workers.Stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endAll()
	d.release()
	d.kicks, d.move = nil, move{limit: d.move.limit}
}

// endAll ends every connection, without a word to the guest. mu is held.
func (d *Device) endAll() {
	for c := range d.conns {
		d.end(c, false)
	}
	d.resets, d.blocked = d.resets[:0], false
}

// Pause implements virtio.Device.
func (d *Device) Pause() error {
	d.setPaused(true)
	d.workers.Pause()
	return nil
}

// Resume implements virtio.Device.
func (d *Device) Resume() error {
	d.setPaused(false)
	d.workers.Resume()
	return nil
}

func (d *Device) setPaused(paused bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = paused
	if paused {
		return
	}
	d.startHold()
	for c := range d.conns {
		if c.timer != nil && c.phase != greeting {
			c.hurry() // as for those whose time ended in the pause
		}
	}
}

// kick wakes a queue's worker, if there is one. mu is held.
func (d *Device) kick(queue int) {
	if queue < len(d.kicks) {
		// It fails for a device whose transport is closed: nobody waits any more.
		_ = d.kicks[queue].Signal()
	}
}

// line is a worker with its queue.
type line struct {
	virtio.Line
	head [headerSize]byte
	vec  hostpoll.Vec
}

// put copies p to the front of a chain's writable part; it must have the room.
func put(c *queue.Chain, p []byte) {
	n := 0
	for _, seg := range c.Writable() {
		n += copy(seg, p[n:])
	}
}
