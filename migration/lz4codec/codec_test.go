package lz4codec

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/migration/policy"
	"godwit/migration/policy/policytest"
)

func TestConformance(t *testing.T) {
	for _, text := range []string{"lz4", "lz4,accel=64"} {
		policytest.Codec(t, func() policy.Codec {
			c, err := policy.Codecs.Parse(text)
			require.NoError(t, err)
			require.EqualValues(t, ID, c.ID())
			return c
		})
	}
	for _, text := range []string{"lz4,accel=0", "lz4,accel=65", "lz4,level=3", "lz4:3"} {
		_, err := policy.Codecs.Parse(text)
		require.ErrorIs(t, err, policy.ErrBadPolicy, text)
	}
}

// Every kind of page comes back, encodings are within their bound, and stay as
// they are while other pages are encoded.
func TestKinds(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			src, dst := New(1), New(1)
			pages := pagesOf(200, k.fill)
			es := make([]policy.Encoding, len(pages))
			for i, p := range pages {
				es[i] = src.Encode(uint64(i), p)
				require.Equal(t, k.name == "random", es[i].Raw)
				require.Zero(t, es[i].Base)
			}
			for i, e := range es {
				if e.Raw {
					require.Same(t, &pages[i][0], &e.Data[0], "a raw page must not be copied")
					continue
				}
				require.LessOrEqual(t, len(e.Data), maxEncoded)
				got := make([]byte, policy.PageSize)
				require.NoError(t, dst.Decode(uint64(i), got, 0, e.Data))
				require.Equal(t, pages[i], got)
			}
		})
	}
}

// A page that compresses to about the bound is raw or within it, and comes back.
func TestAboutTheBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		page := make([]byte, policy.PageSize)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		fillRandom(rng, page[:rapid.IntRange(maxEncoded-64, maxEncoded+32).Draw(t, "random")])
		c := New(rapid.IntRange(-1, 100).Draw(t, "accel"))
		e := c.Encode(0, page)
		if e.Raw {
			return
		}
		require.LessOrEqual(t, len(e.Data), maxEncoded)
		got := make([]byte, policy.PageSize)
		require.NoError(t, c.Decode(0, got, e.Base, e.Data))
		require.Equal(t, page, got)
	})
}

func TestDecodeRefuses(t *testing.T) {
	c := New(1)
	page := make([]byte, policy.PageSize)
	good := c.Encode(7, page).Data
	require.NoError(t, c.Decode(7, page, 0, good))
	for name, bad := range map[string]struct {
		room, base int
		enc        []byte
		says       string
	}{
		"nothing":     {policy.PageSize, 0, nil, "must be 1 to"},
		"too long":    {policy.PageSize, 0, make([]byte, maxEncoded+1), "must be 1 to"},
		"with a base": {policy.PageSize, 1, good, "builds on none"},
		"no room":     {policy.PageSize - 1, 0, good, "a page has 4096"},
		"cut short":   {policy.PageSize, 0, good[:len(good)-1], "page 0x7"},
		"no match":    {policy.PageSize, 0, []byte{0x0f, 1, 0, 255}, "page 0x7"},
		"page short":  {policy.PageSize, 0, []byte{0x10, 'x'}, "make 1, must be 4096"},
		// A match of 5 KiB: more than a page.
		"page long": {policy.PageSize, 0, slices.Concat([]byte{0x1f, 'x', 1, 0}, bytes.Repeat([]byte{255}, 20), []byte{0, 0}), "page 0x7"},
	} {
		err := c.Decode(7, make([]byte, bad.room), uint32(bad.base), bad.enc)
		require.ErrorIs(t, err, ErrEncoding, name)
		require.ErrorContains(t, err, bad.says, name)
	}
	odd := make([]byte, 100)
	require.True(t, c.Encode(0, odd).Raw)
}

// Several streams encode and decode through one codec, each its own pages.
func TestStreams(t *testing.T) {
	src, dst := New(1), New(1)
	var wg sync.WaitGroup
	for s := range 4 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(s), 2))
			page, got := make([]byte, policy.PageSize), make([]byte, policy.PageSize)
			for i := range 200 {
				kinds[rng.IntN(len(kinds))].fill(rng, page)
				e := src.Encode(uint64(s), page)
				if e.Raw {
					continue
				}
				if err := dst.Decode(uint64(s), got, 0, e.Data); err != nil || !bytes.Equal(page, got) {
					t.Errorf("stream %d, page %d differs: %v", s, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, len(src.idle), runtime.GOMAXPROCS(0))
}

// FuzzDecode gives the decoder what a stranger may send. It fills exactly one
// page or fails, and touches nothing beside the page.
func FuzzDecode(f *testing.F) {
	for _, k := range kinds {
		if e := New(1).Encode(0, pagesOf(1, k.fill)[0]); !e.Raw {
			f.Add(uint32(0), slices.Clone(e.Data))
			f.Add(uint32(0), slices.Clone(e.Data[:len(e.Data)/2]))
		}
	}
	f.Add(uint32(1), []byte{0})
	f.Add(uint32(0), []byte{0x0f, 0, 0})
	f.Add(uint32(0), []byte{0xff, 0xff, 0xff})
	f.Add(uint32(0), slices.Concat([]byte{0x1f, 'x', 1, 0}, bytes.Repeat([]byte{255}, 20), []byte{0, 0}))
	c := New(1)
	beside := bytes.Repeat([]byte{0xa5}, policy.PageSize)
	f.Fuzz(func(t *testing.T, base uint32, enc []byte) {
		room := slices.Concat(beside, make([]byte, policy.PageSize), beside)
		sent := slices.Clone(enc)
		page := room[policy.PageSize : 2*policy.PageSize]
		err := c.Decode(1, page, base, enc)
		require.Equal(t, beside, room[:policy.PageSize])
		require.Equal(t, beside, room[2*policy.PageSize:])
		require.True(t, bytes.Equal(sent, enc), "the encoding was written to")
		if err != nil {
			require.ErrorIs(t, err, ErrEncoding)
			return
		}
		if e := c.Encode(1, page); !e.Raw { // what was decoded encodes again
			got := make([]byte, policy.PageSize)
			require.NoError(t, c.Decode(1, got, 0, e.Data))
			require.True(t, bytes.Equal(page, got))
		}
	})
}

// FuzzEncode checks that any page comes back.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("abcabcabcabc"), uint16(3))
	f.Add([]byte{0}, uint16(4000))
	f.Fuzz(func(t *testing.T, data []byte, at uint16) {
		page := make([]byte, policy.PageSize)
		copy(page[int(at)%len(page):], data)
		c := New(1)
		e := c.Encode(0, page)
		if e.Raw {
			return
		}
		got := make([]byte, policy.PageSize)
		require.NoError(t, c.Decode(0, got, 0, e.Data))
		require.True(t, bytes.Equal(page, got))
	})
}
