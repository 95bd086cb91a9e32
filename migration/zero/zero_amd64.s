#include "textflag.h"

// TEST512 ORs the 512 bytes at DX into Y0 and sets the flag Z when they are all
// zero. Four accumulators keep the loads independent of each other.
#define TEST512 \
	VMOVDQU (DX), Y0 \
	VMOVDQU 32(DX), Y1 \
	VMOVDQU 64(DX), Y2 \
	VMOVDQU 96(DX), Y3 \
	VPOR 128(DX), Y0, Y0 \
	VPOR 160(DX), Y1, Y1 \
	VPOR 192(DX), Y2, Y2 \
	VPOR 224(DX), Y3, Y3 \
	VPOR 256(DX), Y0, Y0 \
	VPOR 288(DX), Y1, Y1 \
	VPOR 320(DX), Y2, Y2 \
	VPOR 352(DX), Y3, Y3 \
	VPOR 384(DX), Y0, Y0 \
	VPOR 416(DX), Y1, Y1 \
	VPOR 448(DX), Y2, Y2 \
	VPOR 480(DX), Y3, Y3 \
	VPOR Y0, Y1, Y0 \
	VPOR Y2, Y3, Y2 \
	VPOR Y0, Y2, Y0 \
	VPTEST Y0, Y0

// func scanVector(p *byte, pages uint64) uint64
//
// SI page, DX place in it, DI its end, CX pages left, R9 the page's bit, AX the
// result
TEXT ·scanVector(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), SI
	MOVQ pages+8(FP), CX
	XORL AX, AX
	MOVL $1, R9

page:
	MOVQ SI, DX
	LEAQ 4096(SI), DI

	// Most pages with data show it in the first line: read no more of them.
	VMOVDQU (DX), Y0
	VPOR    32(DX), Y0, Y0
	VPTEST  Y0, Y0
	JNZ     next

	PCALIGN $32
block:
	TEST512
	JNZ  next
	ADDQ $512, DX
	CMPQ DX, DI
	JB   block
	ORQ  R9, AX

next:
	MOVQ DI, SI
	SHLQ $1, R9
	DECQ CX
	JNZ  page
	VZEROUPPER
	MOVQ AX, ret+16(FP)
	RET
