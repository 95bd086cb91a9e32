package net

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Sizes and values of ARP over Ethernet: RFC 826, and RFC 903 for the reverse.
const (
	arpPacket    = etherHeader + 28
	etherTypeARP = 0x0806
	etherTypeRev = 0x8035
	arpRequest   = 1
	arpReverse   = 3
	minFrame     = 60 // of Ethernet, without checksum
)

// maxNeighbours is how many addresses of the guest are remembered.
const maxNeighbours = 8

// neighbour is an address that the guest goes by.
type neighbour struct {
	ip  [4]byte
	mac MAC
}

// neighbours are those seen last, the oldest first.
type neighbours struct {
	list [maxNeighbours]neighbour
	n    int
}

// add remembers who, as the latest. A new owner of an address replaces the old.
func (k *neighbours) add(who neighbour) {
	at := 0
	for at < k.n && k.list[at].ip != who.ip {
		at++
	}
	switch {
	case at < k.n:
		copy(k.list[at:], k.list[at+1:k.n])
	case k.n == maxNeighbours:
		copy(k.list[:], k.list[1:])
	default:
		k.n++
	}
	k.list[k.n-1] = who
}

func isARP(frame []byte) bool { return binary.BigEndian.Uint16(frame[12:]) == etherTypeARP }

// parseARP reads the sender out of an ARP packet. Probes, which have no sender's
// address yet, and what no host can have are no use.
func parseARP(f []byte) (neighbour, bool) {
	arp := f[etherHeader:arpPacket]
	if [6]byte(arp[:6]) != [6]byte{0, 1, 8, 0, macSize, 4} {
		return neighbour{}, false
	}
	who := neighbour{mac: MAC(arp[8:]), ip: [4]byte(arp[14:])}
	ip := netip.AddrFrom4(who.ip)
	if who.mac != MAC(f[macSize:]) || !(ip.IsGlobalUnicast() || ip.IsLinkLocalUnicast()) {
		return neighbour{}, false
	}
	return who, true
}

// packetOf makes a broadcast from who, header first.
func packetOf(kind, op uint16, who neighbour, target MAC) []byte {
	p := make([]byte, headerSize+minFrame)
	f := p[headerSize:]
	copy(f, broadcast[:])
	copy(f[macSize:], who.mac[:])
	binary.BigEndian.PutUint16(f[12:], kind)
	arp := f[etherHeader:]
	copy(arp, []byte{0, 1, 8, 0, macSize, 4})
	binary.BigEndian.PutUint16(arp[6:], op)
	copy(arp[8:], who.mac[:])
	copy(arp[14:], who.ip[:])
	copy(arp[18:], target[:])
	copy(arp[24:], who.ip[:])
	return p
}

// Announce tells the network where the guest is, as if the guest had said so: a
// reverse ARP request, from which bridges learn (the form is QEMU's), and for
// each address the guest was seen to use a gratuitous ARP request, from which
// neighbours do (RFC 5944, 4.6). A driver that can is asked to announce itself
// (virtio 1.2, 5.1.6.5.4), again each time until it has. A device that is inactive,
// paused or without a cable says nothing. It may be called at any time.
func (d *Device) Announce() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live == nil || d.paused || d.down.Load() {
		return nil
	}
	mac := d.MAC()
	err := d.say(packetOf(etherTypeRev, arpReverse, neighbour{mac: mac}, mac))
	for _, who := range d.known.list[:d.known.n] {
		if err != nil {
			break
		}
		err = d.say(packetOf(etherTypeARP, arpRequest, who, MAC{}))
	}
	if d.live.Features&featureGuestAnnounce != 0 && d.live.Features&featureStatus != 0 {
		d.announce = true
		d.configChanged()
	}
	return err
}

func (d *Device) say(packet []byte) error {
	if _, err := d.backend.Writev(0, [][]byte{packet}); err != nil {
		err = fmt.Errorf("announce the guest: %w", err)
		d.fail(err)
		return err
	}
	d.stats.announcements.Add(1)
	return nil
}

// announced is the driver's acknowledgement.
func (d *Device) announced() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.announce {
		return false
	}
	d.announce = false
	return true
}
