package migration

import (
	"context"
	"io"
	"os"

	"godwit/migration/policy"
	"godwit/migration/wire"
)

// Bitmap holds one bit per guest frame: bit gfn&63 of word gfn>>6.
type Bitmap []uint64

// Region is a piece of guest RAM as the engine sees it: where the guest has it
// and where this process has it mapped. Regions are sorted by GPA, do not
// overlap, and both GPA and the length are multiples of the page size.
type Region struct {
	GPA   uint64 // guest physical address, bytes
	Bytes []byte // host mapping; the engine reads (source) or fills (target) it in place
}

// Extent is a run of guest physical memory, in bytes, page-aligned.
type Extent = wire.Extent

// Source is a machine about to leave. A migration calls it from one goroutine
// at a time except where a method says otherwise. vmm implements it over KVM,
// migration/sim in memory alone.
//
// Every method before Release can be undone, and the engine undoes it on every
// way out before GO: StopDirtyLog, SetPace(policy.FullSpeed), Reclaim, Resume, in this order.
type Source interface {
	// Config is the whole machine configuration, opaque to the engine, for the
	// destination's Builder.
	Config() ([]byte, error)
	// Memory lists guest RAM. The mappings stay valid until the migration ends.
	Memory() []Region
	// Touched lists the extents that were ever populated, without reading them.
	// The engine calls it only after StartDirtyLog, so a page that is touched
	// later is in the log, or while paused.
	Touched() ([]Extent, error)
	// StartDirtyLog begins to record which pages are written. Every page written
	// after it returns is in each later Dirty, until Clear forgets it.
	StartDirtyLog() error
	// StopDirtyLog ends recording; harmless when it is not on.
	StopDirtyLog() error
	// Dirty adds to dst every page written, by the guest or by the VMM itself,
	// since StartDirtyLog or since the page was last cleared, whichever is later.
	// It forgets nothing. Pages that were not written may be added (KVM's log is a
	// superset).
	Dirty(dst Bitmap) error
	// Clear forgets that pages were written. gfns is ascending, all of it RAM, and
	// is not kept. Whoever reads a page after Clear has returned sees every write
	// that Dirty will not report again. Several streams call it at a time, for
	// different pages, while no other method but Ended and EndReason is being called; each page comes at
	// most once per round, and where hints are asked for once before the first. Only while the log is on.
	Clear(gfns []uint64) error
	// VCPUs is how many vCPUs the guest has.
	VCPUs() int
	// CanPace says why this machine cannot be slowed by p's means, whatever its
	// numbers, and what to do about that. Any goroutine may call it, at any time.
	CanPace(p policy.Pace) error
	// SetPace slows the guest in place of the pace before, which ends whatever its
	// means; policy.FullSpeed ends all slowing. A pace that failed may be in
	// force in part, until SetPace(policy.FullSpeed). One by policy.ByDirtyLimit
	// comes only while the log is on.
	SetPace(p policy.Pace) error
	// Pause stops the vCPUs, finishes accesses under way and drains devices:
	// when it returns, nothing writes guest memory any more. All the time it takes
	// counts as downtime, so the guest stands still in it; one that has to wait for
	// others does that in Settle (Settler), or fails with ErrUnsettled and the guest
	// running. A Pause that fails otherwise may leave the guest paused or running.
	// A stop rule that measures has Pause, SaveState and Resume called once or
	// more while copying goes on, with the log on, before the Pause that counts.
	Pause(ctx context.Context) error
	// Resume undoes Pause, also a Pause that failed, half-way or with the guest
	// running already.
	Resume() error
	// SaveState writes vCPU, interrupt, clock and device state. Only between
	// Pause and Resume; it may dirty guest memory no further.
	SaveState(w io.Writer) error
	// Release flushes writable disk images and gives up their locks, so that
	// the destination can take them. Only while paused.
	Release() error
	// Reclaim undoes Release, also a Release that failed half-way. It takes back what
	// the guest cannot do without, such as its disks; if that fails the machine must
	// stay paused, and the engine says so with the error. What the guest can do
	// without, such as the host's end of a console, must not make it fail.
	Reclaim() error
	// Ended is closed when the guest ended by itself (power-off, reset, fault);
	// EndReason then says how. Both may be called from any goroutine.
	Ended() <-chan struct{}
	EndReason() error
}

// LocalSource is a Source whose memory can be handed to another process of this
// host as it is (SendOptions.Local).
type LocalSource interface {
	Source
	// MemoryFile gives a descriptor, the caller's to close, of the memfd that is
	// guest RAM: the regions of Memory one after the other and nothing else, sealed
	// against any change of size. The error says what to do where there is none.
	MemoryFile() (*os.File, error)
}

// Target is the machine at the destination, built from the source's
// configuration, that has not run yet. Calls come from one goroutine at a
// time, in the order below; Abort may follow any of them but a Run that
// succeeded. A Target may also have Touched, as Source does: verify then also
// looks at pages that the source never sent. And it may have Rehearse() (time.Duration,
// error), which the engine calls once, first of all: how long the machine takes to
// restore its own state as LoadState would, which must leave it as it was. And it
// may have Expect(), called once before LoadState, when the state begins to come: the
// source has released what both must not use, so that what reaches this host for
// the guest from then on is the Target's to keep.
type Target interface {
	// Memory lists guest RAM, all zero and not yet touched where possible, or the
	// source's own (Offer.Memory); the engine checks it against the source's layout.
	Memory() []Region
	// Populate prepares extents for writing ahead of the data. May be called
	// from another goroutine while pages arrive.
	Populate(extents []Extent) error
	// LoadState restores what SaveState wrote. The state comes from a stranger.
	LoadState(r io.Reader) error
	// Acquire locks writable disk images that the source has released and reads
	// their metadata again.
	Acquire() error
	// Run lets the guest go on.
	Run() error
	// Abort throws the machine away and gives back everything it holds.
	Abort() error
}

// Builder makes the target machine from a stranger's configuration, or refuses
// by naming what this host cannot give. Nothing of the guest runs yet.
//
// A target whose offer has Memory is built on that file, which comes from the
// same stranger and is to be checked. It is the source's RAM, and the source's
// guest may be running on it, now and again after any failure: until Run is
// called nothing may write to it. Populate is not called then, and Touched should
// be there: without it, verify reads all of RAM.
type Builder func(ctx context.Context, offer Offer) (Target, error)

// Offer is what a Builder builds from.
type Offer struct {
	// Config is what Source.Config gave.
	Config []byte
	// Memory is what LocalSource.MemoryFile gave in a local hand-over, else nil. It
	// is the Builder's to close from the call on, also when it fails.
	Memory *os.File
}
