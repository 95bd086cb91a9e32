package tap

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// HeaderSize is the length of the header before each frame, in bytes.
	HeaderSize = 12
	// MaxQueues is the most queues that an Interface can have.
	MaxQueues = 64
	// MaxName is the longest name of an interface, in bytes (IFNAMSIZ - 1).
	MaxName = unix.IFNAMSIZ - 1

	device = "/dev/net/tun"

	// madeQueueLen is how many packets wait for a reader at an interface that we
	// made: a guest that is moving reads nothing for a while.
	madeQueueLen = 1000
)

// Options say which interface to open.
type Options struct {
	// Name is the interface's, up to MaxName bytes.
	Name string
	// Bridge is the bridge that the interface belongs to; empty leaves it alone.
	Bridge string
	// MTU is the one that the interface must have, in bytes; 0 means any. One that
	// is made gets it; one that exists must have it already.
	MTU int
	// Queues is the number of queues, 1 to MaxQueues; 0 means 1.
	Queues int
}

// ErrInUse marks an interface that another process reads.
var ErrInUse = errors.New("another process uses it")

// ErrGone marks an interface that somebody has removed while it was open.
var ErrGone = errors.New("the interface is gone")

// Interface is an open tap.
type Interface struct {
	name   string
	index  int
	mtu    int
	made   bool
	joined bool            // take it out of the bridge on Close
	nl     *netlink.Handle // a socket in the network namespace of Open
	files  []*os.File
	fds    []int // of files
	inUse  int   // queues that take part

	offloads uint // what the kernel has, TUN_F_* bits
}

// Open opens an interface, or makes it. All but queue 0 take no part before
// SetQueues, and the other side gets no offloads before SetOffloads.
func Open(o Options) (_ *Interface, err error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	switch {
	case o.Name == "" || len(o.Name) > MaxName:
		return nil, fmt.Errorf("open tap %q: a name has 1 to %d bytes", o.Name, MaxName)
	case o.Queues < 1 || o.Queues > MaxQueues:
		return nil, fmt.Errorf("open tap %q: %d queues; use 1 to %d", o.Name, o.Queues, MaxQueues)
	}
	t := &Interface{name: o.Name}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open tap %q: %w", o.Name, err), t.Close())
		}
	}()
	if t.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	flags, err := t.find(o)
	if err != nil {
		return nil, err
	}
	for i := range o.Queues {
		if err := t.attach(flags); err != nil {
			return nil, err
		}
		// From here on packets may be spread over this queue, too.
		if i > 0 {
			if err := t.setQueue(i, unix.IFF_DETACH_QUEUE); err != nil {
				return nil, err
			}
		}
	}
	t.inUse = 1
	if err := t.prepare(); err != nil {
		return nil, err
	}
	if err := t.link(o); err != nil {
		return nil, err
	}
	return t, nil
}

// find looks whether the interface exists, and gives the flags to attach with. A
// queue can be attached only to an interface that was made for several, or for
// one, as it says (kernel: tun_set_iff).
func (t *Interface) find(o Options) (uint16, error) {
	const flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	l, err := t.nl.LinkByName(o.Name)
	if _, missing := err.(netlink.LinkNotFoundError); missing {
		t.made = true
		if o.Queues > 1 {
			return flags | unix.IFF_MULTI_QUEUE, nil
		}
		return flags, nil
	}
	if err != nil {
		return 0, err
	}
	tun, ok := l.(*netlink.Tuntap)
	switch {
	case !ok:
		return 0, fmt.Errorf("it is an interface of type %s, not a tap; give another name", l.Type())
	case tun.Mode != netlink.TUNTAP_MODE_TAP:
		return 0, errors.New("it is a tun, without Ethernet; give the name of a tap")
	case tun.Queues+tun.DisabledQueues > 0:
		return 0, fmt.Errorf("%w; give each machine a tap of its own", ErrInUse)
	case tun.Flags&netlink.TUNTAP_MULTI_QUEUE != 0:
		return flags | unix.IFF_MULTI_QUEUE, nil
	case o.Queues > 1:
		return 0, fmt.Errorf("it has one queue, not %d; make it again with `ip tuntap add %s mode tap vnet_hdr multi_queue`, or ask for one", o.Queues, o.Name)
	}
	return flags, nil
}

// attach opens one more queue. The first one makes the interface where find saw
// none.
func (t *Interface) attach(flags uint16) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w; load the kernel's tun module (modprobe tun), and give this user access to the file", device, err)
	}
	// A descriptor that blocks while NewFile looks stays out of the runtime's
	// poller: our readers sleep in poll(2), and would wake another thread there.
	f := os.NewFile(uintptr(fd), "tap "+t.name)
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(err, f.Close())
	}
	var req struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:MaxName], t.name)
	req.flags = flags
	if err := ioctl(fd, unix.TUNSETIFF, unsafe.Pointer(&req)); err != nil {
		return errors.Join(t.explain(err), f.Close())
	}
	t.files = append(t.files, f)
	t.fds = append(t.fds, fd)
	return nil
}

// explain says what TUNSETIFF's error means here.
func (t *Interface) explain(err error) error {
	switch {
	case err == unix.EPERM && t.made:
		return fmt.Errorf("it does not exist, and making it takes CAP_NET_ADMIN: %w; make it before with `ip tuntap add %s mode tap vnet_hdr user $USER`", err, t.name)
	case err == unix.EPERM:
		return fmt.Errorf("it belongs to another user: %w; make it with `ip tuntap add %s mode tap vnet_hdr user $USER`", err, t.name)
	case err == unix.EBUSY:
		return fmt.Errorf("%w: %w; give each machine a tap of its own", ErrInUse, err)
	}
	return err
}

// Close lets go of the interface. One that was made here is gone.
func (t *Interface) Close() error {
	var errs []error
	if t.joined {
		t.joined = false
		errs = append(errs, t.leave())
	}
	for _, f := range t.files {
		errs = append(errs, f.Close())
	}
	t.files = nil
	if t.nl != nil {
		t.nl.Close()
		t.nl = nil
	}
	return errors.Join(errs...)
}

// Name is the interface's name.
func (t *Interface) Name() string { return t.name }

// MTU is the interface's, in bytes, when it was opened.
func (t *Interface) MTU() int { return t.mtu }

// Made says that the interface did not exist before.
func (t *Interface) Made() bool { return t.made }
