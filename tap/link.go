package tap

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// link gives the interface its MTU, its place in a bridge, and brings it up. An
// interface that exists is changed only where it must be.
func (t *Interface) link(o Options) error {
	l, err := t.nl.LinkByName(t.name)
	if err != nil {
		return err
	}
	a := l.Attrs()
	t.index, t.mtu = a.Index, a.MTU
	if tun, ok := l.(*netlink.Tuntap); ok && tun.Queues+tun.DisabledQueues > len(t.fds) {
		return fmt.Errorf("%w; give each machine a tap of its own", ErrInUse) // it was quicker than find
	}
	if t.made {
		if err := t.nl.LinkSetTxQLen(l, madeQueueLen); err != nil {
			return fmt.Errorf("set the length of its queue: %w", err)
		}
	}
	if o.MTU != 0 && o.MTU != a.MTU {
		if !t.made {
			return fmt.Errorf("its MTU is %d, not %d; set it with `ip link set %s mtu %d`, or ask for the one it has", a.MTU, o.MTU, t.name, o.MTU)
		}
		if err := t.nl.LinkSetMTU(l, o.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", o.MTU, err)
		}
		t.mtu = o.MTU
	}
	if o.Bridge != "" {
		if err := t.join(l, o.Bridge); err != nil {
			return err
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := t.nl.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring it up: %w; do it with `ip link set %s up`", err, t.name)
		}
	}
	return nil
}

// join makes the interface a port of the bridge, and remembers to undo that.
func (t *Interface) join(l netlink.Link, bridge string) error {
	b, err := t.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %q: %w; make it with `ip link add %s type bridge`", bridge, err, bridge)
	}
	if b.Type() != "bridge" {
		return fmt.Errorf("%q is an interface of type %s, not a bridge", bridge, b.Type())
	}
	switch master := l.Attrs().MasterIndex; master {
	case b.Attrs().Index:
		return nil
	case 0:
	default:
		return fmt.Errorf("it belongs to another bridge (interface %d), not %q; take it out with `ip link set %s nomaster`", master, bridge, t.name)
	}
	if err := t.nl.LinkSetMaster(l, b); err != nil {
		return fmt.Errorf("attach it to bridge %q: %w; do it with `ip link set %s master %s`", bridge, err, t.name, bridge)
	}
	t.joined = !t.made
	return nil
}

// leave takes the interface out of the bridge that join put it into.
func (t *Interface) leave() error {
	l, err := t.nl.LinkByIndex(t.index)
	if err != nil {
		return nil // somebody has removed the interface
	}
	if err := t.nl.LinkSetNoMaster(l); err != nil {
		return fmt.Errorf("take tap %q out of its bridge: %w", t.name, err)
	}
	return nil
}

// Forget makes the bridge forget that mac is behind this interface, so that it
// floods what is for mac until it learns anew. Not to be in a bridge, not to be
// known there, not to have the rights and not to be at all are no errors: bridges
// forget by themselves in time.
func (t *Interface) Forget(mac net.HardwareAddr) error {
	err := t.nl.NeighDel(&netlink.Neigh{
		LinkIndex: t.index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: mac,
	})
	for _, fine := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPERM, unix.ENODEV} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("tap %q: make its bridge forget %v: %w", t.name, mac, err)
	}
	return nil
}
