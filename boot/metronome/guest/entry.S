/* The CPL 0 part, as short as it can be: PVM emulates CPL 0 at about 1.4 million
 * instructions a second. Page tables, GDT and the first TSS are data of the ELF,
 * so all that is left is to load registers and iretq to CPL 3. Whatever else must
 * be built (IDT, other TSSs, page directories above 1 GiB) is built at CPL 3, at
 * full speed, since these tables lie in user pages. */
#include "layout.h"

/* Xen PVH: XEN_ELFNOTE_PHYS32_ENTRY (18), entered in 32-bit protected mode, paging
 * off, EBX = physical address of struct hvm_start_info. */
	.section .note.pvh, "a", @note
	.align 4
	.long 4
	.long 8
	.long 18
	.asciz "Xen"
	.quad entry32

	.section .text.entry, "ax"
	.code32
	.globl entry32
entry32:
	cli
	cld
	xorl %edi, %edi
	movl %ebx, %esi
	lgdt gdt_pointer
	/* A descriptor's base is split in a way no relocation can express. */
	movl $tss, %eax
	movw %ax, gdt + SEL_TSS + 2
	shrl $16, %eax
	movb %al, gdt + SEL_TSS + 4
	movb %ah, gdt + SEL_TSS + 7
	/* At reset the PICs inject vectors 0-7 under PVM: mask both. */
	movb $0xff, %al
	outb %al, $0x21
	outb %al, $0xa1

/* EDI = vCPU number, ESI = start info (vCPU 0), GDT loaded. */
	.globl enter_long
enter_long:
	movl $0x20, %eax	/* CR4.PAE */
	movl %eax, %cr4
	movl $pml4, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx	/* EFER.LME */
	xorl %edx, %edx
	movl $0x100, %eax
	wrmsr
	movl $0x80000033, %eax	/* CR0: PG NE ET MP PE */
	movl %eax, %cr0
	ljmp $SEL_CODE64, $long64

	.code64
long64:
	lidt idt_pointer
	movl %edi, %eax
	shll $4, %eax
	addl $SEL_TSS, %eax
	ltr %ax
	/* User stack of this vCPU; the frame for iretq lies on it for a moment. */
	movl %edi, %eax
	incl %eax
	imull $STACK_BYTES, %eax, %eax
	addl $user_stacks, %eax
	movq %rax, %rsp
	pushq $SEL_UDATA
	pushq %rax
	pushq $2		/* RFLAGS: interrupts stay off for good */
	pushq $SEL_UCODE
	pushq $start_user
	iretq

/* CPL 3 from here. RDI = vCPU number, RSI = start info. */
start_user:
	xorl %ebp, %ebp
	call guest_main
1:	pause
	jmp 1b

/* Exception stubs, 16 bytes apart: vectors 0-31. Those without an error code push 0. */
	.align 16
	.globl stubs
stubs:
	.set vector, 0
	.rept 32
	.align 16
	.if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
	.else
	pushq $0
	.endif
	pushq $vector
	jmp fault_common
	.set vector, vector + 1
	.endr

fault_common:
	cld
	movq %rsp, %rdi		/* vector, error, rip, cs, rflags, rsp, ss */
	movq %cr2, %rsi
	andq $-16, %rsp
	call fault
1:	cli
	hlt
	jmp 1b

/* Halts this vCPU for good, from CPL 3: hlt raises #GP there, which the handler knows
 * by its address. (PVM turns `int n` at CPL 3 into #UD, so no software interrupt.) */
	.globl halt, halt_instruction
halt:
halt_instruction:
	hlt
	jmp halt

/* Copied to TRAMPOLINE_GPA. Real mode, CS = TRAMPOLINE_GPA >> 4. */
	.section .rodata
	.code16
	.globl trampoline, trampoline_end
trampoline:
	cli
	cld
	movw %cs, %ax
	movw %ax, %ds
	lgdtl trampoline_gdt - trampoline
	movl $0x31, %eax	/* CR0: NE ET PE, caches on */
	movl %eax, %cr0
	ljmpl $SEL_CODE32, $ap32
	.align 4
trampoline_gdt:
	.word gdt_end - gdt - 1
	.long gdt
trampoline_end:

	.section .text.entry, "ax"
	.code32
ap32:
	movw $SEL_DATA32, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movl starting_cpu, %edi
	jmp enter_long

	.section .data
	.align 4096
	.globl pml4
/* Accessed and dirty bits are set beforehand, so that no walker has to write them. */
pml4:
	.quad pdpt + 0x27
	.fill 511, 8, 0
pdpt:
	.quad pd0 + 0x27
	.set gib, 1
	.rept MAX_GIB - 1
	.quad page_directories + (gib - 1) * 4096 + 0x27
	.set gib, gib + 1
	.endr
	.fill 512 - MAX_GIB, 8, 0
/* The first GiB: 2 MiB pages, present, writable, user. */
pd0:
	.set mib2, 0
	.rept 512
	.quad mib2 * 0x200000 + 0xe7
	.set mib2, mib2 + 1
	.endr

	.align 16
	.globl gdt
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff	/* 32-bit code */
	.quad 0x00cf93000000ffff	/* data */
	.quad 0x00af9b000000ffff	/* 64-bit code */
	.quad 0x00cff3000000ffff	/* user data */
	.quad 0x00affb000000ffff	/* user 64-bit code */
	.word TSS_BYTES - 1, 0		/* TSS of vCPU 0; the base is set at entry */
	.byte 0, 0x89, 0, 0
	.quad 0
	.fill 16 * (MAX_VCPUS - 1), 1, 0
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
	.align 8
	.word 0, 0, 0
idt_pointer:
	.word 16 * 32 - 1
	.quad idt

/* TSS of vCPU 0, the pattern of all others. A clear bit opens a port to CPL 3. */
	.align 16
	.globl tss
tss:
	.long 0
	.quad fault_stacks + STACK_BYTES	/* RSP0 */
	.fill 90, 1, 0
	.word TSS_IOMAP
	.fill 0x40 / 8, 1, 0xff
	.byte 0xf6			/* 0x40, 0x43: PIT counter 0 */
	.fill 0x3f8 / 8 - 0x48 / 8, 1, 0xff
	.byte 0x00			/* 0x3f8-0x3ff: COM1 */
	.fill 0x500 / 8 - 0x400 / 8, 1, 0xff
	.byte 0xfd			/* 0x501: debug exit */
	.byte 0xfe			/* 0x508: boot timer */
	.fill TSS_BYTES - TSS_IOMAP - IOMAP_BYTES, 1, 0xff
	.if . - tss - TSS_BYTES
	.error "TSS_BYTES is not the size of the TSS"
	.endif
	.fill TSS_BYTES * (MAX_VCPUS - 1), 1, 0

	.section .bss
	.align 4096
	.globl page_directories, user_stacks, fault_stacks, idt
page_directories:
	.skip 4096 * (MAX_GIB - 1)
user_stacks:
	.skip STACK_BYTES * MAX_VCPUS
fault_stacks:
	.skip STACK_BYTES * MAX_VCPUS
idt:
	.skip 16 * 32

	.section .note.GNU-stack, "", @progbits
