package vmm

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration"
)

// BenchmarkMove moves the metronome to another machine in this process, over
// loopback. Compare two builds by running them in turn.
func BenchmarkMove(b *testing.B) {
	for _, c := range []struct {
		name    string
		mib     int
		args    string
		streams int
	}{
		{"idle-8GiB", 8192, "fill=1 ws=1 rate=0 sample=0 beat=100", 2},
		{"fill-1GiB", 2048, "fill=1024 ws=512 rate=20000 sample=0 beat=100", 2},
	} {
		b.Run(c.name, func(b *testing.B) {
			var total, down, setup, wire, rounds float64
			best := math.Inf(1) // the machine's other work spoils means
			for b.Loop() {
				b.StopTimer()
				cfg := metronomeConfig(c.args)
				cfg.Machine.MemSizeMiB = c.mib
				m, out := start(b, cfg)
				lastBeat(b, out, 2)
				b.StartTimer()
				next, rep := move(b, m, migration.SendOptions{Streams: c.streams}, out)
				b.StopTimer()
				lastBeat(b, out, 1)
				require.NoError(b, next.Close())
				require.NoError(b, m.Close())
				total, down, setup = total+rep.TotalMS, down+rep.DowntimeMS, setup+rep.SetupMS
				best = min(best, rep.TotalMS)
				wire, rounds = wire+float64(rep.WireBytes), rounds+float64(len(rep.Rounds))
				b.StartTimer()
			}
			n := float64(b.N)
			b.ReportMetric(total/n, "total-ms")
			b.ReportMetric(best, "best-ms")
			b.ReportMetric(down/n, "down-ms")
			b.ReportMetric(setup/n, "setup-ms")
			b.ReportMetric(wire/n/1e6, "wire-MB")
			b.ReportMetric(rounds/n, "rounds")
			b.ReportMetric(0, "ns/op")
		})
	}
}
