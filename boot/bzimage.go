package boot

import (
	"encoding/binary"
	"fmt"

	"godwit/kvm/guestmem"
)

// Fields of the setup header, by their offset in the file and in boot_params
// (Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
const (
	hdrSetupSects   = 0x1f1
	hdrBootFlag     = 0x1fe
	hdrJump         = 0x200 // its second byte gives the header's end
	hdrMagic        = 0x202
	hdrVersion      = 0x206
	hdrTypeOfLoader = 0x210
	hdrLoadFlags    = 0x211
	hdrRamdiskImage = 0x218
	hdrRamdiskSize  = 0x21c
	hdrCmdLinePtr   = 0x228
	hdrInitrdMax    = 0x22c
	hdrXLoadFlags   = 0x236
	hdrCmdlineSize  = 0x238
	hdrPrefAddress  = 0x258
	hdrInitSize     = 0x260

	setupHeaderStart = hdrSetupSects
	loadedHigh       = 0x01 // loadflags
	xlfKernel64      = 0x01 // xloadflags: has the 64-bit entry point
	loaderUndefined  = 0xff // type_of_loader: none assigned
	protocol212      = 0x020c
	entry64Offset    = 0x200 // from the start of the protected-mode code

	// Fields of boot_params outside the header (Documentation/arch/x86/zero-page.rst).
	zpE820Entries = 0x1e8
	zpE820Table   = 0x2d0
	zpE820Max     = 128
)

// loadBzImage follows the 64-bit boot protocol.
func loadBzImage(mem *guestmem.Memory, low uint64, cfg Config) (Entry, error) {
	img := cfg.Kernel
	fail := func(format string, a ...any) (Entry, error) {
		return Entry{}, fmt.Errorf("load kernel %q: %w: %s", img.Name, ErrKernel, fmt.Sprintf(format, a...))
	}
	// The header is read once and judged in our copy: the file may change.
	var head [0x300]byte
	if _, err := img.ReadAt(head[:], 0); err != nil {
		return fail("%d bytes are too few for a bzImage; is the file whole?", img.Size)
	}
	le := binary.LittleEndian
	if le.Uint16(head[hdrBootFlag:]) != 0xaa55 || string(head[hdrMagic:hdrMagic+4]) != "HdrS" {
		return fail("neither bzImage nor ELF; give a bzImage or a vmlinux")
	}
	if v := le.Uint16(head[hdrVersion:]); v < protocol212 {
		return fail("boot protocol %d.%02d is older than 2.12; use Linux 3.8 or later", v>>8, v&0xff)
	}
	if head[hdrLoadFlags]&loadedHigh == 0 {
		return fail("a zImage, which loads below 1 MiB; build bzImage")
	}
	if le.Uint16(head[hdrXLoadFlags:])&xlfKernel64 == 0 {
		return fail("no 64-bit entry point; build it for x86_64")
	}
	sects := int64(head[hdrSetupSects])
	if sects == 0 {
		sects = 4
	}
	setup := (sects + 1) * 512
	body := img.Size - setup
	if body <= entry64Offset {
		return fail("truncated: %d bytes, the setup part alone is %d", img.Size, setup)
	}
	if syssize := int64(le.Uint32(head[0x1f4:])) * 16; body < syssize-15 {
		return fail("truncated: %d bytes of protected-mode code, the header says %d", body, syssize)
	}

	need := max(uint64(body), uint64(le.Uint32(head[hdrInitSize:])))
	// A kernel loaded below the address it prefers would move itself there all
	// the same (LOAD_PHYSICAL_ADDR), so that is where it must fit.
	load := le.Uint64(head[hdrPrefAddress:])
	if load < highMemory || load >= low || need > low-load {
		return Entry{}, fmt.Errorf("load kernel %q: %w: it needs %d MiB from address %d MiB, the guest has %d MiB there; %s",
			img.Name, ErrMemory, (need+1<<20-1)>>20, load>>20, low>>20, moreMemory(load, need))
	}
	if err := copyIn(mem, load, img, setup, body); err != nil {
		return Entry{}, err
	}
	limit := int(le.Uint32(head[hdrCmdlineSize:]))
	if limit <= 0 || limit >= maxCmdline {
		limit = maxCmdline - 1
	}
	if err := writeCmdline(mem, cfg.Cmdline, limit); err != nil {
		return Entry{}, err
	}

	var zp [guestmem.PageSize]byte
	end := min(hdrMagic+int(head[hdrJump+1]), len(head))
	copy(zp[setupHeaderStart:end], head[setupHeaderStart:end])
	zp[hdrTypeOfLoader] = loaderUndefined
	le.PutUint32(zp[hdrCmdLinePtr:], cmdlineAddr)
	if cfg.Initrd != nil {
		top := min(low, uint64(le.Uint32(head[hdrInitrdMax:]))+1)
		gpa, err := placeInitrd(mem, *cfg.Initrd, load+need, top)
		if err != nil {
			return Entry{}, err
		}
		le.PutUint32(zp[hdrRamdiskImage:], uint32(gpa))
		le.PutUint32(zp[hdrRamdiskSize:], uint32(cfg.Initrd.Size))
	}
	for i, r := range memoryMap(mem) {
		if i == zpE820Max {
			break
		}
		e := zp[zpE820Table+20*i:]
		le.PutUint64(e, r.addr)
		le.PutUint64(e[8:], r.size)
		le.PutUint32(e[16:], r.kind)
		zp[zpE820Entries]++
	}
	if err := mem.WriteAt(zp[:], zeroPageAddr); err != nil {
		return Entry{}, err
	}
	return entry64(mem, load+entry64Offset)
}

// entry64 builds the identity map and the descriptors that the 64-bit protocol
// asks for: __BOOT_CS at 0x10, __BOOT_DS at 0x18, RSI at boot_params.
func entry64(mem *guestmem.Memory, rip uint64) (Entry, error) {
	le := binary.LittleEndian
	const present, writable, large = 1, 2, 0x80 // Intel SDM 3A, 4.5
	tables := make([]byte, 6*guestmem.PageSize)
	le.PutUint64(tables, pdptAddr|present|writable)
	pdpt, pd := tables[guestmem.PageSize:], tables[2*guestmem.PageSize:]
	for i := range uint64(4) {
		le.PutUint64(pdpt[8*i:], pdAddr+i*guestmem.PageSize|present|writable)
	}
	for i := range uint64(4 * 512) {
		le.PutUint64(pd[8*i:], i<<21|present|writable|large)
	}
	if err := mem.WriteAt(tables, pml4Addr); err != nil {
		return Entry{}, err
	}
	e := Entry{Mode: Long64, RIP: rip, RSI: zeroPageAddr, CR3: pml4Addr, Code: 0x10, Data: 0x18, Task: 0x20}
	return writeGDT(mem, e, []uint64{0, 0, gdtCode64, gdtData, gdtTSS})
}
