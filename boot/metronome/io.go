package metronome

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// BlkMode says what a load on a disk does.
type BlkMode string

// What io=blk does once the disk is filled.
const (
	BlkRead  BlkMode = "read"
	BlkWrite BlkMode = "write"
	BlkMixed BlkMode = "mixed" // half of each
)

// BlkLoad is io=blk: the guest drives the first virtio-blk device itself. The zero
// value is no such load; start from DefaultBlk.
type BlkLoad struct {
	KiB        uint64 // of one request, a power of two, 4..1024
	Depth      uint64 // requests under way, 1..128
	Mode       BlkMode
	Sequential bool   // instead of random
	Flush      uint64 // a flush after so many writes; 0 is never
	Span       uint64 // MiB of the disk in use, from 1 MiB on
	Queues     uint64 // 1..8
	Prefill    bool   // overwrites what the disk holds
}

// DefaultBlk returns what the guest assumes for io=blk alone.
func DefaultBlk() BlkLoad {
	return BlkLoad{KiB: 4, Depth: 32, Mode: BlkRead, Span: 64, Queues: 1}
}

// blkNumbers are the parts of io=blk with a number, as in guest/options.c.
var blkNumbers = []struct {
	name     string
	at       func(*BlkLoad) *uint64
	min, max uint64
}{
	{"depth", func(b *BlkLoad) *uint64 { return &b.Depth }, 1, 128},
	{"span", func(b *BlkLoad) *uint64 { return &b.Span }, 1, 65536},
	{"flush", func(b *BlkLoad) *uint64 { return &b.Flush }, 0, 1e9},
	{"queues", func(b *BlkLoad) *uint64 { return &b.Queues }, 1, 8},
}

func (b BlkLoad) given() bool { return b != BlkLoad{} }

// String writes the load as the value of io=: size, depth and mode, then what is
// not at its default.
func (b BlkLoad) String() string {
	words := []string{"blk", fmt.Sprintf("%dk", b.KiB), fmt.Sprintf("depth=%d", b.Depth), string(b.Mode)}
	def := DefaultBlk()
	if b.Sequential {
		words = append(words, "seq")
	}
	for _, n := range blkNumbers[1:] {
		if v := *n.at(&b); v != *n.at(&def) {
			words = append(words, fmt.Sprintf("%s=%d", n.name, v))
		}
	}
	if b.Prefill {
		words = append(words, "prefill")
	}
	return strings.Join(words, ",")
}

func (b BlkLoad) validate() error {
	if !b.given() {
		return nil
	}
	if b.KiB < 4 || b.KiB > 1024 || b.KiB&(b.KiB-1) != 0 {
		return fmt.Errorf("io=%v: %dk must be a power of two from 4k to 1024k", b, b.KiB)
	}
	switch b.Mode {
	case BlkRead, BlkWrite, BlkMixed:
	default:
		return fmt.Errorf("io=%v: %.40q must be read, write or mixed", b, string(b.Mode))
	}
	for _, n := range blkNumbers {
		if v := *n.at(&b); v < n.min || v > n.max {
			return fmt.Errorf("io=%v: %s must be %d to %d", b, n.name, n.min, n.max)
		}
	}
	return nil
}

const blkForm = "blk[,4k][,depth=N][,read|write|mixed][,seq|random][,flush=N][,span=MiB][,queues=N][,prefill]"

// setIO reads the value of io=.
func (o *Options) setIO(value string) error {
	device, rest, more := strings.Cut(value, ",")
	var set func(word string) bool
	switch device {
	case "blk":
		o.Blk = DefaultBlk()
		set = o.Blk.set
	case "net":
		o.Net = DefaultNet()
		set = o.Net.set
	default:
		return fmt.Errorf("io=%.40q: must be %s or %s", value, blkForm, netForm)
	}
	if more {
		for word := range strings.SplitSeq(rest, ",") {
			if !set(word) {
				return fmt.Errorf("io=%.40q: %.40q: must be %s or %s", value, word, blkForm, netForm)
			}
		}
	}
	return errors.Join(o.Blk.validate(), o.Net.validate())
}

func (b *BlkLoad) set(word string) bool {
	switch word {
	case "read", "write", "mixed":
		b.Mode = BlkMode(word)
	case "seq", "random":
		b.Sequential = word == "seq"
	case "prefill":
		b.Prefill = true
	default:
		return b.setNumber(word)
	}
	return true
}

func (b *BlkLoad) setNumber(word string) bool {
	name, value, found := strings.Cut(word, "=")
	if kib, ok := strings.CutSuffix(word, "k"); ok && !found {
		v, err := parseDigits(kib)
		b.KiB = v
		return err == nil
	}
	for _, n := range blkNumbers {
		if n.name == name && found {
			v, err := parseDigits(value)
			*n.at(b) = v
			// A later word may set it again, so the range is judged at once.
			return err == nil && v >= n.min && v <= n.max
		}
	}
	return false
}

func parseDigits(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }
