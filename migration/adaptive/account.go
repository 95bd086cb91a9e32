package adaptive

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	accountMost  = int64(10 * time.Millisecond)
	accountLeast = -int64(time.Second)

	maxNsPerByte = 1e6 // 1 kB/s: slower links are as good as that

	// Down to what the account may be for work of a kind: LZ4; deltas and keeping
	// bases, on a link that hides nothing and on one that hides all.
	dear      = int64(0)
	cheap     = -int64(2 * time.Millisecond)
	cheapIdle = -int64(500 * time.Millisecond)

	trial = float64(pageSize) / 16 // bytes whose time pays for trying, per page, where the link hides nothing
	extra = 2.0                    // what hiding adds to how much LZ4 may take per ns saved
)

// account is link time that came in and was not spent, ns.
type account struct{ ns atomic.Int64 }

func (a *account) allows(least int64) bool { return a.ns.Load() >= least }

// book adds to the account, within its bounds. When another page is booked at
// the same moment, a bound may be passed until the next.
func (a *account) book(ns int64) {
	if v := a.ns.Add(ns); v > accountMost || v < accountLeast {
		a.ns.CompareAndSwap(v, min(max(v, accountLeast), accountMost))
	}
}

// terms are what a link makes of bytes. The zero value is a link not known:
// nothing takes time on it.
type terms struct {
	nsPerByte float64
	hidden    float64 // 0 to 1
}

// known says that there is a link.
func (t terms) known() bool { return t.nsPerByte > 0 }

// income is what a page brings in that takes so many bytes, ns.
func (t terms) income(bytes int) int64 {
	n := float64(bytes)
	return int64(t.nsPerByte * (t.hidden*n + (1-t.hidden)*(pageSize-n+trial)))
}

// overdraft is down to what the account may be for deltas and for keeping bases.
// Where encoders wait for the link anyway, bases are kept although it takes
// long at first, for each saves most of a page in every round to come.
func (t terms) overdraft() int64 { return cheap + int64(t.hidden*float64(cheapIdle-cheap)) }

// worth says whether saving so many bytes is worth cost ns.
func (t terms) worth(saved int, cost int64) bool {
	return float64(saved)*t.nsPerByte*(1+extra*t.hidden) >= float64(cost)
}

// board is where the terms of the moment stand, for all to read: two float32 in
// one word, so that they always belong together.
type board struct{ word atomic.Uint64 }

func (b *board) set(t terms) {
	b.word.Store(uint64(math.Float32bits(float32(t.nsPerByte)))<<32 | uint64(math.Float32bits(float32(t.hidden))))
}

func (b *board) get() terms {
	w := b.word.Load()
	return terms{float64(math.Float32frombits(uint32(w >> 32))), float64(math.Float32frombits(uint32(w)))}
}

// meter is what a page costs lately, ns. Updates that meet may get lost.
type meter struct{ ns atomic.Int64 }

func (m *meter) set(d time.Duration) { m.ns.Store(int64(d)) }

// note takes in a measurement. The mean leans to the low side: the high one is a
// processor that was taken away.
func (m *meter) note(took int64) {
	v := m.ns.Load()
	if took < v {
		m.ns.Store(v + (took-v)/4)
		return
	}
	m.ns.Store(v + (min(took, 4*v+16)-v)/16)
}
