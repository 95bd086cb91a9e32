package net

import (
	"encoding/binary"
	"fmt"
)

// struct virtio_net_config: virtio 1.2, 5.1.4.
const (
	cfgMAC      = 0
	cfgStatus   = 6
	cfgMaxPairs = 8
	cfgMTU      = 10
	cfgSize     = 12

	statusLinkUp   = 1 // VIRTIO_NET_S_LINK_UP
	statusAnnounce = 2 // VIRTIO_NET_S_ANNOUNCE
)

// String is the usual form, 02:00:00:00:00:01.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// MAC is the card's address now: the driver may have set another.
func (d *Device) MAC() MAC { return d.filter.Load().mac }

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off >= cfgSize {
		return
	}
	mac := d.MAC()
	var c [cfgSize]byte
	copy(c[cfgMAC:], mac[:])
	binary.LittleEndian.PutUint16(c[cfgStatus:], d.status())
	binary.LittleEndian.PutUint16(c[cfgMaxPairs:], uint16(d.pairs))
	binary.LittleEndian.PutUint16(c[cfgMTU:], d.mtu)
	copy(p, c[off:])
}

func (d *Device) status() uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	var s uint16
	if !d.down.Load() {
		s |= statusLinkUp
	}
	if d.announce {
		s |= statusAnnounce
	}
	return s
}

// WriteConfig implements virtio.Device. There is nothing to write: the address
// is set through the control queue (5.1.4.1).
func (d *Device) WriteConfig(uint64, []byte) {}

// SetLink plugs the guest's cable in or pulls it. While it is out, frames of
// either side are dropped and counted, whatever the driver makes of the news. It
// may be called at any time.
func (d *Device) SetLink(up bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.down.CompareAndSwap(up, !up) {
		return
	}
	d.configChanged()
	if d.live == nil {
		return
	}
	for _, k := range d.live.Kicks {
		// Frames that wait for room or for buffers are looked at again. A signal that
		// fails means an eventfd that nobody sleeps on any more.
		if k != nil {
			_ = k.Signal()
		}
	}
}

// LinkUp says whether the cable is plugged in.
func (d *Device) LinkUp() bool { return !d.down.Load() }

// configChanged tells the driver, if there is one. The caller holds mu.
func (d *Device) configChanged() {
	if d.live != nil {
		d.live.Notifier.ConfigChanged()
	}
}
