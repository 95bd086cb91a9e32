package metronome

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// NetMode says what a load on a network interface does.
type NetMode string

// What io=net does.
const (
	NetTX   NetMode = "tx"   // sends numbered frames
	NetRX   NetMode = "rx"   // verifies the frames that NetFrame makes
	NetEcho NetMode = "echo" // verifies them and sends them back
)

// NetLoad is io=net: the guest drives the first virtio-net device itself. The zero
// value is no such load; start from DefaultNet.
type NetLoad struct {
	Mode  NetMode
	Frame uint64 // bytes of a frame sent, 64..1514
	TSO   bool   // frames of 45 TCP segments instead, for the device or the host to cut; tx only
	Depth uint64 // frames under way, and buffers to receive into, 1..256
}

// DefaultNet returns what the guest assumes for io=net alone.
func DefaultNet() NetLoad { return NetLoad{Mode: NetTX, Frame: 64, Depth: 64} }

func (n NetLoad) given() bool { return n != NetLoad{} }

// String writes the load as the value of io=.
func (n NetLoad) String() string {
	words := []string{"net", string(n.Mode), fmt.Sprint(n.Frame)}
	if n.TSO {
		words = append(words, "tso")
	}
	return strings.Join(append(words, fmt.Sprintf("depth=%d", n.Depth)), ",")
}

func (n NetLoad) validate() error {
	switch {
	case !n.given():
		return nil
	case n.Mode != NetTX && n.Mode != NetRX && n.Mode != NetEcho:
		return fmt.Errorf("io=%v: %.40q must be tx, rx or echo", n, string(n.Mode))
	case n.Frame < 64 || n.Frame > 1514:
		return fmt.Errorf("io=%v: frames of %d bytes, must be 64 to 1514", n, n.Frame)
	case n.Depth < 1 || n.Depth > 256:
		return fmt.Errorf("io=%v: depth must be 1 to 256", n)
	case n.TSO && n.Mode != NetTX:
		return fmt.Errorf("io=%v: tso goes with tx only", n)
	}
	return nil
}

const netForm = "net[,tx|rx|echo][,64][,tso][,depth=N]"

func (n *NetLoad) set(word string) bool {
	switch word {
	case "tx", "rx", "echo":
		n.Mode = NetMode(word)
		return true
	case "tso":
		n.TSO = true
		return true
	}
	if depth, ok := strings.CutPrefix(word, "depth="); ok {
		v, err := parseDigits(depth)
		n.Depth = v
		return err == nil && v >= 1 && v <= 256
	}
	v, err := parseDigits(word)
	n.Frame = v
	return err == nil && v >= 64 && v <= 1514
}

// Layout of a frame of io=net: guest/net.c.
const (
	netEtherType = 0x88b5 // IEEE 802, local experimental
	netMagic     = 0x54454e4d
	netEthernet  = 14
	netHeader    = 24
	netLeast     = netHeader + 8
)

var (
	// ErrNotOurs: the frame is no frame of io=net.
	ErrNotOurs = errors.New("not a metronome frame")
	// ErrFrame: it is one, and not as it was sent.
	ErrFrame = errors.New("metronome frame is damaged")
)

func netCheck(seed, number, length uint64) uint64 {
	return mix(mix(seed+0x6e6574) ^ mix(number) ^ length)
}

// NetFrame appends frame number n, of size bytes without a checksum at its end, to
// dst. Guests with io=net,rx and io=net,echo and the same seed verify it.
func NetFrame(dst []byte, to, from [6]byte, seed, n uint64, size int) []byte {
	size = max(size, netEthernet+netLeast)
	length := uint64(size - netEthernet)
	dst = append(append(dst, to[:]...), from[:]...)
	dst = binary.BigEndian.AppendUint16(dst, netEtherType)
	dst = binary.LittleEndian.AppendUint32(dst, netMagic)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(length))
	dst = binary.LittleEndian.AppendUint64(dst, n)
	check := netCheck(seed, n, length)
	dst = binary.LittleEndian.AppendUint64(dst, check)
	x, left := mix(seed+0x7061796c6f6164), int(length-netLeast)
	for ; left >= 8; left -= 8 {
		dst = binary.LittleEndian.AppendUint64(dst, x)
		x += unitStep
	}
	for i := range left {
		dst = append(dst, byte(x>>(8*i)))
	}
	return binary.LittleEndian.AppendUint64(dst, ^check)
}

// ParseNetFrame reads the number of a frame and checks all of it. Frames of type
// IPv4, as io=net,tx,tso sends them, must be whole. The error is ErrNotOurs or
// ErrFrame. It does not allocate where there is none.
func ParseNetFrame(p []byte, seed uint64) (n uint64, err error) {
	le := binary.LittleEndian
	if len(p) < netEthernet+netLeast {
		return 0, ErrNotOurs
	}
	at := netEthernet
	switch binary.BigEndian.Uint16(p[12:]) {
	case netEtherType:
	case 0x0800:
		at += 40
	default:
		return 0, ErrNotOurs
	}
	if len(p) < at+netLeast || le.Uint32(p[at:]) != netMagic {
		return 0, ErrNotOurs
	}
	p = p[at:]
	length, n, check := uint64(le.Uint32(p[4:])), le.Uint64(p[8:]), le.Uint64(p[16:])
	if length < netLeast || length > uint64(len(p)) {
		return 0, fmt.Errorf("%w: number %d says %d bytes, there are %d", ErrFrame, n, length, len(p))
	}
	if check != netCheck(seed, n, length) || le.Uint64(p[length-8:]) != ^check {
		return 0, fmt.Errorf("%w: number %d, %d bytes: its check is wrong", ErrFrame, n, length)
	}
	x, left := mix(seed+0x7061796c6f6164), p[netHeader:length-8]
	for ; len(left) >= 8; left = left[8:] {
		if le.Uint64(left) != x {
			return 0, fmt.Errorf("%w: number %d, %d bytes: its pattern is wrong", ErrFrame, n, length)
		}
		x += unitStep
	}
	for i, b := range left {
		if b != byte(x>>(8*i)) {
			return 0, fmt.Errorf("%w: number %d, %d bytes: its last bytes are wrong", ErrFrame, n, length)
		}
	}
	return n, nil
}
