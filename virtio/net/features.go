package net

// Feature bits: virtio 1.2, 5.1.3; those of USO are of virtio 1.3.
const (
	featureCSUM                 = 1 << 0  // VIRTIO_NET_F_CSUM
	featureGuestCSUM            = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM
	featureGuestOffloads        = 1 << 2  // VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
	featureMTU                  = 1 << 3  // VIRTIO_NET_F_MTU
	featureMAC                  = 1 << 5  // VIRTIO_NET_F_MAC
	featureGuestTSO4            = 1 << 7  // VIRTIO_NET_F_GUEST_TSO4
	featureGuestTSO6            = 1 << 8  // VIRTIO_NET_F_GUEST_TSO6
	featureGuestECN             = 1 << 9  // VIRTIO_NET_F_GUEST_ECN
	featureHostTSO4             = 1 << 11 // VIRTIO_NET_F_HOST_TSO4
	featureHostTSO6             = 1 << 12 // VIRTIO_NET_F_HOST_TSO6
	featureHostECN              = 1 << 13 // VIRTIO_NET_F_HOST_ECN
	featureMergeable            = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
	featureStatus               = 1 << 16 // VIRTIO_NET_F_STATUS
	featureCtrlVQ               = 1 << 17 // VIRTIO_NET_F_CTRL_VQ
	featureCtrlRX               = 1 << 18 // VIRTIO_NET_F_CTRL_RX
	featureCtrlRXExtra          = 1 << 20 // VIRTIO_NET_F_CTRL_RX_EXTRA
	featureGuestAnnounce        = 1 << 21 // VIRTIO_NET_F_GUEST_ANNOUNCE
	featureMQ                   = 1 << 22 // VIRTIO_NET_F_MQ
	featureCtrlMAC              = 1 << 23 // VIRTIO_NET_F_CTRL_MAC_ADDR
	featureGuestUSO4            = 1 << 54 // VIRTIO_NET_F_GUEST_USO4
	featureGuestUSO6            = 1 << 55 // VIRTIO_NET_F_GUEST_USO6
	featureHostUSO              = 1 << 56 // VIRTIO_NET_F_HOST_USO
	guestOffloads        uint64 = featureGuestCSUM | featureGuestTSO4 | featureGuestTSO6 | featureGuestECN | featureGuestUSO4 | featureGuestUSO6
	largePackets         uint64 = featureGuestTSO4 | featureGuestTSO6 | featureGuestUSO4 | featureGuestUSO6
)

// Offloads of a Backend: TUN_F_* of linux/if_tun.h.
const (
	OffloadCSUM   = 1 << 0
	OffloadTSO4   = 1 << 1
	OffloadTSO6   = 1 << 2
	OffloadTSOECN = 1 << 3
	OffloadUSO4   = 1 << 5
	OffloadUSO6   = 1 << 6
)

// offloadBits pairs what the guest may accept with what the Backend is told, and
// with what the guest may send where the Backend has it.
var offloadBits = [...]struct {
	backend     uint
	guest, host uint64
}{
	{OffloadCSUM, featureGuestCSUM, featureCSUM},
	{OffloadTSO4, featureGuestTSO4, featureHostTSO4},
	{OffloadTSO6, featureGuestTSO6, featureHostTSO6},
	{OffloadTSOECN, featureGuestECN, featureHostECN},
	{OffloadUSO4, featureGuestUSO4, 0},
	{OffloadUSO6, featureGuestUSO6, 0},
}

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := uint64(featureMAC | featureMergeable | featureStatus | featureCtrlVQ | featureCtrlRX |
		featureCtrlRXExtra | featureCtrlMAC | featureGuestAnnounce | featureGuestOffloads)
	have := d.backend.Offloads()
	for _, b := range offloadBits {
		if have&b.backend != 0 {
			f |= b.guest | b.host
		}
	}
	if have&OffloadUSO4 != 0 && have&OffloadUSO6 != 0 {
		f |= featureHostUSO
	}
	if d.mtu != 0 {
		f |= featureMTU
	}
	if d.pairs > 1 {
		f |= featureMQ
	}
	return f
}

// backendOffloads turns guest offload features into what the Backend is told.
// Nothing can be cut later without a checksum that is filled in later.
func backendOffloads(guest uint64) (set uint) {
	if guest&featureGuestCSUM == 0 {
		return 0
	}
	for _, b := range offloadBits {
		if guest&b.guest != 0 {
			set |= b.backend
		}
	}
	if set&(OffloadTSO4|OffloadTSO6) == 0 {
		set &^= OffloadTSOECN
	}
	if set&OffloadUSO4 == 0 || set&OffloadUSO6 == 0 {
		set &^= OffloadUSO4 | OffloadUSO6 // Linux takes both or none (tun: set_offload)
	}
	return set
}
