package lz4codec

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"godwit/migration/policy"
)

// kinds are pages as guests have them.
var kinds = []struct {
	name string
	fill func(rng *rand.Rand, page []byte)
}{
	{"text", fillText},
	{"heap", fillHeap},
	{"sparse", fillSparse},
	{"half", func(rng *rand.Rand, page []byte) { fillRandom(rng, page[:len(page)/2]) }},
	{"random", fillRandom},
}

// pagesOf gives n zeroed pages with one kind of content.
func pagesOf(n int, fill func(*rand.Rand, []byte)) [][]byte {
	rng := rand.New(rand.NewPCG(5, 6))
	pages := make([][]byte, n)
	for i := range pages {
		pages[i] = make([]byte, policy.PageSize)
		fill(rng, pages[i])
	}
	return pages
}

func fillRandom(rng *rand.Rand, page []byte) {
	for i := range page {
		page[i] = byte(rng.Uint32())
	}
}

// fillText is a log: words that come again, numbers that do not.
func fillText(rng *rand.Rand, page []byte) {
	words := []string{"queue", "device", "started", "stopped", "request", "from", "client", "timeout", "after", "retry",
		"connection", "closed", "memory", "page", "allocated", "writing", "sector", "reading", "error", "status", "session", "opened"}
	text := page[:0]
	for len(text) < len(page) {
		text = fmt.Appendf(text, "[%6d.%06d] unit-%d:", rng.IntN(10000), rng.IntN(1e6), rng.IntN(30))
		for range 4 + rng.IntN(6) {
			text = append(append(text, ' '), words[rng.IntN(len(words))]...)
		}
		text = append(text, '\n')
	}
	copy(page, text)
}

// fillHeap is small objects: pointers into one arena, small numbers, zeros.
func fillHeap(rng *rand.Rand, page []byte) {
	for i := 0; i < len(page); i += 8 {
		var v uint64
		switch rng.IntN(4) {
		case 0:
			v = 0xc000000000 + uint64(rng.IntN(1<<20))*16
		case 1:
			v = uint64(rng.IntN(1000))
		}
		binary.LittleEndian.PutUint64(page[i:], v)
	}
}

// fillSparse is a page with a few words set.
func fillSparse(rng *rand.Rand, page []byte) {
	for range 16 {
		binary.LittleEndian.PutUint64(page[rng.IntN(len(page)/8)*8:], rng.Uint64())
	}
}
