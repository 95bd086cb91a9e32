package wire

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// NonceSize is the size of a session nonce, bytes.
	NonceSize = 16
	// MaxVMID is the longest VM id in a HELLO, bytes.
	MaxVMID = 64
	// MaxText is the longest text of an ERROR or CANCEL, bytes.
	MaxText = 4 << 10
	// MaxRegions is how many RAM regions a machine may have.
	MaxRegions = 64
	// MaxStreams is how many data streams a session may have.
	MaxStreams = 16

	helloFixed = 41
	// MaxHello is the longest HELLO, bytes.
	MaxHello = helloFixed + MaxVMID
)

// Role is what a connection is for.
type Role uint8

const (
	RoleControl Role = 1 // the control connection of a session
	RoleData    Role = 2 // a data stream of the session that the nonce names
	RoleFile    Role = 3 // a file: one way, with no answers
)

const (
	// FeatureVerify says that memory hashes will be compared before GO.
	FeatureVerify uint64 = 1 << 0
	// FeatureLocal says that guest memory itself changes hands, by MEMFD, and that
	// no data stream comes. Only on a unix socket.
	FeatureLocal uint64 = 1 << 1
)

// knownFeatures are those that this version can honour.
const knownFeatures = FeatureVerify | FeatureLocal

// Hello opens every connection in both directions. Its layout is the same in
// every version of the protocol.
type Hello struct {
	MinVersion, MaxVersion uint16 // what the sender speaks; in an answer both are the version chosen
	Role                   Role
	Codec                  uint8  // ID of the page codec, 0 for none
	Stream, Streams        uint8  // index of a data stream; how many the session has (1 to MaxStreams)
	PageSize               uint32 // bytes
	Features               uint64
	Nonce                  [NonceSize]byte // chosen by the destination in its answer on the control connection
	VMID                   string
}

// Append adds the encoding of h to dst. A VMID beyond MaxVMID is cut.
func (h *Hello) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, h.MinVersion)
	dst = binary.LittleEndian.AppendUint16(dst, h.MaxVersion)
	dst = append(dst, byte(h.Role), h.Codec, h.Stream, h.Streams)
	dst = binary.LittleEndian.AppendUint32(dst, h.PageSize)
	dst = binary.LittleEndian.AppendUint64(dst, h.Features)
	dst = append(dst, h.Nonce[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	id := h.VMID[:min(len(h.VMID), MaxVMID)]
	dst = append(dst, byte(len(id)))
	return append(dst, id...)
}

// Decode reads h from the body of a HELLO.
func (h *Hello) Decode(b []byte) error {
	if len(b) < helloFixed || len(b) != helloFixed+int(b[40]) || b[40] > MaxVMID {
		return fmt.Errorf("%w: HELLO of %d bytes", ErrFormat, len(b))
	}
	*h = Hello{
		MinVersion: binary.LittleEndian.Uint16(b),
		MaxVersion: binary.LittleEndian.Uint16(b[2:]),
		Role:       Role(b[4]), Codec: b[5], Stream: b[6], Streams: b[7],
		PageSize: binary.LittleEndian.Uint32(b[8:]),
		Features: binary.LittleEndian.Uint64(b[12:]),
		Nonce:    [NonceSize]byte(b[20:36]),
		VMID:     string(b[helloFixed:]),
	}
	switch {
	case [4]byte(b[36:40]) != [4]byte{}:
		return fmt.Errorf("%w: HELLO with reserved bytes set", ErrFormat)
	case h.MinVersion == 0 || h.MinVersion > h.MaxVersion:
		return fmt.Errorf("%w: HELLO with versions %d to %d", ErrFormat, h.MinVersion, h.MaxVersion)
	case h.Role < RoleControl || h.Role > RoleFile:
		return fmt.Errorf("%w: HELLO with role %d", ErrFormat, h.Role)
	case h.Streams < 1 || h.Streams > MaxStreams || h.Stream >= h.Streams:
		return fmt.Errorf("%w: HELLO for stream %d of %d, at most %d", ErrFormat, h.Stream, h.Streams, MaxStreams)
	}
	return nil
}

// Compatible says whether a peer that sent h can be talked to, or why not.
func (h *Hello) Compatible() error {
	switch {
	case h.MinVersion > Version || h.MaxVersion < Version:
		return fmt.Errorf("peer speaks migration protocol %d to %d, this godwit speaks %d; use the same release on both ends", h.MinVersion, h.MaxVersion, Version)
	case h.PageSize != PageSize:
		return fmt.Errorf("peer has pages of %d bytes, this host of %d", h.PageSize, PageSize)
	case h.Features&^knownFeatures != 0:
		return fmt.Errorf("peer wants features %#x that this godwit does not know; use the same release on both ends", h.Features&^knownFeatures)
	}
	return nil
}

// Built is what the destination knows of a machine that it has just built.
type Built struct {
	RestoreNS uint64 // what restoring its state should take, nanoseconds; 0 when it does not know
}

// Append adds the encoding of b to dst.
func (b *Built) Append(dst []byte) []byte { return binary.LittleEndian.AppendUint64(dst, b.RestoreNS) }

// Decode reads b from the body of a BUILT.
func (b *Built) Decode(body []byte) error {
	if len(body) != 8 {
		return fmt.Errorf("%w: BUILT of %d bytes", ErrFormat, len(body))
	}
	*b = Built{binary.LittleEndian.Uint64(body)}
	return nil
}

// Extent is a run of guest physical memory, bytes, page-aligned.
type Extent struct{ GPA, Len uint64 }

// MaxExtents is how many extents one EXTENTS frame carries.
const MaxExtents = MaxBody / 16

// AppendExtents adds the body of a LAYOUT or EXTENTS frame to dst.
func AppendExtents(dst []byte, es []Extent) []byte {
	for _, e := range es {
		dst = binary.LittleEndian.AppendUint64(dst, e.GPA)
		dst = binary.LittleEndian.AppendUint64(dst, e.Len)
	}
	return dst
}

// DecodeExtents reads the body of a LAYOUT or EXTENTS frame: ascending,
// page-aligned, not empty, not overlapping.
func DecodeExtents(b []byte) ([]Extent, error) {
	if len(b)%16 != 0 || len(b) > MaxBody {
		return nil, fmt.Errorf("%w: extent list of %d bytes", ErrFormat, len(b))
	}
	es := make([]Extent, len(b)/16)
	var end uint64
	for i := range es {
		e := Extent{binary.LittleEndian.Uint64(b[i*16:]), binary.LittleEndian.Uint64(b[i*16+8:])}
		if e.GPA%PageSize != 0 || e.Len%PageSize != 0 || e.Len == 0 || e.GPA+e.Len < e.GPA || e.GPA < end {
			return nil, fmt.Errorf("%w: extent %d is %#x bytes at %#x after %#x", ErrFormat, i, e.Len, e.GPA, end)
		}
		end = e.GPA + e.Len
		es[i] = e
	}
	return es, nil
}

// Round is the body of ROUND (Pages sent on this stream in round N) and of
// PASSED (pages applied from all streams in round N). Rounds count from 1.
type Round struct {
	N     uint32
	Pages uint64
}

// Append adds the encoding of r to dst.
func (r *Round) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, r.N)
	return binary.LittleEndian.AppendUint64(dst, r.Pages)
}

// Decode reads r from the body of a ROUND or PASSED.
func (r *Round) Decode(b []byte) error {
	if len(b) != 12 {
		return fmt.Errorf("%w: ROUND of %d bytes", ErrFormat, len(b))
	}
	*r = Round{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint64(b[4:])}
	if r.N == 0 {
		return fmt.Errorf("%w: ROUND 0; rounds count from 1", ErrFormat)
	}
	return nil
}

// Verify asks for the hash of guest memory from GPA on, Len bytes of it; a Len
// of 0 asks for all.
type Verify struct{ Extent }

// Append adds the encoding of v to dst: nothing for all of memory.
func (v *Verify) Append(dst []byte) []byte {
	if v.Len == 0 {
		return dst
	}
	return AppendExtents(dst, []Extent{v.Extent})
}

// Decode reads v from the body of a VERIFY.
func (v *Verify) Decode(b []byte) error {
	*v = Verify{}
	if len(b) == 0 {
		return nil
	}
	es, err := DecodeExtents(b)
	if err != nil {
		return err
	}
	if len(es) != 1 {
		return fmt.Errorf("%w: VERIFY of %d bytes", ErrFormat, len(b))
	}
	v.Extent = es[0]
	return nil
}

// Hash is the hash of guest memory and how many pages of it are not zero.
type Hash struct {
	Sum   [32]byte
	Pages uint64
}

// Append adds the encoding of h to dst.
func (h *Hash) Append(dst []byte) []byte {
	return binary.LittleEndian.AppendUint64(append(dst, h.Sum[:]...), h.Pages)
}

// Decode reads h from the body of a HASH.
func (h *Hash) Decode(b []byte) error {
	if len(b) != 40 {
		return fmt.Errorf("%w: HASH of %d bytes", ErrFormat, len(b))
	}
	*h = Hash{[32]byte(b), binary.LittleEndian.Uint64(b[32:])}
	return nil
}

// Prepare is what the source has sent in all: pages by kind, and the state.
type Prepare struct {
	Zero, Data uint64 // pages sent as zero, and by content (raw or encoded)
	StateLen   uint64 // bytes
	StateCRC   uint32 // Checksum of the whole state
}

// Append adds the encoding of p to dst.
func (p *Prepare) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, p.Zero)
	dst = binary.LittleEndian.AppendUint64(dst, p.Data)
	dst = binary.LittleEndian.AppendUint64(dst, p.StateLen)
	return binary.LittleEndian.AppendUint32(dst, p.StateCRC)
}

// Decode reads p from the body of a PREPARE.
func (p *Prepare) Decode(b []byte) error {
	if len(b) != 28 {
		return fmt.Errorf("%w: PREPARE of %d bytes", ErrFormat, len(b))
	}
	*p = Prepare{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]),
		binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint32(b[24:])}
	return nil
}

// Ready is the destination's promise to run the guest if GO reaches it within
// the lease, with what it has applied.
type Ready struct {
	LeaseMS    uint32 // milliseconds from the moment READY was sent
	Zero, Data uint64 // pages applied
}

// Append adds the encoding of r to dst.
func (r *Ready) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, r.LeaseMS)
	dst = binary.LittleEndian.AppendUint64(dst, r.Zero)
	return binary.LittleEndian.AppendUint64(dst, r.Data)
}

// Decode reads r from the body of a READY.
func (r *Ready) Decode(b []byte) error {
	if len(b) != 20 {
		return fmt.Errorf("%w: READY of %d bytes", ErrFormat, len(b))
	}
	*r = Ready{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint64(b[4:]), binary.LittleEndian.Uint64(b[12:])}
	return nil
}

// Running is the destination's clock when the guest went on there.
type Running struct {
	UnixNano  int64  // wall clock of the destination when Run returned
	PrepareNS uint64 // from PREPARE received to READY sent, nanoseconds
	RunNS     uint64 // from GO received to Run returned, nanoseconds
}

// Append adds the encoding of r to dst.
func (r *Running) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.UnixNano))
	dst = binary.LittleEndian.AppendUint64(dst, r.PrepareNS)
	return binary.LittleEndian.AppendUint64(dst, r.RunNS)
}

// Decode reads r from the body of a RUNNING.
func (r *Running) Decode(b []byte) error {
	if len(b) != 24 {
		return fmt.Errorf("%w: RUNNING of %d bytes", ErrFormat, len(b))
	}
	*r = Running{int64(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
	return nil
}

// AppendAck adds the body of an ACK: bytes received on this stream so far.
func AppendAck(dst []byte, bytes uint64) []byte { return binary.LittleEndian.AppendUint64(dst, bytes) }

// DecodeAck reads the body of an ACK.
func DecodeAck(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: ACK of %d bytes", ErrFormat, len(b))
	}
	return binary.LittleEndian.Uint64(b), nil
}

// AppendText adds the body of an ERROR or CANCEL, cut to MaxText.
func AppendText(dst []byte, text string) []byte {
	return append(dst, text[:min(len(text), MaxText)]...)
}

// DecodeText reads the body of an ERROR or CANCEL and makes it safe to print:
// it comes from a stranger and ends up on a terminal.
func DecodeText(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, string(b[:min(len(b), MaxText)]))
}
