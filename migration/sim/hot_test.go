package sim_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/policy"
	"godwit/migration/sim"
)

// scattered is a machine whose memory was touched at every other page.
type scattered struct {
	*sim.Machine
	pages uint64
}

func (s scattered) Touched() ([]migration.Extent, error) {
	var es []migration.Extent
	for _, l := range layout(s.pages) {
		for gpa := l.GPA; gpa < l.GPA+l.Len; gpa += 2 * pageSize {
			es = append(es, migration.Extent{GPA: gpa, Len: pageSize})
		}
	}
	return es, nil
}

// All extents are announced before the first page: more of them than any buffer
// between the ends holds must not keep the pages from coming.
func TestScatteredMemory(t *testing.T) {
	const pages = 300_000
	w := sim.NewWorld()
	src, err := sim.NewMachine(w, layout(pages)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, src.Close()) })
	r := rigOf(t, w, src, scattered{src, pages}, pages)
	for i := range uint64(100) {
		r.put(i*2000, i+1)
	}
	r.moved(r.migrate(context.Background()))
}

// noisy fills a rig's pages with what no codec makes smaller.
func noisy(r *rig) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range r.size {
		r.src.Write(r.gpa(i), func(p []byte) {
			for k := range p {
				p[k] = byte(rng.Uint32())
			}
		})
	}
}

// A log that names pages which nobody changed does not keep a migration from its
// end: such pages cost little, and the estimate knows.
func TestUnchangedPagesConverge(t *testing.T) { synctest.Test(t, unchangedPagesConverge) }

func unchangedPagesConverge(t *testing.T) {
	r := newRig(t, 3000)
	r.inNoTime()
	noisy(r)
	r.src.Hook(func(m string) {
		if m == "Dirty" {
			for i := range r.size {
				r.src.Write(r.gpa(i), func([]byte) {})
			}
		}
	})
	var err error
	r.send.Policies.Codec, err = policy.Codecs.Parse("xbrle,cache=64M")
	require.NoError(t, err)
	r.send.Bandwidth, r.send.Verify = 8e6, true // all pages take 1.5 s
	r.send.DowntimeLimit = time.Second
	res := r.migrate(context.Background())
	r.moved(res)
	require.NotZero(t, res.sent.Pages.Unchanged)
	require.Less(t, len(res.sent.Rounds), policy.DefaultMaxRounds/2, "%+v", res.sent.Rounds)
}

// Pages that are written before the first page goes are known to be hot: a
// cache that keeps only such pages has them from round 1 on.
func TestHotPagesAreSeenEarly(t *testing.T) {
	for _, c := range []struct {
		codec  string
		allSet bool // the log begins with every page in it, as KVM's does where much was touched
		early  bool
	}{
		{"xbrle,cache=64M,prime=hot", false, true},
		{"xbrle,cache=64M,prime=hot", true, true},
		{"xbrle,cache=auto", true, true},
		{"xbrle,cache=64M,prime=none", false, false},
		{"xbrle,cache=64M,prime=none", true, false},
		{"xbrle,cache=0,prime=hot", true, false},
	} {
		t.Run(fmt.Sprintf("%s, all set %v", c.codec, c.allSet), func(t *testing.T) {
			r := newRig(t, 3000)
			noisy(r)
			r.src.AllSet = c.allSet
			r.src.Hook(func(m string) {
				if m == "Dirty" {
					for i := range uint64(200) {
						r.src.Write(r.gpa(i), func(p []byte) { p[i]++ })
					}
				}
			})
			var err error
			r.send.Policies.Codec, err = policy.Codecs.Parse(c.codec)
			require.NoError(t, err)
			r.send.Policies.Stop, r.send.Verify = policy.Rounds{N: 1}, true
			res := r.migrate(context.Background())
			r.moved(res)
			require.Equal(t, c.early, res.sent.Pages.Delta > 0, "%+v", res.sent.Pages)
		})
	}
}
