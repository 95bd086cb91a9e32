package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"os"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// blob is a Saver whose state is one byte string.
type blob struct {
	id      string
	version uint32
	data    []byte
	fails   error
	lazy    bool // restores without reading
}

func (b *blob) StateID() string      { return b.id }
func (b *blob) StateVersion() uint32 { return b.version }
func (b *blob) Save(e *Encoder) error {
	e.Raw(b.data)
	return b.fails
}

func (b *blob) Restore(_ uint32, d *Decoder) error {
	if b.lazy {
		return b.fails
	}
	b.data = make([]byte, d.Remaining())
	d.Raw(b.data)
	return errors.Join(b.fails, d.Err())
}

func stream(t testing.TB, savers ...*blob) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for _, s := range savers {
		require.NoError(t, w.WriteSaver(s))
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// frame builds a section by hand, right checksum included.
func frame(id string, version uint32, length uint32, data string) []byte {
	f := append([]byte{byte(len(id))}, id...)
	f = binary.LittleEndian.AppendUint32(f, version)
	f = binary.LittleEndian.AppendUint32(f, length)
	f = append(f, data...)
	return binary.LittleEndian.AppendUint32(f, crc32.Checksum(f, castagnoli))
}

func TestFormatIsFixed(t *testing.T) {
	got := stream(t, &blob{id: "a/b-1.c", version: 7, data: []byte("xyz")})
	want := append([]byte("\x89GODWIT\n\x01\x00\x00\x00"), frame("a/b-1.c", 7, 3, "xyz")...)
	want = append(want, 0)
	require.Equal(t, want, got)
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		data := rapid.MapOf(rapid.StringMatching(`[a-z0-9./-]{1,64}`), rapid.SliceOfN(rapid.Byte(), 0, 2000)).Draw(rt, "sections")
		var buf bytes.Buffer
		w := NewWriter(&buf)
		for id, d := range data {
			require.NoError(rt, w.WriteSaver(&blob{id: id, version: 1, data: d}))
		}
		require.NoError(rt, w.Close())
		require.NoError(rt, w.Close(), "closing twice is fine")
		buf.WriteString("what follows")

		s, err := Read(iotest.HalfReader(&buf), DefaultLimits)
		require.NoError(rt, err)
		require.Equal(rt, "what follows", buf.String(), "nothing after the end mark is taken")
		for id, d := range data {
			got := &blob{id: id, version: 2}
			require.NoError(rt, s.Restore(got))
			require.True(rt, bytes.Equal(d, got.data))
		}
		require.NoError(rt, s.Done())
	})
}

func TestFieldsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e Encoder
		var reads []func(d *Decoder)
		for range rapid.IntRange(0, 30).Draw(t, "fields") {
			switch rapid.IntRange(0, 7).Draw(t, "kind") {
			case 0:
				v := rapid.Uint8().Draw(t, "u8")
				e.U8(v)
				reads = append(reads, func(d *Decoder) { require.Equal(t, v, d.U8()) })
			case 1:
				v := rapid.Uint16().Draw(t, "u16")
				e.U16(v)
				reads = append(reads, func(d *Decoder) { require.Equal(t, v, d.U16()) })
			case 2:
				v := rapid.Uint32().Draw(t, "u32")
				e.U32(v)
				reads = append(reads, func(d *Decoder) { require.Equal(t, v, d.U32()) })
			case 3:
				v := rapid.Uint64().Draw(t, "u64")
				e.U64(v)
				reads = append(reads, func(d *Decoder) { require.Equal(t, v, d.U64()) })
			case 4:
				v := rapid.Bool().Draw(t, "bool")
				e.Bool(v)
				reads = append(reads, func(d *Decoder) { require.Equal(t, v, d.Bool()) })
			case 5:
				v := rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
				e.Bytes(v)
				reads = append(reads, func(d *Decoder) { require.True(t, bytes.Equal(v, d.Bytes(len(v)))) })
			case 6:
				v := rapid.String().Draw(t, "string")
				e.String(v)
				reads = append(reads, func(d *Decoder) { require.Equal(t, v, d.String(len(v))) })
			case 7:
				v := rapid.SliceOf(rapid.Byte()).Draw(t, "raw")
				e.Raw(v)
				reads = append(reads, func(d *Decoder) {
					got := make([]byte, len(v))
					d.Raw(got)
					require.True(t, bytes.Equal(v, got))
				})
			}
		}
		d := NewDecoder(e.Data())
		for _, read := range reads {
			read(d)
		}
		require.NoError(t, d.Finish())
	})
}

func TestDecoderErrorsStick(t *testing.T) {
	for _, tc := range []struct {
		name string
		data string
		read func(d *Decoder)
		says string
	}{
		{"short u16", "\x01", func(d *Decoder) { d.U16() }, "2 bytes wanted at offset 0 of 1"},
		{"short u32", "\x01\x02\x03", func(d *Decoder) { d.U32() }, "4 bytes"},
		{"short u64", "\x01", func(d *Decoder) { d.U64() }, "8 bytes"},
		{"bool", "\x02", func(d *Decoder) { d.Bool() }, "boolean at offset 0 is 2"},
		{"bytes over max", "\x05\x00\x00\x00abcde", func(d *Decoder) { d.Bytes(4) }, "length 5 at offset 0, at most 4"},
		{"bytes over data", "\xff\xff\xff\xffa", func(d *Decoder) { d.Bytes(math.MaxInt) }, "4294967295 bytes wanted"},
		{"string over max", "\x05\x00\x00\x00abcde", func(d *Decoder) { d.String(0) }, "length 5"},
		{"raw", "ab", func(d *Decoder) { d.Raw(make([]byte, 3)) }, "3 bytes"},
		{"the caller's", "ab", func(d *Decoder) { d.Fail("index %d", 9) }, "index 9"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := NewDecoder([]byte(tc.data))
			tc.read(d)
			first := d.Err()
			require.ErrorIs(t, first, ErrFormat)
			require.ErrorContains(t, first, tc.says)
			raw := []byte{1, 2}
			d.Raw(raw)
			d.Fail("too late")
			require.Equal(t, []byte{0, 0}, raw)
			require.Zero(t, d.U8())
			require.Zero(t, d.U64())
			require.False(t, d.Bool())
			require.Nil(t, d.Bytes(9))
			require.Empty(t, d.String(9))
			require.Zero(t, d.Remaining())
			require.Equal(t, first, d.Err())
			require.Equal(t, first, d.Finish())
		})
	}
	d := NewDecoder([]byte("abc"))
	d.U8()
	require.ErrorContains(t, d.Finish(), "2 bytes left over")
}

func TestReadRejects(t *testing.T) {
	header := "\x89GODWIT\n\x01\x00\x00\x00"
	good := string(frame("a", 1, 1, "x"))
	flipped := []byte(good)
	flipped[len(flipped)-5] ^= 1
	small := Limits{Total: 100, Section: 50, Sections: 2}
	for _, tc := range []struct {
		name string
		in   string
		is   error
		says string
	}{
		{"empty", "", ErrFormat, "cut short"},
		{"not ours", "GET / HTTP/1.1\r\n\r\n", ErrFormat, "not a saved godwit machine"},
		{"framing version", "\x89GODWIT\n\x02\x00\x00\x00", ErrVersion, "framing version 2"},
		{"no end mark", header + good, ErrFormat, "cut short"},
		{"id too long", header + "\x41" + string(make([]byte, 80)), ErrFormat, "65 bytes"},
		{"upper case", header + string(frame("A", 1, 0, "")), ErrID, `"A"`},
		{"version 0", header + string(frame("a", 0, 0, "")), ErrVersion, "version 0"},
		{"twice", header + good + good, ErrID, `"a" comes twice`},
		{"bit flip", header + string(flipped), ErrFormat, "checksum"},
		{"huge length", header + string(frame("a", 1, math.MaxUint32, "x")), ErrLimit, "4294967295"},
		{"over total", header + string(frame("a", 1, 50, string(make([]byte, 50)))) + string(frame("b", 1, 30, "")), ErrLimit, "more than 100"},
		{"too many", header + good + string(frame("b", 1, 0, "")) + string(frame("c", 1, 0, "")), ErrLimit, "more than 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := Read(bytes.NewReader([]byte(tc.in)), small)
			require.Nil(t, s)
			require.ErrorIs(t, err, tc.is)
			require.ErrorContains(t, err, tc.says)
		})
	}
	_, err := Read(bytes.NewReader(nil), Limits{})
	require.ErrorIs(t, err, ErrLimit)
	boom := errors.New("boom")
	_, err = Read(iotest.ErrReader(boom), small)
	require.ErrorIs(t, err, boom)
}

// Every way of cutting a stream or flipping one of its bits is noticed, if not
// by Read then by Restore or Done.
func TestDamageIsNoticed(t *testing.T) {
	whole := stream(t, &blob{id: "cpu/0", version: 3, data: []byte("registers")}, &blob{id: "rtc", version: 1})
	restore := func(p []byte) error {
		s, err := Read(bytes.NewReader(p), DefaultLimits)
		if err != nil {
			return err
		}
		return errors.Join(s.Restore(&blob{id: "cpu/0", version: 3}), s.Restore(&blob{id: "rtc", version: 1}), s.Done())
	}
	require.NoError(t, restore(whole))
	for n := range whole {
		require.Error(t, restore(whole[:n]), "cut to %d bytes", n)
		for bit := range 8 {
			p := bytes.Clone(whole)
			p[n] ^= 1 << bit
			require.Error(t, restore(p), "bit %d of byte %d", bit, n)
		}
	}
}

// A stream that fits Total exactly is read; the same limits hold for writing.
func TestTotalIsExact(t *testing.T) {
	p := stream(t, &blob{id: "a", version: 1, data: make([]byte, 10)})
	l := Limits{Total: int64(len(p)), Section: 10, Sections: 1}
	_, err := Read(bytes.NewReader(p), l)
	require.NoError(t, err)
	l.Total--
	_, err = Read(bytes.NewReader(p), l)
	require.ErrorIs(t, err, ErrLimit)
}

func TestWriterRejects(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name string
		s    *blob
		is   error
	}{
		{"no id", &blob{version: 1}, ErrID},
		{"space in id", &blob{id: "a b", version: 1}, ErrID},
		{"long id", &blob{id: string(bytes.Repeat([]byte("x"), 65)), version: 1}, ErrID},
		{"duplicate", &blob{id: "first", version: 1}, ErrID},
		{"version 0", &blob{id: "a"}, ErrVersion},
		{"too large", &blob{id: "a", version: 1, data: make([]byte, DefaultLimits.Section+1)}, ErrLimit},
		{"its own error", &blob{id: "a", version: 1, fails: boom}, boom},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := NewWriter(io.Discard)
			require.NoError(t, w.WriteSaver(&blob{id: "first", version: 1}))
			err := w.WriteSaver(tc.s)
			require.ErrorIs(t, err, tc.is)
			require.Equal(t, err, w.WriteSaver(&blob{id: "later", version: 1}), "the error sticks")
			require.Equal(t, err, w.Close())
		})
	}
	w := NewWriter(io.Discard)
	require.NoError(t, w.Close())
	require.ErrorContains(t, w.WriteSaver(&blob{id: "a", version: 1}), "closed")

	w = NewWriter(failingWriter{})
	require.ErrorIs(t, w.WriteSaver(&blob{id: "a", version: 1}), os.ErrClosed)
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestRestoreRejects(t *testing.T) {
	boom := errors.New("boom")
	p := stream(t, &blob{id: "a", version: 2, data: []byte("xy")}, &blob{id: "b", version: 1}, &blob{id: "c", version: 1})
	for _, tc := range []struct {
		name string
		into *blob
		is   error
	}{
		{"missing", &blob{id: "nobody", version: 1}, ErrMissing},
		{"newer", &blob{id: "a", version: 1}, ErrVersion},
		{"left over", &blob{id: "a", version: 2, lazy: true}, ErrFormat},
		{"its own error", &blob{id: "a", version: 2, fails: boom}, boom},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := Read(bytes.NewReader(p), DefaultLimits)
			require.NoError(t, err)
			err = s.Restore(tc.into)
			require.ErrorIs(t, err, tc.is)
			require.ErrorContains(t, err, tc.into.id)
			err = s.Done()
			require.ErrorIs(t, err, ErrUnclaimed)
			require.ErrorContains(t, err, `"b" "c"`)
		})
	}
	s, err := Read(bytes.NewReader(p), DefaultLimits)
	require.NoError(t, err)
	require.NoError(t, s.Restore(&blob{id: "a", version: 2}))
	require.ErrorIs(t, s.Restore(&blob{id: "a", version: 2}), ErrMissing, "a section is restored once")
}

// A lying length must not make the reader allocate what never arrives.
func TestLengthAloneAllocatesLittle(t *testing.T) {
	p := append([]byte("\x89GODWIT\n\x01\x00\x00\x00"), frame("a", 1, 16<<20, "")...)
	bytesPerRead := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, err := Read(bytes.NewReader(p), DefaultLimits); err == nil {
				b.Fatal("accepted")
			}
		}
	}).AllocedBytesPerOp()
	require.Less(t, bytesPerRead, int64(64<<10))
}

func FuzzRead(f *testing.F) {
	f.Add(stream(f))
	f.Add(stream(f, &blob{id: "a", version: 1, data: []byte("hello")}, &blob{id: "b/0", version: 9}))
	f.Add(append([]byte("\x89GODWIT\n\x01\x00\x00\x00"), frame("a", 1, math.MaxUint32, "x")...))
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := Read(bytes.NewReader(p), Limits{Total: 1 << 16, Section: 1 << 12, Sections: 16})
		if err != nil {
			return
		}
		// What was accepted says exactly what its bytes say: writing it again
		// gives a stream of the same length.
		var buf bytes.Buffer
		w := NewWriter(&buf)
		for id, sec := range s.byID {
			require.NoError(t, w.WriteSaver(&blob{id: id, version: sec.version, data: sec.data}))
		}
		require.NoError(t, w.Close())
		require.LessOrEqual(t, buf.Len(), len(p))
	})
}

func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7}, []byte("\x01\x02\x03\x03\x00\x00\x00abc"))
	f.Fuzz(func(t *testing.T, program, data []byte) {
		d := NewDecoder(data)
		for _, op := range program {
			before := d.Remaining()
			switch op % 8 {
			case 0:
				d.U8()
			case 1:
				d.U16()
			case 2:
				d.U32()
			case 3:
				d.U64()
			case 4:
				d.Bool()
			case 5:
				require.LessOrEqual(t, len(d.Bytes(int(op))), int(op))
			case 6:
				require.LessOrEqual(t, len(d.String(int(op))), int(op))
			case 7:
				d.Raw(make([]byte, op))
			}
			require.LessOrEqual(t, d.Remaining(), before)
		}
		_ = d.Finish()
	})
}
