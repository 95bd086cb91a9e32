package images_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const sector = 512

// what a layer's writes may be.
type kind string

const (
	opWrite    kind = "write"
	opCompress kind = "compress" // whole clusters that nothing was written to
	opZero     kind = "zero"
	opUnmap    kind = "unmap" // zeroes, whose storage may be freed
	opDiscard  kind = "discard"
	opSnapshot kind = "snapshot" // inside the image: from here on refcounts are above 1
)

// op is one change of a layer. Data is pattern repeated.
type op struct {
	kind    kind
	off, n  int64
	pattern []byte
}

// layer is one file of a chain.
type layer struct {
	format      string // raw or qcow2
	size        int64  // bytes, a multiple of sector
	version     int
	clusterBits int
	refBits     int
	compression string
	preallocate bool
	lazy        bool // lazy refcounts: QEMU's own, ours ignore the wish
	// copied, if there, is a disk that the layer begins as a copy of, compressed
	// or as it is: godwit's plans only, qemu-io compresses by itself.
	copied     []byte
	compressed bool
	ops        []op
}

func (l *layer) cluster() int64 { return 1 << l.clusterBits }

// plan is a chain, the lowest layer first, and what its disk must read as.
type plan struct {
	seed   uint64
	layers []*layer
	model  model
}

// model is a disk's contents; known says of each sector whether they matter.
type model struct {
	data  []byte
	known []bool
}

func newModel(below *model, size int64) model {
	m := model{data: make([]byte, size), known: make([]bool, size/sector)}
	for i := range m.known {
		m.known[i] = true
	}
	if below != nil {
		copy(m.data, below.data)
		copy(m.known, below.known)
	}
	return m
}

func (m *model) apply(o op) {
	part := m.data[o.off : o.off+o.n]
	known := o.kind != opDiscard
	switch o.kind {
	case opSnapshot:
		return
	case opWrite, opCompress:
		fill(part, o.pattern)
	case opZero, opUnmap:
		clear(part)
	}
	for i := o.off / sector; i < (o.off+o.n)/sector; i++ {
		m.known[i] = known
	}
}

// fill repeats pattern over b, as qemu-io's write -s does.
func fill(b, pattern []byte) {
	for len(b) > 0 {
		b = b[copy(b, pattern):]
	}
}

// learn takes what a reader saw where the model has nothing to say, and fails
// where it has.
func (m *model) learn(t *testing.T, got []byte, who string) {
	t.Helper()
	require.Len(t, got, len(m.data), "%s: length", who)
	for i, known := range m.known {
		want, is := m.data[i*sector:(i+1)*sector], got[i*sector:(i+1)*sector]
		if known {
			if string(want) != string(is) {
				require.FailNowf(t, "contents", "%s: sector %d differs from what was written: want %x.., got %x..", who, i, want[:16], is[:16])
			}
			continue
		}
		copy(want, is)
		m.known[i] = true
	}
}

// write puts the model beside the images, for qemu-img compare.
func (m *model) write(t *testing.T, dir string) string {
	path := filepath.Join(dir, "model.raw")
	require.NoError(t, os.WriteFile(path, m.data, 0o600))
	return path
}

// maker draws a plan.
type maker struct {
	*rand.Rand
	// byQEMU leaves out what qemu-io refuses.
	byQEMU bool
}

func newPlan(seed uint64, byQEMU bool) *plan {
	m := maker{rand.New(rand.NewPCG(seed, 4)), byQEMU}
	p := &plan{seed: seed}
	depth := 1 + m.IntN(3)
	var below *model
	for i := range depth {
		l := m.layer(i == 0, depth > 1)
		disk := newModel(below, l.size)
		if l.copied != nil {
			copy(disk.data, l.copied)
			for i := range disk.known {
				disk.known[i] = true
			}
		}
		m.fillLayer(l, i == 0)
		for _, o := range l.ops {
			disk.apply(o)
		}
		p.layers = append(p.layers, l)
		p.model = disk
		below = &disk
	}
	return p
}

func (m maker) layer(lowest, chain bool) *layer {
	if lowest && chain && m.IntN(2) == 0 {
		return &layer{format: "raw", size: m.size(16), clusterBits: 16}
	}
	l := &layer{format: "qcow2", version: 2 + m.IntN(2), clusterBits: 9 + m.IntN(13), refBits: 16, compression: "zlib"}
	if l.version == 3 {
		l.refBits = 1 << m.IntN(7)
		if m.IntN(2) == 0 {
			l.compression = "zstd"
		}
		l.lazy = m.IntN(4) == 0
	}
	l.size = m.size(l.clusterBits)
	l.preallocate = lowest && m.IntN(5) == 0
	if !m.byQEMU && !l.preallocate && m.IntN(2) == 0 {
		l.copied, l.compressed = m.disk(l.size), m.IntN(2) == 0
	}
	return l
}

// disk is a disk with holes.
func (m maker) disk(size int64) []byte {
	b := make([]byte, size)
	for rest := b; len(rest) > 0; {
		n := min(1+m.IntN(200<<10), len(rest))
		if m.IntN(3) > 0 {
			fill(rest[:n], m.pattern())
		}
		rest = rest[n:]
	}
	return b
}

// size is odd on purpose: neither whole clusters nor the same in each layer.
func (m maker) size(clusterBits int) int64 {
	most := int64(2 << 20)
	if clusterBits > 18 {
		most = 4 << clusterBits
	}
	return sector * (1 + m.Int64N(most/sector))
}

func (m maker) fillLayer(l *layer, lowest bool) {
	fresh := map[int64]bool{} // clusters that were written to
	for range m.IntN(25) {
		o := op{kind: m.kind(l)}
		switch {
		case o.kind == opSnapshot:
			l.ops = append(l.ops, o)
			continue
		case o.kind == opCompress || o.kind == opDiscard:
			o.off, o.n = m.clusters(l)
		default:
			o.off, o.n = m.sectors(l)
		}
		touched := false
		for c := o.off >> l.clusterBits; c<<l.clusterBits < o.off+o.n; c++ {
			touched = touched || fresh[c]
			fresh[c] = true
		}
		if o.kind == opCompress && (touched || l.preallocate) {
			o.kind = opWrite // qemu-io compresses only into what is unallocated
		}
		o.pattern = m.pattern()
		l.ops = append(l.ops, o)
	}
}

func (m maker) kind(l *layer) kind {
	kinds := []kind{opWrite, opWrite, opWrite, opZero, opUnmap}
	if l.format == "qcow2" {
		kinds = append(kinds, opDiscard)
		if m.byQEMU {
			kinds = append(kinds, opCompress, opCompress)
			if l.refBits >= 16 && m.IntN(4) == 0 {
				kinds = append(kinds, opSnapshot)
			}
		}
	}
	return kinds[m.IntN(len(kinds))]
}

// clusters is a range of whole clusters, the last one as whole as the disk.
func (m maker) clusters(l *layer) (off, n int64) {
	all := (l.size + l.cluster() - 1) >> l.clusterBits
	first := m.Int64N(all)
	n = min(1+m.Int64N(3), all-first)
	off = first << l.clusterBits
	return off, min(n<<l.clusterBits, l.size-off)
}

func (m maker) sectors(l *layer) (off, n int64) {
	all := l.size / sector
	off = m.Int64N(all)
	n = 1 + m.Int64N(min(all-off, 1+m.Int64N(3*l.cluster()/sector)))
	return off * sector, n * sector
}

// pattern is random bytes, or few of them so that it compresses.
func (m maker) pattern() []byte {
	letters := []int{2, 16, 256}[m.IntN(3)]
	b := make([]byte, 1+m.IntN(9000))
	for i := range b {
		b[i] = byte(1 + m.IntN(letters))
	}
	return b
}

func (p *plan) top() *layer { return p.layers[len(p.layers)-1] }

func (p *plan) String() string {
	s := fmt.Sprintf("seed %d:", p.seed)
	for _, l := range p.layers {
		s += fmt.Sprintf(" [%s %d bytes v%d clusters %d refcounts %d %s, %d ops]", l.format, l.size, l.version, l.cluster(), l.refBits, l.compression, len(l.ops))
	}
	return s
}
