package metronome

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestOptionsString(t *testing.T) {
	require.Equal(t, "", Defaults().String())
	o := Defaults()
	o.Fill, o.WS, o.Rate, o.Beat = 1024, 512, 20000, 100*time.Millisecond
	o.Pattern = Pattern{Kind: Zipf, ZipfMilli: 990}
	o.Plant = []Plant{PlantStale, PlantTorn}
	require.Equal(t, "fill=1024 ws=512 rate=20000 beat=100 pattern=zipf:0.99 plant=stale,torn", o.String())
	require.NoError(t, o.Validate())
}

func TestParseOptionsErrors(t *testing.T) {
	for line, want := range map[string]string{
		"fil=3":                      `"fil": unknown option`,
		"quiet":                      `"quiet": unknown option`,
		"rate=fast":                  `rate="fast": not a number`,
		"rate=-1":                    `rate="-1": not a number`,
		"rate=99999999999999999999":  "not a number",
		"rate=2000000000":            "rate=2000000000: out of range",
		"bytes=12":                   "bytes=12: must be a multiple of 8",
		"bytes=0":                    "bytes=0: out of range",
		"vcpus=0":                    "vcpus=0: out of range",
		"vcpus=33":                   "vcpus=33: out of range",
		"tsc_khz=0":                  "tsc_khz=0: out of range",
		"mem=0":                      "mem=0: out of range",
		"beat=1":                     "beat=1ms",
		"beat=x":                     `beat="x": not a number`,
		"beat=99999999999":           "beat=",
		"reads=101":                  "reads=101: out of range",
		"pattern=":                   "pattern=",
		"pattern=uniform:1":          "pattern=",
		"pattern=hotspot":            "pattern=",
		"pattern=hotspot:90":         "pattern=",
		"pattern=hotspot:90/0":       "pattern=",
		"pattern=hotspot:101/10":     "pattern=",
		"pattern=hotspot:90/10/1":    "pattern=",
		"pattern=zipf:":              "pattern=",
		"pattern=zipf:0":             "pattern=",
		"pattern=zipf:4.001":         "pattern=",
		"pattern=zipf:1.":            "pattern=",
		"pattern=zipf:0.1234":        "pattern=",
		"ws=1 plant=":                "plant=",
		"ws=1 plant=zero,":           "plant=",
		"plant=zero":                 "needs a working set",
		string(make([]byte, 1<<16)):  "at most 4095",
		"pattern=zipf:0.99.1 fill=1": "pattern=",
		"io=":                        "must be blk",
		"io=disk":                    "must be blk",
		"io=blk,":                    `"": must be blk`,
		"io=blk,8":                   `"8": must be blk`,
		"io=blk,6k":                  "power of two",
		"io=blk,2k":                  "power of two",
		"io=blk,2048k":               "power of two",
		"io=blk,depth=0":             `"depth=0"`,
		"io=blk,depth=129":           `"depth=129"`,
		"io=blk,queues=9":            `"queues=9"`,
		"io=blk,span=0":              `"span=0"`,
		"io=blk,flush=":              `"flush="`,
		"io=blk,erase":               `"erase"`,
		"io=blk,4k=4k":               `"4k=4k"`,
		"io=net,":                    `"": must be`,
		"io=net,63":                  `"63": must be`,
		"io=net,1515":                `"1515": must be`,
		"io=net,depth=257":           `"depth=257"`,
		"io=net,rx,tso":              "tso goes with tx only",
	} {
		_, err := ParseOptions(line)
		require.ErrorContains(t, err, want, "%.40q", line)
	}
}

func TestParseOptionsSkipsOthers(t *testing.T) {
	o, err := ParseOptions("  virtio_mmio.device=512@0xfeb00000:5 fill=2  kernel.x plant=fault ")
	require.NoError(t, err)
	require.EqualValues(t, 2, o.Fill)
	require.Equal(t, []Plant{PlantFault}, o.Plant)
}

func patternGen() *rapid.Generator[Pattern] {
	return rapid.OneOf(
		rapid.SampledFrom([]Pattern{{Kind: Uniform}, {Kind: Sequential}}),
		rapid.Custom(func(t *rapid.T) Pattern {
			return Pattern{Kind: Hotspot, HotShare: rapid.IntRange(0, 100).Draw(t, "share"), HotPages: rapid.IntRange(1, 100).Draw(t, "pages")}
		}),
		rapid.Custom(func(t *rapid.T) Pattern {
			return Pattern{Kind: Zipf, ZipfMilli: rapid.IntRange(1, 4000).Draw(t, "s")}
		}),
	)
}

func blkGen() *rapid.Generator[BlkLoad] {
	return rapid.Custom(func(t *rapid.T) BlkLoad {
		b := BlkLoad{
			KiB:        4 << rapid.IntRange(0, 8).Draw(t, "size"),
			Mode:       rapid.SampledFrom([]BlkMode{BlkRead, BlkWrite, BlkMixed}).Draw(t, "mode"),
			Sequential: rapid.Bool().Draw(t, "sequential"),
			Prefill:    rapid.Bool().Draw(t, "prefill"),
		}
		for _, n := range blkNumbers {
			*n.at(&b) = rapid.Uint64Range(n.min, n.max).Draw(t, n.name)
		}
		return b
	})
}

func netGen() *rapid.Generator[NetLoad] {
	return rapid.Custom(func(t *rapid.T) NetLoad {
		n := NetLoad{
			Mode:  rapid.SampledFrom([]NetMode{NetTX, NetRX, NetEcho}).Draw(t, "mode"),
			Frame: rapid.Uint64Range(64, 1514).Draw(t, "frame"),
			Depth: rapid.Uint64Range(1, 256).Draw(t, "depth"),
		}
		n.TSO = n.Mode == NetTX && rapid.Bool().Draw(t, "tso")
		return n
	})
}

func TestBlkLoadString(t *testing.T) {
	o := Defaults()
	o.Blk = DefaultBlk()
	require.Equal(t, "io=blk,4k,depth=32,read", o.String())
	o.Blk.Mode, o.Blk.Flush, o.Blk.Span, o.Blk.Sequential, o.Blk.Prefill = BlkMixed, 100, 1024, true, true
	require.Equal(t, "io=blk,4k,depth=32,mixed,seq,span=1024,flush=100,prefill", o.String())
	got, err := ParseOptions("io=blk,span=5 io=blk")
	require.NoError(t, err)
	require.Equal(t, DefaultBlk(), got.Blk, "the last one counts, whole")
}

// What String writes, ParseOptions reads back.
func TestOptionsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Defaults()
		for _, n := range numbers {
			v := rapid.Uint64Range(n.min, n.max).Draw(t, n.name)
			*n.at(&o) = v - v%n.multiple
		}
		o.WS = max(o.WS, 1)
		o.Mem = rapid.Uint64Range(0, 1).Draw(t, "mem given") * max(o.Mem, 1)
		o.Beat = time.Duration(rapid.IntRange(10, 3600000).Draw(t, "beat")) * time.Millisecond
		o.Pattern = patternGen().Draw(t, "pattern")
		if list := rapid.SliceOfN(rapid.SampledFrom(plants), 0, 3).Draw(t, "plant"); len(list) > 0 {
			o.Plant = list
		}
		if rapid.Bool().Draw(t, "blk") {
			o.Blk = blkGen().Draw(t, "load")
		}
		if rapid.Bool().Draw(t, "net") {
			o.Net = netGen().Draw(t, "load")
		}
		got, err := ParseOptions(o.String())
		require.NoError(t, err)
		require.Equal(t, o, got)
	})
}

func FuzzParseOptions(f *testing.F) {
	f.Add("fill=1024 ws=512 rate=20000 pattern=zipf:0.99 plant=zero,torn")
	f.Add("io=blk,256k,depth=8,mixed,seq,flush=100,span=128,queues=2,prefill")
	f.Add("io=net,tx,tso,depth=16 io=net,echo,128")
	f.Add("pattern=hotspot:90/10 beat=100 a.b=c")
	f.Fuzz(func(t *testing.T, line string) {
		o, err := ParseOptions(line)
		if err != nil {
			return
		}
		again, err := ParseOptions(o.String())
		require.NoError(t, err)
		require.Equal(t, o, again)
	})
}
