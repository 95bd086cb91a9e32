//go:build !amd64

package xbrle

// useAVX2 is a variable for the tests' sake; nothing sets it here.
var useAVX2 = false

func diffAVX2(masks *[lines + 1]uint64, snap, base, page *[pageSize]byte) uint64 {
	return diffGeneric(masks, snap, base, page)
}

func edgesAVX2(edges *[maxEdges]uint16, masks *[lines + 1]uint64, changed uint64) int {
	return edgesGeneric(edges, masks, changed)
}

func foldAVX2(_, _ *[pageSize]byte, _ uint64, _ *[lines]uint64) uint32 {
	panic("xbrle: no CRC instruction on this architecture")
}

func emitAVX2(_ *[pageSize]byte, _ *[pageSize + spare]byte, _ *[maxEdges]uint16, i, _, _, o int) (nextI, nextO int) {
	return i, o
}
