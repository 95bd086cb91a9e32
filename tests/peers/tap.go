package main

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapName is the interface that guests send to.
const tapName = "peers0"

// tapHost is a network namespace with one tap, which drops what is sent to it. A
// thread holds the namespace and starts the processes in it, so nothing is left
// when this program has ended, however that came.
type tapHost struct {
	starter *starter
}

func newTapHost() (*tapHost, error) {
	t := &tapHost{starter: &starter{orders: make(chan func())}}
	ready := make(chan error)
	go func() {
		// Never unlocked: a thread of another namespace is no use to others.
		runtime.LockOSThread()
		err := t.setUp()
		ready <- err
		if err != nil {
			return
		}
		for order := range t.starter.orders {
			order()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("make a network namespace with a tap, which takes root: %w", err)
	}
	return t, nil
}

func (t *tapHost) setUp() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = tapName
	link := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_DEFAULTS | netlink.TUNTAP_VNET_HDR, Queues: 1}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add tap: %w", err)
	}
	for _, f := range link.Fds {
		if err := f.Close(); err != nil { // it persists
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// frames are those that the host has received from the tap.
func (t *tapHost) frames() (n uint64, err error) {
	done := make(chan struct{})
	t.starter.orders <- func() {
		defer close(done)
		var link netlink.Link
		if link, err = netlink.LinkByName(tapName); err == nil {
			n = link.Attrs().Statistics.RxPackets
		}
	}
	<-done
	return n, err
}
