package sim_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/api"
	"godwit/migration"
	"godwit/migration/sim"
	"godwit/tests/certs"
)

// BenchmarkLoopback moves 1 GiB of incompressible memory over TCP on loopback.
// Both ends are warm: memory was mapped and freed just before.
func BenchmarkLoopback(b *testing.B) {
	for _, streams := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			moveOften(b, 1<<30, 1<<30, nil, migration.SendOptions{Streams: streams})
		})
	}
}

// BenchmarkLoopbackTLS is the same with TLS 1.3.
func BenchmarkLoopbackTLS(b *testing.B) {
	ca := certs.NewCA(b, "ca")
	cert, key := ca.Sign("both", certs.Leaf{})
	secure, err := api.TLSFiles{Cert: cert, Key: key, CA: ca.File}.Load(api.Address{Network: "tcp", Target: "127.0.0.1:1"})
	require.NoError(b, err)
	for _, streams := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			moveOften(b, 1<<30, 1<<30, secure, migration.SendOptions{Streams: streams})
		})
	}
}

// BenchmarkIdle moves 8 GiB of which 4 MiB were ever touched.
func BenchmarkIdle(b *testing.B) {
	moveOften(b, 8<<30, 4<<20, nil, migration.SendOptions{})
}

func moveOften(b *testing.B, size, filled uint64, secure *api.TLS, o migration.SendOptions) {
	b.SetBytes(int64(filled))
	var downtime, total float64
	for b.Loop() {
		b.StopTimer()
		w := sim.NewWorld()
		src, err := sim.NewMachine(w, migration.Extent{GPA: 0, Len: size})
		require.NoError(b, err)
		rng := rand.NewChaCha8([32]byte{1})
		for gpa := uint64(0); gpa < filled; gpa += 4096 {
			src.Write(gpa, func(p []byte) { _, _ = rng.Read(p) })
		}
		ln, err := api.Address{Network: "tcp", Target: "127.0.0.1:0"}.Listen(secure)
		require.NoError(b, err)
		host := sim.NewHost(w)
		warm, err := unix.Mmap(-1, 0, int(filled), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		require.NoError(b, err)
		require.NoError(b, unix.Munmap(warm))
		dial := func(ctx context.Context) (net.Conn, error) {
			return api.Address{Network: "tcp", Target: ln.Addr().String()}.Dial(ctx, secure)
		}
		done := make(chan error, 1)
		go func() {
			_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(ln), host.Build, migration.ReceiveOptions{})
			done <- err
		}()
		b.StartTimer()
		rep, err := migration.Send(context.Background(), src, dial, o)
		b.StopTimer()
		require.NoError(b, err)
		require.NoError(b, <-done)
		downtime += rep.DowntimeMS
		total += rep.TotalMS
		require.NoError(b, host.Target().Close())
		require.NoError(b, src.Close())
		ln.Close()
		b.StartTimer()
	}
	b.ReportMetric(downtime/float64(b.N), "downtime-ms")
	b.ReportMetric(total/float64(b.N), "total-ms")
}
