package qcow2

import (
	"fmt"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// deflateWindow is what QEMU's inflate reaches back: it asks zlib for 12 bits.
const deflateWindow = 1 << 12

// Compressor compresses clusters for Writer.WriteCompressed. It is for one
// goroutine, and reused for cluster after cluster.
type Compressor struct {
	flate *flate.Writer
	zstd  *zstd.Encoder
	out   limited
}

// NewCompressor makes a compressor of the kind that an image was created with.
func NewCompressor(c Compression) (*Compressor, error) {
	z := &Compressor{}
	var err error
	switch c {
	case Zlib:
		// A bare deflate stream, without zlib's header (qcow2, Compressed
		// clusters).
		z.flate, err = flate.NewWriterWindow(&z.out, deflateWindow)
	case Zstd:
		z.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithLowerEncoderMem(true))
	default:
		err = fmt.Errorf("compress with %v: not known", c)
	}
	return z, err
}

// Compress appends the compressed cluster to dst. It says false, and dst is to
// be dropped, where that would not save anything.
func (z *Compressor) Compress(dst, cluster []byte) ([]byte, bool) {
	most := len(cluster) - 1
	if z.zstd != nil {
		out := z.zstd.EncodeAll(cluster, dst)
		return out, len(out)-len(dst) <= most
	}
	z.out = limited{b: dst, most: len(dst) + most}
	z.flate.Reset(&z.out)
	_, err := z.flate.Write(cluster)
	if err == nil {
		err = z.flate.Close()
	}
	out := z.out.b
	z.out.b = nil
	return out, err == nil
}

// limited stops a compressor that saves nothing.
type limited struct {
	b    []byte
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.b)+len(p) > l.most {
		return 0, errShort
	}
	l.b = append(l.b, p...)
	return len(p), nil
}
