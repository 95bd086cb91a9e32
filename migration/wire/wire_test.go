package wire_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/migration/wire"
)

// message is any message that can go both ways through bytes.
type message interface {
	Append([]byte) []byte
	Decode([]byte) error
}

func TestMessagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		streams := rapid.Uint8Range(1, wire.MaxStreams).Draw(t, "streams")
		lo := rapid.Uint16Range(1, 9).Draw(t, "version")
		id := rapid.StringN(0, -1, wire.MaxVMID).Draw(t, "id")
		u64 := rapid.Uint64()
		for _, m := range []struct{ in, out message }{
			{&wire.Hello{MinVersion: lo, MaxVersion: lo + 3, Role: wire.RoleData, Codec: 7, Stream: streams - 1, Streams: streams,
				PageSize: rapid.Uint32().Draw(t, "page"), Features: u64.Draw(t, "f"), Nonce: [16]byte{1, 2, 3}, VMID: id}, new(wire.Hello)},
			{&wire.Built{RestoreNS: u64.Draw(t, "restore")}, new(wire.Built)},
			{&wire.Round{N: rapid.Uint32Range(1, 1<<32-1).Draw(t, "n"), Pages: u64.Draw(t, "pages")}, new(wire.Round)},
			{&wire.Hash{Sum: [32]byte{9, 8}, Pages: u64.Draw(t, "hashed")}, new(wire.Hash)},
			{&wire.Prepare{Zero: u64.Draw(t, "z"), Data: u64.Draw(t, "d"), StateLen: u64.Draw(t, "l"), StateCRC: 5}, new(wire.Prepare)},
			{&wire.Ready{LeaseMS: 1, Zero: u64.Draw(t, "z"), Data: u64.Draw(t, "d")}, new(wire.Ready)},
			{&wire.Running{UnixNano: rapid.Int64().Draw(t, "ns"), PrepareNS: 1, RunNS: u64.Draw(t, "r")}, new(wire.Running)},
		} {
			b := m.in.Append(nil)
			require.NoError(t, m.out.Decode(b))
			require.Equal(t, m.in, m.out)
			require.ErrorIs(t, m.out.Decode(b[:len(b)-1]), wire.ErrFormat, "cut")
			require.ErrorIs(t, m.out.Decode(append(b, 0)), wire.ErrFormat, "trailing byte")
		}
		n, err := wire.DecodeAck(wire.AppendAck(nil, 77))
		require.NoError(t, err)
		require.EqualValues(t, 77, n)
	})
}

func TestExtentsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var es []wire.Extent
		var at uint64
		for range rapid.IntRange(0, 50).Draw(t, "n") {
			at += rapid.Uint64Range(0, 9).Draw(t, "gap") * wire.PageSize
			e := wire.Extent{GPA: at, Len: rapid.Uint64Range(1, 9).Draw(t, "len") * wire.PageSize}
			es, at = append(es, e), at+e.Len
		}
		got, err := wire.DecodeExtents(wire.AppendExtents(nil, es))
		require.NoError(t, err)
		require.Len(t, got, len(es))
		for i := range es {
			require.Equal(t, es[i], got[i])
		}
	})
}

func TestBadExtents(t *testing.T) {
	const p = wire.PageSize
	for name, es := range map[string][]wire.Extent{
		"empty":     {{GPA: p}},
		"unaligned": {{GPA: 1, Len: p}},
		"odd":       {{GPA: p, Len: 5}},
		"overlap":   {{GPA: 0, Len: 2 * p}, {GPA: p, Len: p}},
		"backwards": {{GPA: 4 * p, Len: p}, {GPA: 0, Len: p}},
		"overflow":  {{GPA: ^uint64(p - 1), Len: 2 * p}},
	} {
		_, err := wire.DecodeExtents(wire.AppendExtents(nil, es))
		require.ErrorIs(t, err, wire.ErrFormat, name)
	}
	_, err := wire.DecodeExtents(make([]byte, 15))
	require.ErrorIs(t, err, wire.ErrFormat)
}

// Frames survive any splitting of the stream, bulk included.
func TestFramesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var buf bytes.Buffer
		w := wire.NewWriter(&buf)
		hello := wire.Hello{MinVersion: 1, MaxVersion: 1, Role: wire.RoleControl, Streams: 1}
		require.NoError(t, w.Open(wire.TypeHello, hello.Append(nil)))
		n := rapid.IntRange(0, 20).Draw(t, "frames")
		data := bytes.Repeat([]byte("guest page"), 4096)
		for i := range n {
			if i%2 == 0 {
				require.NoError(t, w.Frame(wire.TypeState, wire.FlagLast, data[:i*100]))
				continue
			}
			pages := uint32(i%3 + 1)
			buf.Write(w.Append(nil, wire.TypeRaw, 0, wire.AppendRun(nil, wire.Run{GPA: 4096, Pages: pages}), pages*wire.PageSize))
			buf.Write(data[:pages*wire.PageSize])
		}
		var from io.Reader = &buf
		if rapid.Bool().Draw(t, "dribble") {
			from = iotest.HalfReader(from)
		}
		r := wire.NewReader(from)
		require.NoError(t, r.Preamble())
		_, err := r.Next()
		require.NoError(t, err)
		for i := range n {
			f, err := r.Next()
			require.NoError(t, err)
			if i%2 == 0 {
				require.Equal(t, data[:i*100], f.Body)
				require.True(t, f.Last())
				continue
			}
			runs, pages, err := wire.DecodeRuns(&f)
			require.NoError(t, err)
			require.EqualValues(t, i%3+1, pages)
			require.Equal(t, 1, runs.Len())
			page := make([]byte, f.Bulk)
			require.NoError(t, r.Bulk(page))
			require.Equal(t, data[:len(page)], page)
		}
		_, err = r.Next()
		require.ErrorIs(t, err, io.EOF)
	})
}

// Any single changed byte of a header or body is noticed.
func TestEveryByteIsChecked(t *testing.T) {
	var buf bytes.Buffer
	r := wire.Round{N: 3, Pages: 17}
	require.NoError(t, wire.NewWriter(&buf).Frame(wire.TypeRound, 0, r.Append(nil)))
	for i := range buf.Len() {
		for _, x := range []byte{1, 0x80, 0xff} {
			bad := bytes.Clone(buf.Bytes())
			bad[i] ^= x
			_, err := wire.NewReader(bytes.NewReader(bad)).Next()
			require.ErrorIs(t, err, wire.ErrFormat, "byte %d", i)
		}
	}
	for i := range buf.Len() {
		_, err := wire.NewReader(bytes.NewReader(buf.Bytes()[:i])).Next()
		if i == 0 {
			require.ErrorIs(t, err, io.EOF)
			continue
		}
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "cut to %d", i)
	}
}

func TestReaderStaysFailed(t *testing.T) {
	r := wire.NewReader(strings.NewReader("GODWIT is a bird"))
	require.ErrorIs(t, r.Preamble(), wire.ErrNotGodwit)
	_, err := r.Next()
	require.ErrorIs(t, err, wire.ErrNotGodwit)
	require.ErrorIs(t, r.Bulk(make([]byte, 1)), wire.ErrNotGodwit)
}

func TestUnreadBulkIsNoticed(t *testing.T) {
	w := wire.NewWriter(io.Discard)
	b := append(w.Append(nil, wire.TypeRaw, 0, wire.AppendRun(nil, wire.Run{Pages: 1}), 4096), make([]byte, 4096)...)
	r := wire.NewReader(bytes.NewReader(b))
	_, err := r.Next()
	require.NoError(t, err)
	_, err = r.Next()
	require.ErrorContains(t, err, "not consumed")
	r = wire.NewReader(bytes.NewReader(b))
	_, err = r.Next()
	require.NoError(t, err)
	require.ErrorIs(t, r.Bulk(make([]byte, 4097)), wire.ErrFormat)
}

func TestCodedRoundTrip(t *testing.T) {
	cs := []wire.Coded{{GPA: 4096, Base: 7, Len: 5, Codec: 1}, {GPA: 0, Len: 4095, Codec: 255}, {GPA: 8192, Base: 9, Codec: 2}}
	var body []byte
	for _, c := range cs {
		body = wire.AppendCoded(body, c)
	}
	got, err := wire.DecodeCoded(&wire.Frame{Type: wire.TypeCodec, Body: body, Bulk: 4100})
	require.NoError(t, err)
	require.Equal(t, 3, got.Len())
	for i, c := range cs {
		require.Equal(t, c, got.At(i))
	}
	for _, bad := range []wire.Coded{{GPA: 1, Len: 1, Codec: 1}, {Len: 4096, Codec: 1}, {Len: 1}} {
		_, err := wire.DecodeCoded(&wire.Frame{Body: wire.AppendCoded(nil, bad), Bulk: uint32(bad.Len)})
		require.ErrorIs(t, err, wire.ErrFormat)
	}
	_, err = wire.DecodeCoded(&wire.Frame{Body: body, Bulk: 4101})
	require.ErrorIs(t, err, wire.ErrFormat)
}

// Text from a stranger reaches a terminal without its control codes.
func TestTextIsSafe(t *testing.T) {
	require.Equal(t, "a?[31m?b\n?", wire.DecodeText([]byte("a\x1b[31m\u009bb\n\xff")))
	require.Len(t, wire.AppendText(nil, strings.Repeat("x", 2*wire.MaxText)), wire.MaxText)
	require.Len(t, wire.DecodeText(bytes.Repeat([]byte("x"), 2*wire.MaxText)), wire.MaxText)
}

// A header that passes its checksum is still held to its type's limits.
func FuzzDecodeFrame(f *testing.F) {
	var buf bytes.Buffer
	w := wire.NewWriter(&buf)
	h := wire.Hello{MinVersion: 1, MaxVersion: 1, Role: wire.RoleControl, Streams: 1, VMID: "vm"}
	_ = w.Open(wire.TypeHello, h.Append(nil)) // a buffer takes everything
	f.Add(buf.Bytes()[len(wire.Preamble):])
	raw := w.Append(nil, wire.TypeRaw, 0, wire.AppendRun(nil, wire.Run{GPA: 4096, Pages: 1}), 4096)
	f.Add(append(raw, make([]byte, 4096)...))
	f.Add(w.Append(nil, wire.TypeExtents, wire.FlagLast, wire.AppendExtents(nil, []wire.Extent{{GPA: 0, Len: 4096}}), 0))
	f.Add(w.Append(nil, wire.TypeCodec, 0, wire.AppendCoded(nil, wire.Coded{Len: 4, Codec: 1}), 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := wire.NewReader(bytes.NewReader(b))
		for {
			fr, err := r.Next()
			if err != nil {
				if !errors.Is(err, wire.ErrFormat) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("unexpected error %v", err)
				}
				return
			}
			decodeAll(&fr)
			if r.Bulk(make([]byte, fr.Bulk)) != nil {
				return
			}
		}
	})
}

// FuzzDecodeBody feeds every decoder with bytes that no checksum has sorted out.
func FuzzDecodeBody(f *testing.F) {
	f.Add(uint32(4096), wire.AppendRun(nil, wire.Run{GPA: 4096, Pages: 1}))
	f.Add(uint32(0), make([]byte, 41))
	f.Fuzz(func(t *testing.T, bulk uint32, b []byte) {
		for typ := wire.TypeHello; typ <= wire.TypeMemfd; typ++ {
			decodeAll(&wire.Frame{Type: typ, Body: b, Bulk: bulk})
		}
	})
}

func decodeAll(f *wire.Frame) {
	if runs, n, err := wire.DecodeRuns(f); err == nil {
		var sum uint64
		for i := range runs.Len() {
			sum += uint64(runs.At(i).Pages)
		}
		if sum != n {
			panic("run count")
		}
	}
	_, _ = wire.DecodeCoded(f)
	_, _ = wire.DecodeExtents(f.Body)
	_, _ = wire.DecodeAck(f.Body)
	_ = wire.DecodeText(f.Body)
	for _, m := range []message{new(wire.Hello), new(wire.Built), new(wire.Round), new(wire.Hash), new(wire.Prepare), new(wire.Ready), new(wire.Running)} {
		if m.Decode(f.Body) == nil && !bytes.Equal(m.Append(nil), f.Body) {
			panic("a message that decodes must encode to the same bytes")
		}
	}
}

func BenchmarkFraming(b *testing.B) {
	body := wire.AppendRun(nil, wire.Run{GPA: 1 << 20, Pages: 256})
	w := wire.NewWriter(io.Discard)
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = w.Append(dst[:0], wire.TypeRaw, 0, body, 256*wire.PageSize)
	}
}

func BenchmarkReading(b *testing.B) {
	w := wire.NewWriter(io.Discard)
	frame := append(w.Append(nil, wire.TypeRaw, 0, wire.AppendRun(nil, wire.Run{Pages: 256}), 1<<20), make([]byte, 1<<20)...)
	page := make([]byte, 1<<20)
	src := &endless{w: w, frame: frame}
	r := wire.NewReader(src)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		f, err := r.Next()
		if err == nil {
			_, _, err = wire.DecodeRuns(&f)
		}
		if err == nil {
			err = r.Bulk(page)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// endless repeats one frame with the right sequence numbers.
type endless struct {
	w     *wire.Writer
	frame []byte
	head  []byte
	off   int
	body  [16]byte
	next  bool
}

func (e *endless) Read(p []byte) (int, error) {
	if e.off == len(e.frame) {
		e.off = 0
	}
	if e.off == 0 && e.next {
		e.head = e.w.Append(e.head[:0], wire.TypeRaw, 0, wire.AppendRun(e.body[:0], wire.Run{Pages: 256}), 1<<20)
		copy(e.frame, e.head)
	}
	e.next = true
	n := copy(p, e.frame[e.off:])
	e.off += n
	return n, nil
}
