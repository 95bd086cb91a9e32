#include "textflag.h"

// func storeUint16(p *uint16, v uint16)
TEXT ·storeUint16(SB), NOSPLIT, $0-10
	MOVQ p+0(FP), AX
	MOVW v+8(FP), CX
	MOVW CX, (AX)
	RET

// func fence()
TEXT ·fence(SB), NOSPLIT, $8-0
	LOCK
	ADDL $0, 0(SP)
	RET
