/* Fixed addresses and limits, shared by the assembly, the C code and the linker
 * script. The Go constants in ../layout.go mirror them; a test compares the two. */
#ifndef LAYOUT_H
#define LAYOUT_H

#define TRAMPOLINE_GPA 0x8000   /* SIPI vector 8: real-mode start of the other vCPUs */
#define IMAGE_GPA      0x100000 /* the ELF is loaded here */
#define INFO_GPA       0x1e0000 /* struct info, one page */
#define MAILBOX_GPA    0x1f0000 /* left alone by the guest, for the VMM's tests */
#define MAILBOX_PAGES  16
#define ARENA_GPA      0x200000 /* version table, then fill, text, free memory */
#define LAPIC_GPA      0xfee00000

#define MAX_VCPUS 32
#define MAX_GIB   64 /* one page directory each in .bss */
#define STACK_BYTES 4096

#define PORT_COM1       0x3f8
#define PORT_EXIT       0x501
#define PORT_BOOT_TIMER 0x508

#define EXIT_BAD_OPTION 0x02
#define EXIT_FAULT      0x0d

/* GDT selectors. */
#define SEL_CODE32 0x08
#define SEL_DATA32 0x10
#define SEL_CODE64 0x18
#define SEL_UDATA  0x23
#define SEL_UCODE  0x2b
#define SEL_TSS    0x30 /* 16 bytes per vCPU from here on */

/* struct tss: the 104 bytes of hardware, then the I/O bitmap up to the boot timer. */
#define TSS_IOMAP  104
#define IOMAP_BYTES (PORT_BOOT_TIMER / 8 + 1)
#define TSS_BYTES  272 /* with the closing 0xff byte, rounded up to 16 */

#endif
