package xbrle

import "golang.org/x/sys/cpu"

// useAVX2 says that the assembly runs here. Tests clear it to force the
// portable twin.
var useAVX2 = cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasSSE42 && cpu.X86.HasPOPCNT && cpu.X86.HasPCLMULQDQ

//go:noescape
func diffAVX2(masks *[lines + 1]uint64, snap, base, page *[pageSize]byte) (changed uint64)

//go:noescape
func edgesAVX2(edges *[maxEdges]uint16, masks *[lines + 1]uint64, changed uint64) int

//go:noescape
func foldAVX2(base, snap *[pageSize]byte, changed uint64, shift *[lines]uint64) (crc uint32)

//go:noescape
func emitAVX2(dst *[pageSize]byte, snap *[pageSize + spare]byte, edges *[maxEdges]uint16, i, n, at, o int) (nextI, nextO int)
