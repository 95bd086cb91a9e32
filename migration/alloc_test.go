package migration

import (
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
	"godwit/migration/wire"
)

// Sending allocates nothing in the steady state: zeros, runs and single pages, raw
// and through each codec, alone and with the help of idle processors, without a
// limit and with one, to a socket and to a connection that gathers pieces itself.
func TestSendingAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	mem := make([]byte, 2*chunkPages*pageSize)
	rng := rand.NewChaCha8([32]byte{1})
	var gfns []uint64
	for gfn := uint64(0); len(gfns) < chunkPages; gfn++ {
		if gfn%8 < 6 { // runs, and holes between them
			gfns = append(gfns, gfn)
			if gfn%8 > 0 { // the others are zero
				_, _ = rng.Read(mem[gfn*pageSize:][:pageSize])
			}
		}
	}
	ram, err := newRAM([]Region{{Bytes: mem}})
	require.NoError(t, err)
	pool := newPool()
	defer pool.close()
	for to, connect := range map[string]func(*testing.T) io.Writer{
		"nowhere": func(*testing.T) io.Writer { return io.Discard },
		"socket":  drained,
		"gather":  func(*testing.T) io.Writer { return swallowing{} },
	} {
		for _, name := range []string{"raw", "rle", "xbrle,cache=16M", "lz4", "auto,cache=16M"} {
			for _, limit := range []int64{0, 1e12} {
				codec, err := policy.Codecs.Parse(name)
				require.NoError(t, err)
				conn := connect(t)
				l := new(limiter)
				l.set(limit)
				p := newPageWriter(conn, wire.NewWriter(conn), ram, l, nil, nil, nil)
				if codec.ID() != 0 {
					p.coder = newCoder(codec, pool)
					p.gauge = newGauges(codec, l, 1).of(0)
				}
				send := func() {
					if p.coder != nil && limit > 0 {
						p.coder.perOne = 2 * worthSharing // as if it were slow
					}
					for _, gfn := range gfns {
						if gfn%8 > 0 {
							mem[gfn*pageSize+gfn]++
						}
					}
					if err := p.chunk(gfns); err != nil {
						t.Error(err)
					}
				}
				for range 20 { // until caches and buffers have their size
					send()
				}
				require.Zero(t, testing.AllocsPerRun(50, send), "%s to %s, limit %d", name, to, limit)
				require.NoError(t, closeCodec(codec))
			}
		}
	}
}

// drained is a TCP connection whose other end takes everything.
func drained(t *testing.T) io.Writer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	other, err := ln.Accept()
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sink := make([]byte, 1<<20); ; {
			if _, err := other.Read(sink); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		<-done
		require.NoError(t, other.Close())
	})
	return conn
}

// swallowing is a connection that takes pieces at once, as TLS does.
type swallowing struct{}

func (swallowing) Write(b []byte) (int, error) { return len(b), nil }

func (swallowing) WriteBuffers(v net.Buffers) (n int64, err error) {
	for _, b := range v {
		n += int64(len(b))
	}
	return n, nil
}
