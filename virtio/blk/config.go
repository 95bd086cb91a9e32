package blk

import (
	"encoding/binary"
	"math/bits"
)

// Feature bits: virtio 1.2, 5.2.3.
const (
	featureSegMax      = 1 << 2  // VIRTIO_BLK_F_SEG_MAX
	featureRO          = 1 << 5  // VIRTIO_BLK_F_RO
	featureBlkSize     = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE
	featureFlush       = 1 << 9  // VIRTIO_BLK_F_FLUSH
	featureTopology    = 1 << 10 // VIRTIO_BLK_F_TOPOLOGY
	featureConfigWCE   = 1 << 11 // VIRTIO_BLK_F_CONFIG_WCE
	featureMQ          = 1 << 12 // VIRTIO_BLK_F_MQ
	featureDiscard     = 1 << 13 // VIRTIO_BLK_F_DISCARD
	featureWriteZeroes = 1 << 14 // VIRTIO_BLK_F_WRITE_ZEROES
)

// Offsets in struct virtio_blk_config: virtio 1.2, 5.2.4.
const (
	cfgCapacity          = 0
	cfgSegMax            = 12
	cfgBlkSize           = 20
	cfgPhysicalBlockExp  = 24
	cfgMinIOSize         = 26
	cfgWriteback         = 32
	cfgNumQueues         = 34
	cfgMaxDiscardSectors = 36
	cfgMaxDiscardSeg     = 40
	cfgDiscardAlignment  = 44
	cfgMaxZeroesSectors  = 48
	cfgMaxZeroesSeg      = 52
	cfgZeroesMayUnmap    = 56
	cfgSize              = 60
)

// Limits that the configuration space announces.
const (
	maxDiscardSectors     = 1 << 30 / SectorSize  // a hole is cheap
	maxWriteZeroesSectors = 32 << 20 / SectorSize // it may have to be written out
	maxRanges             = 16

	descriptorsBesidesData = 2 // header and status
)

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := uint64(featureSegMax | featureBlkSize | featureFlush | featureTopology | featureConfigWCE)
	if d.backend.ReadOnly() {
		f |= featureRO
	} else {
		f |= featureDiscard | featureWriteZeroes
	}
	if d.queues > 1 {
		f |= featureMQ
	}
	return f
}

// config lays the configuration space out. The logical block stays 512 bytes for
// every backend, or a disk would lose its partition table with a change of cache
// mode; a larger block is told as the physical one, which file systems align to.
func (d *Device) config() (c [cfgSize]byte) {
	block := uint32(d.backend.BlockSize()) / SectorSize
	le := binary.LittleEndian
	le.PutUint64(c[cfgCapacity:], d.sectors())
	le.PutUint32(c[cfgSegMax:], uint32(d.qsize)-descriptorsBesidesData)
	le.PutUint32(c[cfgBlkSize:], SectorSize)
	c[cfgPhysicalBlockExp] = uint8(bits.TrailingZeros32(block))
	le.PutUint16(c[cfgMinIOSize:], uint16(block))
	if d.writeback.Load() {
		c[cfgWriteback] = 1
	}
	le.PutUint16(c[cfgNumQueues:], uint16(d.queues))
	if !d.backend.ReadOnly() {
		le.PutUint32(c[cfgMaxDiscardSectors:], maxDiscardSectors)
		le.PutUint32(c[cfgMaxDiscardSeg:], maxRanges)
		le.PutUint32(c[cfgDiscardAlignment:], block)
		le.PutUint32(c[cfgMaxZeroesSectors:], maxWriteZeroesSectors)
		le.PutUint32(c[cfgMaxZeroesSeg:], maxRanges)
		c[cfgZeroesMayUnmap] = 1
	}
	return c
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off >= cfgSize {
		return
	}
	c := d.config()
	copy(p, c[off:])
}

// Negotiated implements virtio.Negotiator: a driver that cannot flush finds no
// write cache (virtio 1.2, 5.2.5.2), unless it turns it on knowingly.
func (d *Device) Negotiated(features uint64) {
	if features&featureFlush == 0 {
		d.writeback.Store(false)
	}
}

// WriteConfig implements virtio.Device. Only the cache mode can be changed:
// virtio 1.2, 5.2.5.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off == cfgWriteback && len(p) == 1 && p[0] <= 1 {
		d.writeback.Store(p[0] == 1)
	}
}

func (d *Device) sectors() uint64 { return uint64(d.backend.Size()) / SectorSize }
