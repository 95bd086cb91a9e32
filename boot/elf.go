package boot

import (
	"debug/elf"
	"encoding/binary"
	"fmt"

	"godwit/kvm/guestmem"
)

const (
	notePhys32Entry  = 18         // XEN_ELFNOTE_PHYS32_ENTRY, Xen's public/elfnote.h
	startInfoMagic   = 0x336ec578 // Xen's public/arch-x86/hvm/start_info.h
	startInfoVersion = 1          // the first with a memory map
	maxNotes         = 64 << 10   // bytes of notes that are looked through
)

// loadELF loads an ELF kernel and prepares its PVH entry.
func loadELF(mem *guestmem.Memory, low uint64, cfg Config) (Entry, error) {
	img := cfg.Kernel
	fail := func(format string, a ...any) (Entry, error) {
		return Entry{}, fmt.Errorf("load kernel %q: %w: %s", img.Name, ErrKernel, fmt.Sprintf(format, a...))
	}
	f, err := elf.NewFile(img)
	if err != nil {
		return fail("%v; is the file whole?", err)
	}
	if f.Machine != elf.EM_X86_64 && f.Machine != elf.EM_386 {
		return fail("built for %v; build it for x86", f.Machine)
	}
	rip, ok := pvhEntry(f)
	if !ok {
		return fail("no PVH entry point (Xen note PHYS32_ENTRY); build it with CONFIG_PVH=y, or give the bzImage")
	}
	var end uint64
	for i, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		if p.Filesz > p.Memsz || p.Off > uint64(img.Size) || p.Filesz > uint64(img.Size)-p.Off {
			return fail("segment %d lies outside the file of %d bytes; is the file whole?", i, img.Size)
		}
		if p.Paddr < highMemory || p.Paddr >= low || p.Memsz > low-p.Paddr {
			return Entry{}, fmt.Errorf("load kernel %q: %w: segment %d needs addresses %#x to %#x, the guest has RAM for kernels from %#x to %#x; %s",
				img.Name, ErrMemory, i, p.Paddr, p.Paddr+p.Memsz, highMemory, low, moreMemory(p.Paddr, p.Memsz))
		}
		// What lies past Filesz is zero already: the machine is fresh.
		if err := copyIn(mem, p.Paddr, img, int64(p.Off), int64(p.Filesz)); err != nil {
			return Entry{}, err
		}
		end = max(end, p.Paddr+p.Memsz)
	}
	if rip < highMemory || rip >= end {
		return fail("its PVH entry point %#x is outside its segments", rip)
	}
	if err := writeCmdline(mem, cfg.Cmdline, maxCmdline-1); err != nil {
		return Entry{}, err
	}
	if err := writeStartInfo(mem, cfg.Initrd, end, low); err != nil {
		return Entry{}, err
	}
	e := Entry{Mode: Protected32, RIP: rip, RBX: startInfoAddr, Code: 0x08, Data: 0x10, Task: 0x18}
	return writeGDT(mem, e, []uint64{0, gdtCode32, gdtData, gdtTSS})
}

// pvhEntry finds the Xen note that gives the 32-bit entry point.
func pvhEntry(f *elf.File) (uint64, bool) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes := make([]byte, min(p.Filesz, maxNotes))
		n, _ := p.ReadAt(notes, 0)
		if v, ok := findNote(notes[:n], f.ByteOrder, p.Align); ok {
			return v, true
		}
	}
	return 0, false
}

// findNote walks notes (ELF gABI, "Note Section"): sizes of name and
// description, type, name, description, each padded. Old tools give every
// note segment an alignment of 4, and Linux's vmlinux pads to 4 whatever the
// segment says.
func findNote(b []byte, order binary.ByteOrder, align uint64) (uint64, bool) {
	pad := func(n uint64) uint64 { return (n + 3) &^ 3 }
	if align == 8 {
		pad = func(n uint64) uint64 { return (n + 7) &^ 7 }
	}
	for uint64(len(b)) >= 12 {
		namesz, descsz, kind := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:])), order.Uint32(b[8:])
		nameEnd := 12 + namesz
		desc := pad(nameEnd)
		if nameEnd > uint64(len(b)) || desc+descsz > uint64(len(b)) {
			return 0, false
		}
		if kind == notePhys32Entry && string(b[12:nameEnd]) == "Xen\x00" {
			switch {
			case descsz >= 8:
				return order.Uint64(b[desc:]), true
			case descsz >= 4:
				return uint64(order.Uint32(b[desc:])), true
			}
			return 0, false
		}
		next := pad(desc + descsz)
		if next > uint64(len(b)) {
			return 0, false
		}
		b = b[next:]
	}
	return 0, false
}

// writeStartInfo places struct hvm_start_info, its module list and its memory
// map (Xen's public/arch-x86/hvm/start_info.h).
func writeStartInfo(mem *guestmem.Memory, initrd *Image, kernelEnd, low uint64) error {
	le := binary.LittleEndian
	var info [56]byte
	le.PutUint32(info[0:], startInfoMagic)
	le.PutUint32(info[4:], startInfoVersion)
	if initrd != nil {
		gpa, err := placeInitrd(mem, *initrd, kernelEnd, low)
		if err != nil {
			return err
		}
		var mod [32]byte
		le.PutUint64(mod[0:], gpa)
		le.PutUint64(mod[8:], uint64(initrd.Size))
		if err := mem.WriteAt(mod[:], modListAddr); err != nil {
			return err
		}
		le.PutUint32(info[12:], 1)
		le.PutUint64(info[16:], modListAddr)
	}
	le.PutUint64(info[24:], cmdlineAddr)
	ranges := memoryMap(mem)
	var table []byte
	for _, r := range ranges {
		table = le.AppendUint64(table, r.addr)
		table = le.AppendUint64(table, r.size)
		table = le.AppendUint32(table, r.kind)
		table = le.AppendUint32(table, 0)
	}
	if err := mem.WriteAt(table, memMapAddr); err != nil {
		return err
	}
	le.PutUint64(info[40:], memMapAddr)
	le.PutUint32(info[48:], uint32(len(ranges)))
	return mem.WriteAt(info[:], startInfoAddr)
}
