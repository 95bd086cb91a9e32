package migration

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
	"godwit/migration/wire"
)

// forgetful counts what it is told to forget.
type forgetful struct {
	policy.Raw
	gfns []uint64
}

func (*forgetful) ID() uint8           { return 77 }
func (f *forgetful) Forget(gfn uint64) { f.gfns = append(f.gfns, gfn) }

// A run of zeros costs the destination a look at the pages that were filled since
// the last one, and no others: not at memory that nobody sent, and not again at what
// it has cleared.
func TestZeroRunsLookOnlyAtFilledPages(t *testing.T) {
	const size = 200
	ram, err := newRAM([]Region{{GPA: 0, Bytes: make([]byte, size*pageSize)}})
	require.NoError(t, err)
	codec := new(forgetful)
	var p pages
	p.init(ram, 1, codec, func(uint32, tally) error { return nil })
	mem := ram.regions[0].Bytes
	n := uint32(0)
	round := func(typ wire.Type, run wire.Run, bulk []byte) {
		var stream bytes.Buffer
		stream.Write(wire.NewWriter(&stream).Append(nil, typ, 0, wire.AppendRun(nil, run), uint32(len(bulk))))
		stream.Write(bulk)
		in := wire.NewReader(&stream)
		f, err := in.Next()
		require.NoError(t, err)
		pages, err := p.apply(&f, in)
		require.NoError(t, err)
		n++
		_, err = p.barrier.pass(n, pages, false)
		require.NoError(t, err)
	}
	everything := wire.Run{Pages: size}
	for _, gfn := range []uint64{3, 70, 199} {
		round(wire.TypeRaw, wire.Run{GPA: gfn << pageShift, Pages: 1}, bytes.Repeat([]byte{0xaa}, pageSize))
	}
	mem[5*pageSize] = 1 // nobody sent it: a look at it would show
	round(wire.TypeZero, everything, nil)
	require.Equal(t, []uint64{3, 70, 199}, codec.gfns)
	for _, gfn := range codec.gfns {
		require.True(t, isZero(mem[gfn*pageSize:][:pageSize]))
	}
	mem[70*pageSize] = 2
	round(wire.TypeZero, everything, nil)
	require.Len(t, codec.gfns, 3)
	require.Equal(t, []byte{1, 2}, []byte{mem[5*pageSize], mem[70*pageSize]}, "untouched")

	round(wire.TypeRaw, wire.Run{GPA: 70 << pageShift, Pages: 2}, bytes.Repeat([]byte{0xbb}, 2*pageSize))
	round(wire.TypeZero, wire.Run{GPA: 71 << pageShift, Pages: 1}, nil)
	round(wire.TypeZero, everything, nil)
	require.Equal(t, []uint64{71, 70}, codec.gfns[3:])
	require.True(t, isZero(mem[70*pageSize:][:2*pageSize]))
	require.EqualValues(t, size, p.all.Count(), "for the hash")
}
