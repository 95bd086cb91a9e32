package qcow2

import (
	"bytes"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds what a zstd frame may ask for, in bytes. Encoders ask for no
// more than the cluster that they were given.
const maxWindow = 4 << maxClusterBits

// decoders keeps what decompresses, to use it again.
type decoders struct {
	flate, zstd sync.Pool
}

type inflater struct {
	r   bytes.Reader
	dec io.ReadCloser
}

type unzstd struct {
	r   bytes.Reader
	dec *zstd.Decoder
}

// decompress fills dst from src. What follows in src is not looked at: the
// sectors of a compressed cluster may hold the beginning of the next.
func (d *decoders) decompress(c Compression, dst, src []byte) error {
	if c == Zstd {
		return d.decompressZstd(dst, src)
	}
	f, _ := d.flate.Get().(*inflater)
	if f == nil {
		f = new(inflater)
		f.dec = flate.NewReader(&f.r)
	}
	defer d.flate.Put(f)
	f.r.Reset(src)
	// zlib in the name, a bare deflate stream in the file.
	if err := f.dec.(flate.Resetter).Reset(&f.r, nil); err != nil {
		return err
	}
	return fill(dst, f.dec)
}

func (d *decoders) decompressZstd(dst, src []byte) error {
	z, _ := d.zstd.Get().(*unzstd)
	if z == nil {
		z = new(unzstd)
		var err error
		// One frame at a time and no goroutines, so that it can be forgotten.
		if z.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow)); err != nil {
			return err
		}
	}
	defer d.zstd.Put(z)
	z.r.Reset(src)
	if err := z.dec.Reset(&z.r); err != nil {
		return err
	}
	return fill(dst, z.dec)
}

// fill reads until dst is full. The input is bounded, so that the work is too.
func fill(dst []byte, r io.Reader) error {
	_, err := io.ReadFull(r, dst)
	if err == io.EOF {
		return errShort
	}
	return err
}
