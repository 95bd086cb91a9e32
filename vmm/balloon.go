package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"godwit/kvm/guestmem"
	"godwit/migration"
	"godwit/virtio"
	"godwit/virtio/balloon"
)

// ErrNoBalloon marks a request to a balloon that the machine does not have, or
// that has not what is asked for.
var ErrNoBalloon = errors.New("the machine has no such balloon")

// Balloon is a virtio-balloon device.
type Balloon struct {
	// AmountMiB is the size that the guest is asked for, MiB, 0 up to its memory.
	AmountMiB int `json:"amount_mib"`
	// DeflateOnOOM lets the guest take memory back before it kills processes.
	DeflateOnOOM bool `json:"deflate_on_oom,omitempty"`
	// StatsPollingIntervalS is how often the guest is asked for its figures,
	// seconds, 1 to 3600; 0 means never, and then it cannot be changed later.
	StatsPollingIntervalS int `json:"stats_polling_interval_s,omitempty"`
	// FreePageHinting lets a migration ask which pages are free.
	FreePageHinting bool `json:"free_page_hinting,omitempty"`
	// FreePageReporting has the guest give back what it frees by itself.
	FreePageReporting bool `json:"free_page_reporting,omitempty"`
}

func (b *Balloon) validate(memMiB int) error {
	switch {
	case b == nil:
		return nil
	case b.AmountMiB < 0 || b.AmountMiB > memMiB:
		return fmt.Errorf("%w: balloon of %d MiB in a machine of %d MiB; give 0 to %d", ErrConfig, b.AmountMiB, memMiB, memMiB)
	case b.StatsPollingIntervalS < 0 || b.StatsPollingIntervalS > maxStatsIntervalS:
		return fmt.Errorf("%w: balloon statistics every %d s; give 1 to %d, or 0 for none", ErrConfig, b.StatsPollingIntervalS, maxStatsIntervalS)
	}
	return nil
}

const (
	maxStatsIntervalS = int(balloon.MaxStatsInterval / time.Second)
	pagesPerMiB       = 1 << 20 / balloon.PageSize
)

// BalloonInfo is where the balloon stands and what it has done.
type BalloonInfo struct {
	TargetMiB         int  `json:"target_mib"` // what the guest is asked for
	ActualMiB         int  `json:"actual_mib"` // what it says it has given
	DeflateOnOOM      bool `json:"deflate_on_oom"`
	StatsIntervalS    int  `json:"stats_interval_s"` // 0: never
	FreePageHinting   bool `json:"free_page_hinting"`
	FreePageReporting bool `json:"free_page_reporting"`
	// Guest is what the guest said of its memory last; nil before it has.
	Guest *balloon.GuestStats `json:"guest,omitempty"`
	Stats balloon.Stats       `json:"stats"`
}

// balloonPart is the machine's virtio-balloon device. What the guest gives back
// is this process's own memory, so there is nothing to release or claim.
type balloonPart struct {
	plainPart
	spec Balloon
	dev  *balloon.Device
}

var _ part = (*balloonPart)(nil)

func newBalloon(spec Balloon, mem *guestmem.Memory) (part, error) {
	dev, err := balloon.New(balloon.Config{
		Memory: mem, Target: uint32(spec.AmountMiB) * pagesPerMiB, DeflateOnOOM: spec.DeflateOnOOM,
		StatsInterval: time.Duration(spec.StatsPollingIntervalS) * time.Second,
		Hinting:       spec.FreePageHinting, Reporting: spec.FreePageReporting,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return &balloonPart{spec: spec, dev: dev}, nil
}

func (b *balloonPart) kind() string          { return "balloon" }
func (b *balloonPart) name() string          { return "balloon" }
func (b *balloonPart) device() virtio.Device { return b.dev }

func (b *balloonPart) info(i *Info) {
	st := b.dev.Status()
	info := &BalloonInfo{
		TargetMiB: int(st.TargetPages / pagesPerMiB), ActualMiB: int(st.ActualPages / pagesPerMiB),
		DeflateOnOOM: b.spec.DeflateOnOOM, StatsIntervalS: int(b.dev.StatsInterval() / time.Second),
		FreePageHinting: b.spec.FreePageHinting, FreePageReporting: b.spec.FreePageReporting,
		Stats: b.dev.Stats(),
	}
	if g, ok := b.dev.GuestStats(); ok {
		info.Guest = &g
	}
	i.Balloon = info
}

// balloon is the machine's, nil if it has none. Parts do not change once the
// machine is assembled.
func (d *devices) balloon() *balloonPart {
	for _, p := range d.parts {
		if b, ok := p.(*balloonPart); ok {
			return b
		}
	}
	return nil
}

// CanHint implements migration.HintSource.
func (s *source) CanHint() error {
	b := s.m.dev.balloon()
	if b == nil || !b.spec.FreePageHinting {
		return fmt.Errorf("%w: one with hinting; only a machine that was started with --balloon hinting can say what is free; migrate without --free-page-hint", ErrNoBalloon)
	}
	return b.dev.CanHint()
}

// FreePages implements migration.HintSource.
func (s *source) FreePages(ctx context.Context, found func([]migration.Extent)) error {
	if err := s.CanHint(); err != nil {
		return err
	}
	var out []migration.Extent
	return s.m.dev.balloon().dev.FreePages(ctx, func(es []guestmem.Extent) {
		out = out[:0]
		for _, e := range es {
			out = append(out, migration.Extent{GPA: e.GPA, Len: e.Len})
		}
		found(out)
	})
}

// SetBalloon asks the guest for a balloon of another size, in MiB. It takes its
// time: Info says how far it is.
func (m *Machine) SetBalloon(mib int) error {
	b := m.dev.balloon()
	if b == nil {
		return fmt.Errorf("%w; start it with --balloon size=%dM", ErrNoBalloon, max(mib, 0))
	}
	if err := (&Balloon{AmountMiB: mib}).validate(m.cfg.Machine.MemSizeMiB); err != nil {
		return err
	}
	return b.dev.SetTarget(uint32(mib) * pagesPerMiB)
}

// SetBalloonInterval changes how often the guest is asked for its figures, in
// seconds.
func (m *Machine) SetBalloonInterval(seconds int) error {
	b := m.dev.balloon()
	if b == nil || b.dev.StatsInterval() == 0 {
		return fmt.Errorf("%w: one with statistics; start it with --balloon stats=5s", ErrNoBalloon)
	}
	if seconds < 1 || seconds > maxStatsIntervalS {
		return fmt.Errorf("%w: balloon statistics every %d s; give 1 to %d", ErrConfig, seconds, maxStatsIntervalS)
	}
	return b.dev.SetStatsInterval(time.Duration(seconds) * time.Second)
}
