package xbrle

import "golang.org/x/sys/cpu"

// useAVX2 and useAVX512 say that the assembly runs here. Tests clear them to
// force the portable twin or AVX2 alone.
var (
	useAVX2   = cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasSSE42 && cpu.X86.HasPOPCNT && cpu.X86.HasPCLMULQDQ
	useAVX512 = useAVX2 && cpu.X86.HasBMI2 && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512VBMI2 && cpu.X86.HasAVX512VPOPCNTDQ && cpu.X86.HasAVX512VPCLMULQDQ
)

//go:noescape
func diffAVX2(masks *[lines + 1]uint64, snap, base, page *[pageSize]byte) (changed uint64)

//go:noescape
func edgesAVX2(edges *[maxEdges]uint16, masks *[lines + 1]uint64, changed uint64) int

//go:noescape
func foldAVX2(base, snap *[pageSize]byte, changed uint64, shift *[words]uint64) (crc uint32)

//go:noescape
func emitAVX2(dst *[pageSize]byte, snap *[pageSize + spare]byte, edges *[maxEdges]uint16, i, n, at, o int) (nextI, nextO int)

//go:noescape
func runsAVX512(runs *[1728]uint16, sent, lengths *[lines]uint64, masks *[lines + 1]uint64) (n, size int)

//go:noescape
func headersAVX512(headers *[1792]byte, long *[64]uint32, runs *[1728]uint16, n int) (any uint32)

//go:noescape
func mergeAVX512(dst *[pageSize]byte, snap *[pageSize + spare]byte, headers *[1792]byte, sent, lengths *[lines]uint64, h int)

//go:noescape
func foldAVX512(base, snap *[pageSize]byte, changed uint64, shift *[words]uint64) (crc uint32)
