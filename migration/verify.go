package migration

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"godwit/migration/wire"
)

// Limits of the search for pages that differ. A page costs about two questions
// for each halving of memory.
const (
	maxDiffering = 16
	maxQuestions = 4096
)

// verify compares the hashes of guest memory, if asked. It is not downtime.
// Where they differ it finds out where, for whoever has to find out why.
func (e *engine) verify() error {
	if !e.o.Verify {
		return nil
	}
	if err := e.s.enter(PhaseVerify); err != nil {
		return err
	}
	began := time.Now()
	defer func() { e.clock.exclude(time.Since(began)) }()
	if err := e.ask(Extent{}); err != nil {
		return err
	}
	which, err := e.everTouched()
	if err != nil {
		return err
	}
	ours := e.mem.hash(which)
	ctx, end := held("sent no HASH", hashing(which.Count())).begin(e.ctx)
	defer end()
	theirs, err := e.answer(ctx)
	if err != nil {
		return err
	}
	v := &Verified{Source: fmt.Sprintf("%x", ours.Sum), Destination: fmt.Sprintf("%x", theirs.Sum)}
	e.rep.Verify = v
	if ours == theirs {
		return nil
	}
	differ := fmt.Errorf("%w: hash %x over %d pages here, %x over %d pages there", ErrVerify, ours.Sum[:8], ours.Pages, theirs.Sum[:8], theirs.Pages)
	end()
	// One limit for all questions: each of them could be answered at the last moment.
	ctx, end = held("did not say which pages differ", 2*hashing(which.Count())).begin(e.ctx)
	defer end()
	if err := e.explain(ctx, v, which, ours, theirs); err != nil {
		return fmt.Errorf("%w; where could not be found: %w", differ, err)
	}
	return fmt.Errorf("%w: %s", differ, v.differing())
}

// everTouched is what the source's hash covers, the machine being paused: not the
// pages that its guest does not need. They were never sent, so they are zeros at the
// destination, and a hash does not count those.
func (e *engine) everTouched() (Bitmap, error) {
	touched, err := e.src.Touched()
	if err != nil {
		return nil, fmt.Errorf("find touched memory: %w", err)
	}
	b := make(Bitmap, e.mem.words)
	if err := e.mem.addExtents(b, touched); err != nil {
		return nil, err
	}
	for i, w := range e.free {
		b[i] &^= w
	}
	return b, nil
}

// ask has the destination hash a part of its memory; answer hears what came out.
func (e *engine) ask(part Extent) error {
	return e.link.send(wire.TypeVerify, 0, (&wire.Verify{Extent: part}).Append(nil))
}

func (e *engine) answer(ctx context.Context) (h wire.Hash, err error) {
	body, err := e.link.expect(ctx, wire.TypeHash)
	if err != nil {
		return h, err
	}
	return h, h.Decode(body)
}

// explain fills v with the first pages that differ and what is known about them.
func (e *engine) explain(ctx context.Context, v *Verified, which Bitmap, ours, theirs wire.Hash) error {
	var err error
	if v.Differing, err = e.differing(ctx, which); err != nil {
		return err
	}
	again := make(Bitmap, e.mem.words)
	if e.logging {
		if err := e.src.Dirty(again); err != nil {
			return fmt.Errorf("read dirty log: %w", err)
		}
	}
	for i := range v.Differing {
		d := &v.Differing[i]
		gfn := d.GPA >> pageShift
		d.DirtyAgain = again[gfn/64]>>(gfn%64)&1 != 0
		if e.listed != nil {
			d.Round = int(e.listed[gfn])
		}
	}
	if err := e.ask(Extent{}); err != nil {
		return err
	}
	v.SourceChanged = e.mem.hash(which) != ours
	now, err := e.answer(ctx)
	v.DestinationChanged = now != theirs
	return err
}

// differing finds the first pages that differ by halving memory, lowest first.
func (e *engine) differing(ctx context.Context, which Bitmap) (found []Difference, err error) {
	type span struct{ from, to uint64 }
	search := []span{{0, uint64(e.mem.words) * 64}}
	for asked := 0; len(search) > 0 && len(found) < maxDiffering && asked < maxQuestions/2; {
		s := search[len(search)-1]
		search = search[:len(search)-1]
		mid := s.from + (s.to-s.from)/2
		var wrong []span
		for _, half := range []span{{mid, s.to}, {s.from, mid}} {
			if err := e.ask(Extent{GPA: half.from << pageShift, Len: (half.to - half.from) << pageShift}); err != nil {
				return nil, err
			}
			asked++
			ours := e.mem.hashRange(which, half.from, half.to)
			theirs, err := e.answer(ctx)
			switch {
			case err != nil:
				return nil, err
			case ours == theirs:
			case half.to-half.from == 1:
				found = append(found, Difference{GPA: half.from << pageShift, ZeroSource: ours.Pages == 0, ZeroDestination: theirs.Pages == 0})
			default:
				wrong = append(wrong, half)
			}
		}
		search = append(search, wrong...)
	}
	slices.SortFunc(found, func(a, b Difference) int { return cmp.Compare(a.GPA, b.GPA) })
	return found, nil
}

// list notes in which round pages are to be sent, for explain. The round is cut
// to what a note holds.
func (e *engine) list(round int, gfns []uint64) {
	if !e.o.Verify {
		return
	}
	if e.listed == nil {
		e.listed = make([]uint16, e.mem.words*64)
	}
	for _, gfn := range gfns {
		e.listed[gfn] = uint16(min(round, 1<<16-1))
	}
}

// differing says in words what explain found.
func (v *Verified) differing() string {
	var b strings.Builder
	if len(v.Differing) == 0 {
		b.WriteString("no page differs when asked for by itself")
	} else {
		b.WriteString("first differing pages: ")
		for i, d := range v.Differing {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(d.String())
		}
	}
	if v.SourceChanged {
		b.WriteString("; the source's memory changed while it was paused")
	}
	if v.DestinationChanged {
		b.WriteString("; the destination's memory changed while it waited")
	}
	return b.String()
}
