package blockfile

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// geometry is what the host says of an image. Units are bytes.
type geometry struct {
	size   int64
	part   bool // the last sector of a raw image is not all in the file
	block  int  // smallest write without a read first
	device bool // a block device, not a regular file

	memAlign int // O_DIRECT: of each buffer's address
	offAlign int // O_DIRECT: of each offset and each buffer's length
}

// maxAlign bounds what we take as an alignment: larger is nonsense, and a
// bounce buffer must hold several.
const maxAlign = 64 << 10

func readGeometry(fd int, direct bool) (geometry, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return geometry{}, fmt.Errorf("stat: %w", err)
	}
	g := geometry{size: st.Size, block: SectorSize, memAlign: 1, offAlign: 1}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		g.device = true
		if err := g.readDevice(fd); err != nil {
			return geometry{}, err
		}
	default:
		return geometry{}, fmt.Errorf("neither a regular file nor a block device")
	}
	if direct {
		return g, g.readDirect(fd)
	}
	return g, nil
}

// wholeSectors makes a raw image's last sector a whole one: what is missing of it
// reads as zeroes, and is there once it is written.
func (g *geometry) wholeSectors() {
	g.part = g.size%SectorSize != 0
	g.size = (g.size + SectorSize - 1) &^ (SectorSize - 1)
}

// judgeRaw refuses a file that is no disk as it stands.
func (g *geometry) judgeRaw(direct bool) error {
	switch {
	case g.size == 0:
		return fmt.Errorf("empty; create it with the size of the disk, for example by truncate -s 1G")
	case g.size%SectorSize != 0 && direct:
		return fmt.Errorf("%d bytes are not a multiple of %d, which O_DIRECT needs; use cache=writeback, or extend it by truncate -s %d",
			g.size, SectorSize, (g.size+SectorSize-1)/SectorSize*SectorSize)
	case g.size%int64(g.offAlign) != 0:
		// Rounding a write up to a block must not make the image longer.
		return fmt.Errorf("%d bytes are not a multiple of %d, which O_DIRECT needs here; use cache=writeback or extend it", g.size, g.offAlign)
	}
	return nil
}

// readDevice asks a block device for what stat does not tell.
func (g *geometry) readDevice(fd int) error {
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return fmt.Errorf("read the size of the block device: %w", errno)
	}
	block, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("read the sector size of the block device: %w", err)
	}
	if block < SectorSize || block > maxAlign || block&(block-1) != 0 {
		return fmt.Errorf("the block device claims sectors of %d bytes", block)
	}
	g.size, g.block = int64(size), block
	return nil
}

// readDirect finds the alignments that O_DIRECT needs: from statx where the
// kernel tells (STATX_DIOALIGN, Linux 6.1), else a page for files, which is
// never too little on what Debian 12 and later run, and the sector for devices.
func (g *geometry) readDirect(fd int) error {
	g.memAlign, g.offAlign = unix.Getpagesize(), unix.Getpagesize()
	if g.device {
		g.memAlign, g.offAlign = g.block, g.block
	}
	var sx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &sx)
	if err == nil && sx.Mask&unix.STATX_DIOALIGN != 0 {
		if sx.Dio_offset_align == 0 {
			return fmt.Errorf("its file system has no O_DIRECT; use cache=writeback")
		}
		g.memAlign, g.offAlign = int(sx.Dio_mem_align), int(sx.Dio_offset_align)
	}
	for _, a := range []int{g.memAlign, g.offAlign} {
		if a < 1 || a > maxAlign || a&(a-1) != 0 {
			return fmt.Errorf("O_DIRECT wants an alignment of %d; use cache=writeback", a)
		}
	}
	g.block = max(g.block, g.offAlign)
	return nil
}
