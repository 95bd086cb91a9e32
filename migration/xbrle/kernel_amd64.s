#include "textflag.h"

// func diffAVX2(masks *[65]uint64, snap, base, page *[4096]byte) (changed uint64)
//
// Every byte of page is loaded once: the register that is compared is the one
// that is stored to snap, so snap and masks agree while the guest writes.
TEXT ·diffAVX2(SB), NOSPLIT, $0-40
	MOVQ masks+0(FP), DI
	MOVQ snap+8(FP), DX
	MOVQ base+16(FP), SI
	MOVQ page+24(FP), BX
	XORQ CX, CX

pair:
	VMOVDQU   (BX)(CX*1), Y0
	VMOVDQU   32(BX)(CX*1), Y1
	VMOVDQU   64(BX)(CX*1), Y2
	VMOVDQU   96(BX)(CX*1), Y3
	VMOVDQU   Y0, (DX)(CX*1)
	VMOVDQU   Y1, 32(DX)(CX*1)
	VMOVDQU   Y2, 64(DX)(CX*1)
	VMOVDQU   Y3, 96(DX)(CX*1)
	VPCMPEQB  (SI)(CX*1), Y0, Y0
	VPCMPEQB  32(SI)(CX*1), Y1, Y1
	VPCMPEQB  64(SI)(CX*1), Y2, Y2
	VPCMPEQB  96(SI)(CX*1), Y3, Y3
	VPMOVMSKB Y0, R8
	VPMOVMSKB Y1, R9
	VPMOVMSKB Y2, R10
	VPMOVMSKB Y3, R11
	SHLQ      $32, R9
	SHLQ      $32, R11
	ORQ       R9, R8
	ORQ       R11, R10
	NOTQ      R8
	NOTQ      R10
	MOVQ      R8, (DI)
	MOVQ      R10, 8(DI)
	ADDQ      $16, DI
	ADDQ      $128, CX
	CMPQ      CX, $4096
	JB        pair

	// One bit per line, from the last line to the first: four masks at a time.
	VPXOR Y15, Y15, Y15
	XORQ  AX, AX
	MOVQ  $16, CX

summary:
	SUBQ      $32, DI
	VPCMPEQQ  (DI), Y15, Y0
	VMOVMSKPD Y0, R8
	SHLQ      $4, AX
	ORQ       R8, AX
	DECQ      CX
	JNZ       summary
	NOTQ      AX
	MOVQ      AX, changed+32(FP)
	VZEROUPPER
	RET

// func edgesAVX2(edges *[2048]uint16, masks *[65]uint64, changed uint64) int
//
// R9 to R13 hold the previous line's stages, whose top bits are carried into
// this line: difference, dilated by 1, dilated by 3, eroded by 1, eroded by 3.
// A line without a difference after another such line has no edge and carries
// nothing, so only the lines with a difference and their followers are visited.
TEXT ·edgesAVX2(SB), NOSPLIT, $0-32
	MOVQ edges+0(FP), DI
	MOVQ masks+8(FP), SI
	MOVQ changed+16(FP), DX
	MOVQ DX, R8
	SHLQ $1, R8
	ORQ  DX, R8              // the lines to visit
	SHRQ $63, DX             // 1: the tail after line 63 is to be visited too
	XORQ R9, R9
	XORQ R10, R10
	XORQ R11, R11
	XORQ R12, R12
	XORQ R13, R13

next:
	TESTQ  R8, R8
	JZ     tail
	TZCNTQ R8, CX
	BLSRQ  R8, R8

visit:
	MOVQ (SI)(CX*8), BX      // difference
	SHRQ $63, R9
	LEAQ (R9)(BX*2), AX
	MOVQ BX, R9
	ORQ  BX, AX              // dilated by 1
	SHRQ $62, R10
	LEAQ (R10)(AX*4), BX
	MOVQ AX, R10
	ORQ  AX, BX              // dilated by 3
	SHRQ $63, R11
	LEAQ (R11)(BX*2), AX
	MOVQ BX, R11
	ANDQ BX, AX              // eroded by 1
	SHRQ $62, R12
	LEAQ (R12)(AX*4), BX
	MOVQ AX, R12
	ANDQ AX, BX              // eroded by 3: gaps of up to 3 are closed
	SHRQ $63, R13
	LEAQ (R13)(BX*2), AX
	MOVQ BX, R13
	XORQ BX, AX              // edges
	JZ   next

	SHLQ    $6, CX
	SUBQ    $3, CX           // the closing moved everything up by 3
	POPCNTQ AX, BX

eight:
	// Eight at a time whatever their number: a branch for each would be
	// mispredicted once per line. What is too many is overwritten.
#define EDGE(OFF) \
	TZCNTQ AX, R15     \
	ADDQ   CX, R15     \
	MOVW   R15, OFF(DI) \
	BLSRQ  AX, AX
	EDGE(0)
	EDGE(2)
	EDGE(4)
	EDGE(6)
	EDGE(8)
	EDGE(10)
	EDGE(12)
	EDGE(14)
	CMPQ BX, $8
	JA   more
	LEAQ (DI)(BX*2), DI
	JMP  next

more:
	ADDQ $16, DI
	SUBQ $8, BX
	JMP  eight

tail:
	TESTQ DX, DX
	JZ    done
	XORQ  DX, DX
	MOVQ  $64, CX
	JMP   visit

done:
	MOVQ edges+0(FP), AX
	SUBQ AX, DI
	SHRQ $1, DI
	MOVQ DI, ret+24(FP)
	RET

// func foldAVX2(base, snap *[4096]byte, changed uint64, shift *[512]uint64) (crc uint32)
//
// CRC is linear: the CRC of the new page is that of the old one, XORed with the
// CRC of each line's difference moved to its place. Moving is a carry-less
// multiplication by a power of x, reduced by the CRC instruction itself (Gopal
// et al., Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction).
TEXT ·foldAVX2(SB), NOSPLIT, $0-36
	MOVQ base+0(FP), DI
	MOVQ snap+8(FP), SI
	MOVQ changed+16(FP), DX
	MOVQ shift+24(FP), BX
	XORQ AX, AX
	TESTQ DX, DX
	JZ   folded

line:
	TZCNTQ DX, CX
	BLSRQ  DX, DX
	SHLQ   $6, CX
	VMOVQ  56(BX)(CX*1), X1  // of the line's last word
	XORL   R8, R8
#define WORD(OFF) \
	MOVQ   OFF(SI)(CX*1), R9 \
	XORQ   OFF(DI)(CX*1), R9 \
	CRC32Q R9, R8
	WORD(0)
	WORD(8)
	WORD(16)
	WORD(24)
	WORD(32)
	WORD(40)
	WORD(48)
	WORD(56)
	VMOVDQU (SI)(CX*1), Y2
	VMOVDQU 32(SI)(CX*1), Y3
	VMOVDQU Y2, (DI)(CX*1)
	VMOVDQU Y3, 32(DI)(CX*1)
	VMOVQ   R8, X0
	VPCLMULQDQ $0, X1, X0, X0
	VMOVQ   X0, R9
	XORL    R10, R10
	CRC32Q  R9, R10
	XORL    R10, AX
	TESTQ   DX, DX
	JNZ     line

folded:
	MOVL AX, crc+32(FP)
	VZEROUPPER
	RET

// func emitAVX2(dst *[4096]byte, snap *[4160]byte, edges *[2048]uint16, i, n, at, o int) (nextI, nextO int)
//
// Writes runs while each is a gap below 128, a literal of at most 16 bytes, and
// room for one copied as if it had 16. The literal's surplus is overwritten by
// the next run; snap has as many bytes to spare.
TEXT ·emitAVX2(SB), NOSPLIT, $0-72
	MOVQ dst+0(FP), DI
	MOVQ snap+8(FP), SI
	MOVQ edges+16(FP), BX
	MOVQ i+24(FP), CX
	MOVQ n+32(FP), DX
	MOVQ at+40(FP), AX
	MOVQ o+48(FP), R8
	LEAQ 4077(DI), R12       // the last place with room for 2 + 16 and one less than a page
	ADDQ DI, R8

run:
	CMPQ    CX, DX
	JAE     stop
	CMPQ    R8, R12
	JA      stop
	MOVWLZX (BX)(CX*2), R9   // from
	MOVWLZX 2(BX)(CX*2), R10 // to
	MOVQ    R9, R11
	SUBQ    AX, R11          // gap
	MOVQ    R10, R13
	SUBQ    R9, R13          // literal
	CMPQ    R11, $128
	JAE     stop
	CMPQ    R13, $16
	JA      stop
	VMOVDQU (SI)(R9*1), X0
	MOVB    R11, (R8)
	MOVB    R13, 1(R8)
	VMOVDQU X0, 2(R8)
	LEAQ    2(R8)(R13*1), R8
	MOVQ    R10, AX
	ADDQ    $2, CX
	JMP     run

stop:
	SUBQ DI, R8
	MOVQ CX, nextI+56(FP)
	MOVQ R8, nextO+64(FP)
	RET
