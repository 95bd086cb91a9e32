package sim_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/policy"
)

// Every codec moves pages that change a little, a lot, to zero and back, over
// several streams, and both ends count alike. Text shrinks with those that
// compress, a changed word with those that keep what they sent.
func TestCodecs(t *testing.T) {
	for _, c := range []struct {
		codec             string
		compressed, delta bool
	}{{"raw", false, false}, {"rle", true, false}, {"lz4", true, false}, {"xbrle,cache=8M", false, true}, {"xbrle,cache=0", false, false}} {
		t.Run(c.codec, func(t *testing.T) {
			const pages = 1200
			r := newRig(t, pages)
			rng := rand.New(rand.NewPCG(1, 2))
			noise := func(p []byte) {
				for i := 0; i < len(p); i += 8 {
					binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
				}
			}
			text := func(p []byte) { copy(p, strings.Repeat("a page of text ", 300)) }
			for i := range uint64(pages) {
				r.src.Write(r.gpa(i), []func([]byte){noise, text}[i%2])
			}
			rounds := 0
			r.src.Hook(func(m string) {
				if m != "Dirty" {
					return
				}
				rounds++
				for i := range uint64(pages) {
					switch (i + uint64(rounds)) % 5 {
					case 0:
						r.src.Write(r.gpa(i), noise)
					case 1, 4:
						r.src.Write(r.gpa(i), func(p []byte) { p[100]++ })
					case 2:
						r.src.Write(r.gpa(i), func([]byte) {}) // dirty and as it was
					case 3:
						r.src.Write(r.gpa(i), func(p []byte) { clear(p) })
					}
				}
			})
			var err error
			r.send.Policies.Codec, err = policy.Codecs.Parse(c.codec)
			require.NoError(t, err)
			r.send.Policies.Stop = policy.LastSync{MaxRounds: 6}
			r.send.Streams, r.send.DowntimeLimit, r.send.Verify = 3, 1, true
			res := r.migrate(context.Background())
			r.moved(res)
			sent, got := res.sent.Pages, res.received.Pages
			require.Equal(t, c.compressed, sent.Compressed > 0, "%+v", sent)
			require.Equal(t, c.delta, sent.Delta > 0, "%+v", sent)
			require.NotZero(t, sent.Zero)
			require.Equal(t, c.delta, sent.Unchanged > 0, "%+v", sent)
			sent.Skipped, sent.Unchanged = 0, 0 // what does not go, the destination cannot count
			require.Equal(t, sent, got)
		})
	}
}

// The codec auto compresses text, leaves noise, sends deltas of what changes a
// little, and is told when the limit changes: a migration that begins raw, there
// being no limit, compresses once there is a low one. The time is a bubble's: a
// busy host's encoders would be too slow for any link.
func TestAuto(t *testing.T) {
	for _, streams := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) { autoMoves(t, streams) })
	}
}

func autoMoves(t *testing.T, streams int) {
	const pages = 1500
	r := newRig(t, pages)
	r.inNoTime()
	rng := rand.New(rand.NewPCG(1, 2))
	noise := func(p []byte) {
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
		}
	}
	text := func(p []byte) {
		copy(p, strings.Repeat(strconv.FormatUint(rng.Uint64(), 10)+" is a page of text ", 300))
	}
	fill := func(i uint64) {
		if i/500%2 == 0 {
			r.src.Write(r.gpa(i), text)
		} else {
			r.src.Write(r.gpa(i), noise)
		}
	}
	for i := range uint64(pages) {
		fill(i)
	}
	var s *migration.Session
	rounds := 0
	r.src.Hook(func(m string) {
		if m != "Dirty" {
			return
		}
		rounds++
		if rounds == 2 {
			require.NoError(t, s.SetBandwidth(5e6))
		}
		for i := range uint64(pages) {
			switch {
			case rounds < 4:
				fill(i)
			default:
				r.src.Write(r.gpa(i), func(p []byte) { p[i%pageSize]++ })
			}
		}
	})
	var err error
	r.send.Policies.Codec, err = policy.Codecs.Parse("auto,cache=8M")
	require.NoError(t, err)
	r.send.Policies.Stop = policy.Rounds{N: 6}
	r.send.Streams, r.send.Verify = streams, true
	s, err = migration.NewSession(r.src, r.dial, r.send)
	require.NoError(t, err)
	var res result
	done := make(chan struct{})
	go func() {
		defer close(done)
		res.target, res.received, res.recvErr = migration.Receive(context.Background(), r.accept, r.host.Build, r.recv)
	}()
	res.sent, res.sendErr = s.Run(context.Background())
	<-done
	r.moved(res)
	for _, n := range res.sent.Rounds {
		t.Logf("%d streams, round %d: %d pages, %d bytes each", streams, n.N, n.SentPages, n.WireBytes/max(n.SentPages, 1))
	}
	t.Logf("%+v", res.sent.Pages)
	// A third is noise, so 1.8 KB a page is about the least without deltas.
	low, deltas := res.sent.Rounds[3], res.sent.Rounds[5]
	require.Less(t, low.WireBytes/low.SentPages, uint64(2800))
	require.Less(t, deltas.WireBytes/deltas.SentPages, uint64(300))
	sent := res.sent.Pages
	sent.Skipped = 0
	require.Equal(t, sent, res.received.Pages)
}

// slowCodec makes its pages long enough to encode for the pool to be asked.
type slowCodec struct {
	policy.Codec
	encoded atomic.Int64
	closed  atomic.Int64
}

func (c *slowCodec) Encode(gfn uint64, page []byte) policy.Encoding {
	c.encoded.Add(1)
	for range 4 {
		c.Codec.Encode(gfn, page)
	}
	return c.Codec.Encode(gfn, page)
}

func (c *slowCodec) Close() error { c.closed.Add(1); return nil }

func TestSlowCodecIsShared(t *testing.T) {
	lz4, err := policy.Codecs.Parse("lz4")
	require.NoError(t, err)
	for _, fail := range []string{"", "SaveState"} {
		r := newRig(t, 2000)
		for i := range uint64(2000) {
			r.put(i, i+1)
		}
		codec := &slowCodec{Codec: lz4}
		r.send.Policies.Codec, r.send.Streams = codec, 2
		before := goroutines()
		if fail != "" {
			r.src.Fail(fail, context.DeadlineExceeded)
			res := r.migrate(context.Background())
			require.Error(t, res.sendErr)
			require.NoError(t, r.src.Unharmed())
		} else {
			r.moved(r.migrate(context.Background()))
		}
		require.EqualValues(t, 2000, codec.encoded.Load())
		require.EqualValues(t, 1, codec.closed.Load(), "closed once, with the session")
		noLeak(t, before)
	}
}

// brokenCodec says that a page has another size.
type brokenCodec struct{ policy.Codec }

func (brokenCodec) Encode(uint64, []byte) policy.Encoding {
	return policy.Encoding{Data: make([]byte, 5000)}
}

func TestBrokenCodec(t *testing.T) { synctest.Test(t, moveByBrokenCodec) }

func moveByBrokenCodec(t *testing.T) {
	lz4, err := policy.Codecs.Parse("lz4")
	require.NoError(t, err)
	r := newRig(t, 64)
	r.inNoTime()
	r.put(3, 4)
	r.send.Policies.Codec = brokenCodec{lz4}
	res := r.migrate(context.Background())
	require.ErrorContains(t, res.sendErr, "codec sim_test.brokenCodec made 5000 bytes of page 0x3000")
	require.ErrorIs(t, res.sendErr, migration.ErrMemory)
	require.NoError(t, r.src.Unharmed())
}
