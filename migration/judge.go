package migration

import (
	"fmt"
	"runtime/debug"

	"godwit/migration/policy"
)

// No policy can break a migration's safety, so the engine believes none of them.
//
//	Order      its result is the set that it was given: judge, page by page
//	Codec      encodings are checked as they are framed, by both ends; a Same
//	           that is a lie shows under Verify, and in the suite
//	Throttle   numbers are clamped; means that the machine lacks fail to be set
//	Stop       only its two answers count: decide
//	all        a panic is an error of the migration: asking
//
// A fault found ends the migration before GO, and the source runs on.

// asking calls a policy's method. The policy is p, and kind says which of them it
// is. A panic of it becomes an error.
func (s *Session) asking(kind string, p any, call func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(kind, p, v)
			s.o.Log.Error("a migration policy panicked", "policy", fmt.Sprintf("%T", p), "panic", v, "stack", string(debug.Stack()))
		}
	}()
	call()
	return nil
}

// panicked is the error of a policy that did.
func panicked(kind string, p, v any) error {
	return fmt.Errorf("%w: %s %T panicked: %v; choose another, or mend it", ErrPolicy, kind, p, v)
}

// sorted fills e.gfns with the pending pages in the order of sending, and empties
// pending.
//
// The policies see a list of their own. What the order made of it is copied and
// then judged: one that keeps the list and writes to it later changes nothing.
func (e *engine) sorted(last bool) error {
	pages := e.pending.list(e.shown[:0])
	// Not in the pause: a codec may tidy up.
	if o, ok := e.o.Policies.Codec.(policy.Observer); ok && e.last.Number > 0 && !last {
		if err := e.s.asking("codec", o, func() { o.Observe(e.last, pages) }); err != nil {
			return err
		}
		pages = e.pending.list(pages[:0]) // whatever it did to them
	}
	e.shown = pages
	order := e.o.Policies.Order
	if err := e.s.asking("order", order, func() { order.Sort(e.last, pages[:len(pages):len(pages)]) }); err != nil {
		return err
	}
	e.gfns = append(e.gfns[:0], pages...)
	if bad, ok := e.pending.judge(e.gfns); !ok {
		return orderFault(order, bad, pages)
	}
	return nil
}

// judge takes each of gfns, once, out of b, and says whether that took them all.
// Pages of b and gfns are equally many, so that one that is missing shows in
// another that is in the list twice, or was never in b. bad is the first of these.
func (b Bitmap) judge(gfns []uint64) (bad uint64, ok bool) {
	for _, gfn := range gfns {
		word, bit := gfn/64, uint64(1)<<(gfn%64)
		if word >= uint64(len(b)) || b[word]&bit == 0 {
			return gfn, false
		}
		b[word] &^= bit
	}
	return 0, true
}

// orderFault says what an order did wrong: bad is the first page that it was not
// given, or has given before.
func orderFault(order policy.Order, bad uint64, pages []uint64) error {
	times := 0
	for _, gfn := range pages {
		if gfn == bad {
			times++
		}
	}
	what := "puts in a page that it was not given"
	if times > 1 {
		what = fmt.Sprintf("gives a page %d times", times)
	}
	return fmt.Errorf("%w: order %T %s: %#x, of %d pages; Sort must rearrange the pages and keep each of them once (go test ./migration/policy/... shows it)",
		ErrPolicy, order, what, bad<<pageShift, len(pages))
}

// decide asks the stop rule.
func (e *engine) decide(r policy.Round) (d policy.Decision, err error) {
	stop := e.o.Policies.Stop
	if err := e.s.asking("stop rule", stop, func() { d = stop.Decide(r) }); err != nil {
		return d, err
	}
	if d != policy.Continue && d != policy.Finish {
		return d, fmt.Errorf("%w: stop rule %T answers %d, which is neither Continue nor Finish", ErrPolicy, stop, d)
	}
	return d, nil
}

// nextPace asks the throttle. The source judges the pace as it is set.
func (e *engine) nextPace(t policy.Throttle, r policy.Round) (p policy.Pace, err error) {
	err = e.s.asking("throttle", t, func() { p = t.Next(r) })
	return p, err
}
