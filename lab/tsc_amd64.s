#include "textflag.h"

// func rdtsc() uint64
//
// The fence keeps earlier loads, such as the vDSO's, in front of the reading
// (Intel SDM 2B, RDTSC; AMD APM 3, RDTSC).
TEXT ·rdtsc(SB), NOSPLIT, $0-8
	LFENCE
	RDTSC
	LFENCE
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET
