#include "textflag.h"

DATA iota<>+0(SB)/8, $0x0706050403020100
DATA iota<>+8(SB)/8, $0x0f0e0d0c0b0a0908
DATA iota<>+16(SB)/8, $0x1716151413121110
DATA iota<>+24(SB)/8, $0x1f1e1d1c1b1a1918
DATA iota<>+32(SB)/8, $0x2726252423222120
DATA iota<>+40(SB)/8, $0x2f2e2d2c2b2a2928
DATA iota<>+48(SB)/8, $0x3736353433323130
DATA iota<>+56(SB)/8, $0x3f3e3d3c3b3a3938
GLOBL iota<>(SB), RODATA|NOPTR, $64

// func runsAVX512(runs *[1728]uint16, sent, lengths *[64]uint64, masks *[65]uint64) (n, size int)
//
// A byte of a gap of 3 or less has a difference within i bytes below it and one
// within 4-i above it, for i = 1, 2 or 3. Z0 to Z7 are the page's 4096 mask bits,
// Z8 to Z15 the same with such gaps filled: the literals.
TEXT ·runsAVX512(SB), NOSPLIT, $512-48
	MOVQ      runs+0(FP), DI
	MOVQ      sent+8(FP), DX
	MOVQ      lengths+16(FP), BX
	MOVQ      masks+24(FP), SI
	VPXORQ    Z31, Z31, Z31
	VMOVDQU64 (SI), Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	VMOVDQU64 256(SI), Z4
	VMOVDQU64 320(SI), Z5
	VMOVDQU64 384(SI), Z6
	VMOVDQU64 448(SI), Z7

	// Z18, Z19, Z20: a difference within 1, 2, 3 below. Z21, Z22, Z23: above.
	// 0xea is (a and b) or c.
#define FILL(PREV, MASK, NEXT, LIT) \
	VALIGNQ    $7, PREV, MASK, Z16   \
	VALIGNQ    $1, MASK, NEXT, Z17   \
	VPSHLDQ    $1, Z16, MASK, Z18    \
	VPSHLDQ    $2, Z16, MASK, Z19    \
	VPSHLDQ    $3, Z16, MASK, Z20    \
	VPSHRDQ    $1, Z17, MASK, Z21    \
	VPSHRDQ    $2, Z17, MASK, Z22    \
	VPSHRDQ    $3, Z17, MASK, Z23    \
	VPORQ      Z18, Z19, Z19         \
	VPORQ      Z19, Z20, Z20         \
	VPORQ      Z21, Z22, Z22         \
	VPORQ      Z22, Z23, Z23         \
	VPANDQ     Z18, Z23, Z23         \
	VPTERNLOGQ $0xea, Z23, Z22, Z19  \
	VPTERNLOGQ $0xea, Z19, Z21, Z20  \
	VPORQ      MASK, Z20, LIT
	FILL(Z31, Z0, Z1, Z8)
	FILL(Z0, Z1, Z2, Z9)
	FILL(Z1, Z2, Z3, Z10)
	FILL(Z2, Z3, Z4, Z11)
	FILL(Z3, Z4, Z5, Z12)
	FILL(Z4, Z5, Z6, Z13)
	FILL(Z5, Z6, Z7, Z14)
	FILL(Z6, Z7, Z31, Z15)

	// Z18, to the stack: the edges, bits that differ from the one below. Z21: the
	// two bytes before each literal, which its lengths take. Z22: what is sent,
	// these and the literals; counted in Z30. 0xfe is a or b or c.
#define STORE(PREV, LIT, NEXT, OFF) \
	VALIGNQ    $7, PREV, LIT, Z16    \
	VALIGNQ    $1, LIT, NEXT, Z17    \
	VPSHLDQ    $1, Z16, LIT, Z18     \
	VPSHRDQ    $1, Z17, LIT, Z21     \
	VPSHRDQ    $2, Z17, LIT, Z22     \
	VPXORQ     LIT, Z18, Z18         \
	VPTERNLOGQ $0xfe, LIT, Z21, Z22  \
	VPANDNQ    Z22, LIT, Z21         \
	VPOPCNTQ   Z22, Z23              \
	VPADDQ     Z23, Z30, Z30         \
	VMOVDQU64  Z18, edge-512+OFF(SP) \
	VMOVDQU64  Z22, OFF(DX)          \
	VMOVDQU64  Z21, OFF(BX)
	VPXORQ Z30, Z30, Z30
	STORE(Z31, Z8, Z9, 0)
	STORE(Z8, Z9, Z10, 64)
	STORE(Z9, Z10, Z11, 128)
	STORE(Z10, Z11, Z12, 192)
	STORE(Z11, Z12, Z13, 256)
	STORE(Z12, Z13, Z14, 320)
	STORE(Z13, Z14, Z15, 384)
	STORE(Z14, Z15, Z31, 448)

	VEXTRACTI64X4 $1, Z30, Y0
	VPADDQ        Y0, Y30, Y0
	VEXTRACTI128  $1, Y0, X1
	VPADDQ        X1, X0, X0
	VPSRLDQ       $8, X0, X1
	VPADDQ        X1, X0, X0
	VMOVQ         X0, size+40(FP)
	VEXTRACTI32X4 $3, Z15, X0
	VPEXTRQ       $1, X0, R8
	SHRQ          $63, R8            // 1: a literal ends with the page

	// The edges' places, those of a line at once. There are 26 or fewer, so that
	// 32 words have them all; what is too many is overwritten.
	VMOVDQU64    iota<>(SB), Z0
	VPXORQ       Z1, Z1, Z1          // the line's first byte, in every word
	MOVL         $64, AX
	VPBROADCASTW AX, Z2
	LEAQ         edge-512(SP), SI
	MOVW         $0, (DI)            // the first gap begins here
	ADDQ         $2, DI
	ADDQ         $512, SI
	MOVQ         $-512, CX

line:
	KMOVQ         (SI)(CX*1), K1
	POPCNTQ       (SI)(CX*1), AX
	VPXORQ        Z3, Z3, Z3         // processors wait for what is replaced
	VPCOMPRESSB.Z Z0, K1, Z3
	VPMOVZXBW     Y3, Z4
	VPADDW        Z1, Z4, Z4
	VPADDW        Z1, Z2, Z1
	VMOVDQU64     Z4, (DI)
	LEAQ          (DI)(AX*2), DI
	ADDQ          $8, CX
	JNZ           line

	// Behind the last run empty ones, as many as headersAVX512 reads too much.
	MOVW         $4096, (DI)
	LEAQ         (DI)(R8*2), DI
	MOVWLZX      -2(DI), AX
	VPBROADCASTW AX, Z3
	VMOVDQU64    Z3, (DI)
	SUBQ         runs+0(FP), DI
	SHRQ         $1, DI
	DECQ         DI
	MOVQ         DI, n+32(FP)
	VZEROUPPER
	RET

// func headersAVX512(headers *[1792]byte, long *[64]uint32, runs *[1728]uint16, n int) (any uint32)
//
// The differences between the n edges, each as a varint, and a bit in long for
// each that takes two bytes.
TEXT ·headersAVX512(SB), NOSPLIT, $0-36
	MOVQ headers+0(FP), DI
	MOVQ long+8(FP), DX
	MOVQ runs+16(FP), SI
	MOVQ n+24(FP), CX
	XORL R11, R11
	MOVL         $0x7f, AX
	VPBROADCASTW AX, Z10
	MOVL         $0xff00, AX
	VPBROADCASTW AX, Z11
	MOVL         $0x80, AX
	VPBROADCASTW AX, Z12
	MOVQ         $0x5555555555555555, AX
	KMOVQ        AX, K3

block:
	VMOVDQU64     2(SI), Z0
	VPSUBW        (SI), Z0, Z0
	VPCMPUW       $6, Z10, Z0, K1      // not at most 127
	VPSLLW        $1, Z0, Z1
	VPANDQ        Z10, Z0, Z0
	VPTERNLOGQ    $0xea, Z0, Z11, Z1   // the high 7 bits into the second byte
	VPADDW        Z12, Z1, K1, Z1      // and a mark that it is there
	VPTESTMB      Z1, Z1, K2
	KORQ          K3, K2, K2           // a second byte only where it is not zero
	VPCOMPRESSB.Z Z1, K2, Z1
	VMOVDQU64     Z1, (DI)
	KMOVD         K1, R8
	KMOVQ         K2, R9
	MOVL          R8, (DX)
	ORL           R8, R11
	POPCNTQ       R9, R9
	ADDQ          R9, DI
	ADDQ          $4, DX
	ADDQ          $64, SI
	SUBQ          $32, CX
	JG            block
	MOVL          R11, any+32(FP)
	VZEROUPPER
	RET

// func mergeAVX512(dst *[4096]byte, snap *[4160]byte, headers *[1792]byte, sent, lengths *[64]uint64, h int)
//
// Puts the lengths in the place of unchanged bytes before each literal, line by
// line, and packs what is sent. h bytes of headers are in dst already.
TEXT ·mergeAVX512(SB), NOSPLIT, $0-48
	MOVQ dst+0(FP), DI
	MOVQ snap+8(FP), SI
	MOVQ headers+16(FP), R8
	MOVQ sent+24(FP), DX
	MOVQ lengths+32(FP), BX
	MOVQ h+40(FP), AX
	LEAQ 4032(DI), R12       // the last place with room for a line
	ADDQ AX, DI
	ADDQ AX, R8
	ADDQ $4096, SI
	ADDQ $512, DX
	ADDQ $512, BX
	MOVQ $-512, CX

line:
	KMOVQ         (DX)(CX*1), K1
	KMOVQ         (BX)(CX*1), K2
	POPCNTQ       (DX)(CX*1), R9
	POPCNTQ       (BX)(CX*1), R10
	VMOVDQU64     (SI)(CX*8), Z0
	VMOVDQU64     (R8), Z1
	VPEXPANDB     Z1, K2, Z0
	VPCOMPRESSB.Z Z0, K1, Z0
	CMPQ          DI, R12
	JA            last
	VMOVDQU64     Z0, (DI)   // the surplus is overwritten

next:
	ADDQ R9, DI
	ADDQ R10, R8
	ADDQ $8, CX
	JNZ  line
	VZEROUPPER
	RET

last:
	MOVQ     $-1, R11
	BZHIQ    R9, R11, R11
	KMOVQ    R11, K3
	VMOVDQU8 Z0, K3, (DI)
	JMP      next

// func foldAVX512(base, snap *[4096]byte, changed uint64, shift *[512]uint64) (crc uint32)
//
// As foldAVX2, with each word's difference moved to its place by a
// multiplication of its own, and one reduction for all.
TEXT ·foldAVX512(SB), NOSPLIT, $0-36
	MOVQ   base+0(FP), DI
	MOVQ   snap+8(FP), SI
	MOVQ   changed+16(FP), DX
	MOVQ   shift+24(FP), BX
	VPXORQ Z4, Z4, Z4
	TESTQ  DX, DX
	JZ     folded

line:
	TZCNTQ     DX, CX
	BLSRQ      DX, DX
	SHLQ       $6, CX
	VMOVDQU64  (SI)(CX*1), Z0
	VMOVDQU64  (BX)(CX*1), Z3
	VPXORQ     (DI)(CX*1), Z0, Z1
	VMOVDQU64  Z0, (DI)(CX*1)
	VPCLMULQDQ $0x00, Z3, Z1, Z2
	VPCLMULQDQ $0x11, Z3, Z1, Z1
	VPTERNLOGQ $0x96, Z1, Z2, Z4       // a xor b xor c
	TESTQ      DX, DX
	JNZ        line

folded:
	VEXTRACTI64X4 $1, Z4, Y0
	VPXOR         Y0, Y4, Y4
	VEXTRACTI128  $1, Y4, X0
	VPXOR         X0, X4, X4
	VMOVQ         X4, R8
	VPEXTRQ       $1, X4, R9
	XORL          AX, AX
	CRC32Q        R8, AX
	CRC32Q        R9, AX
	MOVL          AX, crc+32(FP)
	VZEROUPPER
	RET
