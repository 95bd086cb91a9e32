package balloon

import "encoding/binary"

// Feature bits: virtio 1.2, 5.5.3. VIRTIO_BALLOON_F_MUST_TELL_HOST (0) is not
// offered: a page that is used before the device heard of it comes back zeroed,
// and that is what it holds after a deflation, too.
const (
	featureStats        = 1 << 1 // VIRTIO_BALLOON_F_STATS_VQ
	featureDeflateOnOOM = 1 << 2 // VIRTIO_BALLOON_F_DEFLATE_ON_OOM
	featureHinting      = 1 << 3 // VIRTIO_BALLOON_F_FREE_PAGE_HINT
	featurePoison       = 1 << 4 // VIRTIO_BALLOON_F_PAGE_POISON
	featureReporting    = 1 << 5 // VIRTIO_BALLOON_F_REPORTING
)

// Offsets in struct virtio_balloon_config: virtio 1.2, 5.5.4.
const (
	cfgNumPages  = 0
	cfgActual    = 4
	cfgHintCmdID = 8
	cfgPoisonVal = 12
	cfgSize      = 16
)

// Features implements virtio.Device. Poison is offered with what needs it: Linux
// gives up reporting where its free pages hold a pattern that it cannot tell of.
func (d *Device) Features() uint64 {
	var f uint64
	if d.interval.Load() != 0 {
		f |= featureStats
	}
	if d.cfg.DeflateOnOOM {
		f |= featureDeflateOnOOM
	}
	if d.cfg.Hinting {
		f |= featureHinting | featurePoison
	}
	if d.cfg.Reporting {
		f |= featureReporting | featurePoison
	}
	return f
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off >= cfgSize {
		return
	}
	var c [cfgSize]byte
	le := binary.LittleEndian
	le.PutUint32(c[cfgNumPages:], d.target.Load())
	le.PutUint32(c[cfgActual:], d.actual.Load())
	le.PutUint32(c[cfgHintCmdID:], d.hint.command.Load())
	le.PutUint32(c[cfgPoisonVal:], d.poison.Load())
	copy(p, c[off:])
}

// WriteConfig implements virtio.Device. The driver owns two fields: virtio 1.2,
// 5.5.6 and 5.5.6.6.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if len(p) != 4 {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	switch off {
	case cfgActual:
		d.actual.Store(v)
	case cfgPoisonVal:
		d.poison.Store(v)
	}
}
