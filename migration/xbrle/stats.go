package xbrle

import "sync/atomic"

// Stats counts what a codec did, for reports. All are pages unless they say
// bytes.
type Stats struct {
	Hits       uint64 // found in the cache: Deltas + Same + RawHits
	Deltas     uint64 // sent as a delta
	Same       uint64 // found unchanged, so not sent
	RawHits    uint64 // found, but the delta would not have been smaller
	Kept       uint64 // not found, sent raw, and kept as a base from now on
	Refused    uint64 // not found, sent raw, and not kept
	Evicted    uint64 // lost their place to a hotter page
	Trimmed    uint64 // lost their place because they had gone cold (cache=auto)
	Forgotten  uint64 // dropped because they were sent as zero or skipped
	DeltaBytes uint64 // bytes of all deltas
	CacheBytes uint64 // bytes that the cache may take, its tables included
	HeldPages  uint64 // pages in the cache now
	// NoCache is why there is no cache although one was asked for; every page is
	// then sent raw.
	NoCache error
}

// Pages is how many pages were encoded.
func (s Stats) Pages() uint64 { return s.Hits + s.Kept + s.Refused }

// counters are spread by guest address, so that streams, which work in different
// places, rarely write the same cache line.
type counters [16]struct {
	deltas, same, rawHits, kept, refused, evicted, forgotten, deltaBytes atomic.Uint64
}

func (c *counters) of(gfn uint64) int { return int(gfn / regionPages % uint64(len(c))) }

func (c *counters) sum() (s Stats) {
	for i := range c {
		s.Deltas += c[i].deltas.Load()
		s.Same += c[i].same.Load()
		s.RawHits += c[i].rawHits.Load()
		s.Kept += c[i].kept.Load()
		s.Refused += c[i].refused.Load()
		s.Evicted += c[i].evicted.Load()
		s.Forgotten += c[i].forgotten.Load()
		s.DeltaBytes += c[i].deltaBytes.Load()
	}
	s.Hits = s.Deltas + s.Same + s.RawHits
	return s
}
