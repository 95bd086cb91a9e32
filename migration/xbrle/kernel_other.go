//go:build !amd64

package xbrle

// useAVX2 and useAVX512 are variables for the tests' sake; nothing sets them here.
var useAVX2, useAVX512 = false, false

// dense is what AVX-512 works with.
type dense struct{}

func (s *scratch) encodeDense(dst *[pageSize]byte) (int, bool) {
	return s.emit(dst, s.findEdges(^uint64(0)))
}

func diffAVX2(masks *[lines + 1]uint64, snap, base, page *[pageSize]byte) uint64 {
	return diffGeneric(masks, snap, base, page)
}

func edgesAVX2(edges *[maxEdges]uint16, masks *[lines + 1]uint64, changed uint64) int {
	return edgesGeneric(edges, masks, changed)
}

func foldAVX2(_, _ *[pageSize]byte, _ uint64, _ *[words]uint64) uint32 {
	panic("xbrle: no CRC instruction on this architecture")
}

func foldAVX512(base, snap *[pageSize]byte, changed uint64, shift *[words]uint64) uint32 {
	return foldAVX2(base, snap, changed, shift)
}

func emitAVX2(_ *[pageSize]byte, _ *[pageSize + spare]byte, _ *[maxEdges]uint16, i, _, _, o int) (nextI, nextO int) {
	return i, o
}
