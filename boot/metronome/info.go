package metronome

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// State is how far the guest has come.
type State uint32

const (
	StateStarting State = 1 // fields beside State may be zero
	StateFilling  State = 2
	StateRunning  State = 3
	StateError    State = 4 // bad option: a "metronome error" line says which
	StateFault    State = 5 // exception: a "metronome fault" line has the registers
)

var stateNames = map[State]string{
	StateStarting: "starting", StateFilling: "filling", StateRunning: "running",
	StateError: "error", StateFault: "fault",
}

func (s State) String() string {
	if n, ok := stateNames[s]; ok {
		return n
	}
	return fmt.Sprintf("state(%d)", uint32(s))
}

var (
	// ErrNoInfo: the page is not an info page (the guest has not started, or this
	// is not metronome).
	ErrNoInfo = errors.New("no metronome info page")
	// ErrInfoBusy: the guest was changing the page. Read it again.
	ErrInfoBusy = errors.New("metronome info page is being written")
)

// Extent is a piece of guest physical memory, in bytes. It may be empty.
type Extent struct{ GPA, Bytes uint64 }

// Region is memory below and, at [1], above the hole under 4 GiB, in this order.
type Region [2]Extent

// Bytes is the length of both pieces.
func (r Region) Bytes() uint64 { return r[0].Bytes + r[1].Bytes }

// Page returns the guest physical address of page n of the region, counted from 0.
func (r Region) Page(n uint64) (gpa uint64, ok bool) {
	for _, e := range r {
		if n < e.Bytes/PageSize {
			return e.GPA + n*PageSize, true
		}
		n -= e.Bytes / PageSize
	}
	return 0, false
}

// BadPages counts what the witness found, by kind.
type BadPages struct {
	Zero  uint64 // all zero
	Stale uint64 // right for an earlier version
	Torn  uint64 // partly right
	Other uint64 // nothing right
	Table uint64 // the version table or the write counters disagree
}

// CPUInfo is one vCPU's own record. Its fields are live: they move while the page
// is copied.
type CPUInfo struct {
	Writes, Reads     uint64 // operations done
	Sweeps            uint64 // full sweeps over its share
	Filled            uint64 // pages filled
	GapTSC, MaxGapTSC uint64 // longest gap since the last beat, and ever, TSC ticks
	Back              uint64 // times its TSC went backwards
	Verified          uint64 // pages verified by sweeps
}

// Info is the decoded info page. guest/info.h has the offsets.
type Info struct {
	State      State
	VCPUs      uint32
	TSCKHz     uint64
	UpTSC      uint64 // TSC at "metronome up"; TMs counts from there
	TMs        uint64 // time of the last beat
	Beats      uint64
	Writes     uint64 // at the last beat, all vCPUs
	Reads      uint64
	Sweeps     uint64 // of the slowest vCPU
	GapUs      uint64 // longest gap between the last two beats, worst vCPU
	MaxGapUs   uint64
	FilledMs   uint64
	Bad        uint64 // live, as is Kinds
	Kinds      BadPages
	Back       uint64 // times a TSC went backwards
	Dropped    uint64 // serial lines that found no room in the guest's buffer
	Seed       uint64
	Bytes      uint64 // changed per write
	Rate       uint64
	Samples    uint64
	SampleGPA  uint64 // first sampled page
	SampleStep uint64 // bytes from one to the next, counted along Free
	IOBad      uint64 // those of Bad that came from a device

	Image   Extent // code, data, stacks, info page
	Mailbox Extent
	Table   Extent // version table: 8 bytes per page of WS
	IO      Extent // rings, buffers and tables of loads on devices
	Arena   Region // RAM that fill, text and free memory lie in
	Fill    Region // WS included
	WS      Region
	Text    Region
	Free    Region // never touched by the guest, save that it reads the samples
	CPUs    []CPUInfo
}

const (
	infoMagic   = 0x4d4f4e4f5254454d
	infoVersion = 1
	infoCPUs    = 0x800
	infoCPUSize = 64
)

// ParseInfo decodes a copy of the page at InfoGPA. The page is the guest's, so
// nothing in it is believed: lengths and extents are checked, counters are only
// numbers. It returns ErrNoInfo, ErrInfoBusy, or an error that names the field.
func ParseInfo(page []byte) (Info, error) {
	if len(page) < PageSize {
		return Info{}, fmt.Errorf("%w: %d bytes, need %d", ErrNoInfo, len(page), PageSize)
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(page[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(page[at:]) }
	if u64(0) != infoMagic {
		return Info{}, fmt.Errorf("%w: magic %#x", ErrNoInfo, u64(0))
	}
	if u32(8) != infoVersion || u32(12) != PageSize {
		return Info{}, fmt.Errorf("%w: version %d of %d bytes, this program knows version %d", ErrNoInfo, u32(8), u32(12), infoVersion)
	}
	if u64(16)%2 != 0 {
		return Info{}, ErrInfoBusy
	}
	in := Info{
		State: State(u32(0x18)), VCPUs: u32(0x1c), TSCKHz: u64(0x20), UpTSC: u64(0x28),
		TMs: u64(0x30), Beats: u64(0x38), Writes: u64(0x40), Reads: u64(0x48), Sweeps: u64(0x50),
		GapUs: u64(0x58), MaxGapUs: u64(0x60), FilledMs: u64(0x68), Bad: u64(0x70),
		Kinds: BadPages{Zero: u64(0x78), Stale: u64(0x80), Torn: u64(0x88), Other: u64(0x90), Table: u64(0x98)},
		Back:  u64(0xa0), Dropped: u64(0xa8), Seed: u64(0xb0), Bytes: u64(0xb8), Rate: u64(0xc0),
		Samples: u64(0xc8), SampleGPA: u64(0xd0), SampleStep: u64(0xd8),
		IOBad: u64(0xf0),
	}
	extent := func(at int) Extent { return Extent{u64(at), u64(at + 8)} }
	region := func(at int) Region { return Region{extent(at), extent(at + 16)} }
	in.Image, in.Mailbox, in.Table, in.IO = extent(0x100), extent(0x110), extent(0x120), extent(0xe0)
	in.Arena, in.Fill, in.WS = region(0x130), region(0x150), region(0x170)
	in.Text, in.Free = region(0x190), region(0x1b0)
	if err := in.check(); err != nil {
		return Info{}, fmt.Errorf("metronome info page: %w", err)
	}
	for at := infoCPUs; len(in.CPUs) < int(in.VCPUs); at += infoCPUSize {
		in.CPUs = append(in.CPUs, CPUInfo{
			Writes: u64(at), Reads: u64(at + 8), Sweeps: u64(at + 16), Filled: u64(at + 24),
			GapTSC: u64(at + 32), MaxGapTSC: u64(at + 40), Back: u64(at + 48), Verified: u64(at + 56),
		})
	}
	return in, nil
}

func (in *Info) check() error {
	if _, ok := stateNames[in.State]; !ok {
		return fmt.Errorf("%v is not known", in.State)
	}
	if in.VCPUs > MaxVCPUs {
		return fmt.Errorf("%d vCPUs, at most %d", in.VCPUs, MaxVCPUs)
	}
	for _, r := range []struct {
		name    string
		extents []Extent
	}{
		{"image", []Extent{in.Image}}, {"mailbox", []Extent{in.Mailbox}}, {"table", []Extent{in.Table}}, {"io", []Extent{in.IO}},
		{"arena", in.Arena[:]}, {"fill", in.Fill[:]}, {"ws", in.WS[:]}, {"text", in.Text[:]}, {"free", in.Free[:]},
	} {
		for _, e := range r.extents {
			if e.GPA%PageSize != 0 || e.Bytes > MaxMemory || e.GPA > MaxMemory-e.Bytes {
				return fmt.Errorf("%s at %#x of %#x bytes is not within %#x", r.name, e.GPA, e.Bytes, uint64(MaxMemory))
			}
		}
	}
	return nil
}
