package vmm

import (
	"sync"
	"time"
)

const (
	// shortLook is the least time between two looks at a vCPU's ring: about what a
	// Go timer can do.
	shortLook = time.Millisecond
	// longNap is the most that a vCPU sleeps at a stretch, well under what makes a
	// guest's watchdogs bark. A longer debt is paid in parts.
	longNap = 2 * time.Second
)

// startDirtyLimit holds each vCPU to a rate of newly dirtied pages, those that its
// ring gets. A goroutine for each vCPU looks at its ring and takes nothing out of
// it. What it gives ends that.
func startDirtyLimit(vcpus []*VCPU, ring *ringTracker, pagesPerSecond uint64) (end func() error) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, v := range vcpus {
		wg.Go(func() { holdRate(v, ring, pagesPerSecond, stop) })
	}
	return func() error {
		close(stop)
		wg.Wait()
		for _, v := range vcpus {
			v.rouse()
		}
		return nil
	}
}

func holdRate(v *VCPU, ring *ringTracker, pagesPerSecond uint64, stop <-chan struct{}) {
	b := newDirtyBucket(pagesPerSecond)
	began, seen := time.Now(), ring.published(v.id)
	wake := time.NewTimer(b.look)
	defer wake.Stop()
	for {
		select {
		case <-stop:
			return
		case <-wake.C:
		}
		now, n := time.Now(), ring.published(v.id)
		nap := b.spend(n-seen, now.Sub(began))
		began, seen = now, n
		if nap > 0 {
			v.doze(nap)
		}
		wake.Reset(nap + b.look)
	}
}

// dirtyBucket is the account of one vCPU: time fills it, dirtied pages empty it,
// and below zero the vCPU sleeps. Over any time the pages are never more than
// rate x time, and what fits in the bucket, and the debt that is left.
//
// A look comes sooner the faster the vCPU spends, so that it is stopped with
// little debt and sleeps often and shortly instead of seldom and long.
type dirtyBucket struct {
	rate  float64 // pages per second
	most  float64 // pages that fit
	pages float64 // at present
	nap   time.Duration
	look  time.Duration // until the next look, from the end of the nap on
}

func newDirtyBucket(pagesPerSecond uint64) *dirtyBucket {
	rate := float64(pagesPerSecond)
	return &dirtyBucket{rate: rate, most: max(rate*dutyPeriod.Seconds(), 1), look: shortLook}
}

// spend takes the pages of the time since the last look off the account and says
// how long the vCPU must sleep now, 0 for not at all.
func (b *dirtyBucket) spend(pages uint64, since time.Duration) time.Duration {
	b.pages = min(b.pages+b.rate*since.Seconds()-float64(pages), b.most)
	ran := max(since-b.nap, shortLook)
	next := 2 * b.look
	if pages > 0 {
		full := ran.Seconds() * b.most / float64(pages) // to spend a bucket at this speed
		next = min(next, time.Duration(min(full, 1)*float64(time.Second)))
	}
	b.look = min(max(next, shortLook), dutyPeriod)
	b.nap = 0
	if b.pages < 0 {
		owed := min(-b.pages/b.rate, longNap.Seconds())
		b.nap = min(time.Duration(owed*float64(time.Second))+1, longNap) // rounded up
	}
	return b.nap
}
