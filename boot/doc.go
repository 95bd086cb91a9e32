// Package boot places a kernel, its command line, an optional initrd and the
// boot tables into guest memory, and says how the first vCPU must start.
//
// Two kinds of kernel are known, told apart by their first bytes:
//
//   - bzImage, started by the 64-bit protocol of Linux's
//     Documentation/arch/x86/boot.rst (version 2.12 or later);
//   - ELF with a Xen PHYS32_ENTRY note (vmlinux built with CONFIG_PVH, or
//     metronome), started by the PVH protocol of Xen's docs/misc/pvh.pandoc.
//
// Guest memory after Load:
//
//	0x0000_0500  GDT
//	0x0000_6000  PVH start info, module list, memory map
//	0x0000_7000  boot_params ("zero page")
//	0x0000_9000  page tables: the first 4 GiB, identity, 2 MiB pages
//	0x0002_0000  command line
//	0x000f_0000  MP floating pointer and table (Intel MP 1.4)
//	0x0010_0000  kernel (ELF: where its segments say)
//	      ...    initrd, as high as the kernel allows
//
// The package trusts no kernel file: every offset, length and address is
// checked against the file and guest memory before use, and Load either places
// everything or reports why not. It only writes guest memory; registers are
// set by vmm from the Entry that Load returns.
package boot
