package qcow2

import "sync"

const (
	// plainClusters is how many decompressed clusters an image keeps, within
	// plainBytes, but two at least.
	plainClusters = 16
	plainBytes    = 4 << 20
)

// plainCache keeps clusters decompressed, since a disk is read in pieces that
// are smaller than they are. Its key is the L2 entry: that says where in the
// file the data lies, which nobody writes to while a request may still know the
// entry (see reclaim), and no compressed cluster is ever made in a place that
// was freed. So a cluster that was overwritten or discarded is not asked for
// again. Somebody else may have changed what the file holds once the image was
// in other hands: then all of it is forgotten.
type plainCache struct {
	mu     sync.Mutex
	filled sync.Cond
	slots  []plain
	hand   int
}

// plain is a cluster, decompressed.
type plain struct {
	entry uint64 // 0: nothing
	data  []byte
	ready bool // else somebody is filling it
	users int
	used  bool // since the hand passed
}

// reset forgets everything. No request is under way.
func (c *plainCache) reset(cluster int64) {
	c.filled.L = &c.mu
	c.slots = make([]plain, max(2, min(plainClusters, plainBytes/cluster)))
	c.hand = 0
}

// get gives the slot of an entry, to be put back. With fill the caller is the
// one to fill it; others who want it wait. It is nil if all slots are in use.
func (c *plainCache) get(entry uint64, cluster int64) (p *plain, fill bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		p = c.find(entry)
		if p == nil {
			break
		}
		if p.ready {
			p.users++
			p.used = true
			return p, false
		}
		c.filled.Wait()
	}
	if p = c.victim(); p == nil {
		return nil, true
	}
	if p.data == nil {
		p.data = alignedBytes(int(cluster))
	}
	p.entry, p.ready, p.users, p.used = entry, false, 1, true
	return p, true
}

// have is get where the cluster is there already, and else nil.
func (c *plainCache) have(entry uint64) *plain {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.find(entry)
	if p == nil || !p.ready {
		return nil
	}
	p.users++
	p.used = true
	return p
}

func (c *plainCache) find(entry uint64) *plain {
	for i := range c.slots {
		if c.slots[i].entry == entry {
			return &c.slots[i]
		}
	}
	return nil
}

// victim is a slot that nobody uses, chosen by the clock algorithm.
func (c *plainCache) victim() *plain {
	for range 2 * len(c.slots) {
		p := &c.slots[c.hand]
		c.hand = (c.hand + 1) % len(c.slots)
		switch {
		case p.users > 0:
		case p.used:
			p.used = false
		default:
			return p
		}
	}
	return nil
}

// fill tells those who wait whether a slot has its data now.
func (c *plainCache) fill(p *plain, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.ready = ok
	if !ok {
		p.entry = 0
	}
	c.filled.Broadcast()
}

func (c *plainCache) put(p *plain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.users--
}
