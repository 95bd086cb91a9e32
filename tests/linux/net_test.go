package linux

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const bridgeName = "br0"

// neighbour is the peer as the test sees it.
type neighbour struct{ p *process }

// network makes the bridge, the peer's namespace and the veth pair between:
//
//	guest ── tap0 or tap1 ── br0 ── veth0 ═ peer0 ── peer, in a namespace of its own
func network(t testing.TB, rate int) *neighbour {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	require.NoError(t, netlink.LinkAdd(bridge))
	t.Cleanup(func() { require.NoError(t, netlink.LinkDel(bridge)) })
	require.NoError(t, netlink.LinkSetUp(bridge))

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), peerEnv+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	n := &neighbour{p: start(t, cmd)}
	if rate > 0 {
		_, err := prefer(cmd.Process.Pid, "")
		require.NoError(t, err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: peerLink, PeerNamespace: netlink.NsPid(cmd.Process.Pid)}
	require.NoError(t, netlink.LinkAdd(veth))
	require.NoError(t, netlink.LinkSetMaster(veth, bridge))
	require.NoError(t, netlink.LinkSetUp(veth))
	n.order(t, peerOrder{Rate: rate}, 1)
	return n
}

// order tells the peer something, the nth thing.
func (n *neighbour) order(t testing.TB, o peerOrder, nth int) {
	t.Helper()
	text, err := json.Marshal(o)
	require.NoError(t, err)
	n.p.typeLine(t, string(text))
	n.p.waitFor(t, "ready\n", nth)
}

func (n *neighbour) result(t testing.TB) peerResult {
	t.Helper()
	require.Equal(t, 0, n.p.exit(t), n.p.err)
	var r peerResult
	text := n.p.out.String()
	require.NoError(t, json.Unmarshal([]byte(text[strings.LastIndex(text, "ready\n")+6:]), &r))
	return r
}

// moment is one move as the stream has to survive it; times are CLOCK_MONOTONIC.
type moment struct {
	low        bool  // the least retransmission timeout is 5 ms
	start, end int64 // of godwit migrate
	downtime   float64
	total      float64
}

const (
	margin     = time.Second // of stream before a move and after it that belongs to its row
	stallBound = 100 * time.Millisecond
	lowRTO     = 5 // ms
)

// stall gives the longest time without progress that touches the window from a
// to b, of a direction.
func stall(samples []sample, a, b int64, of func(sample) uint64) time.Duration {
	var longest int64
	last := samples[0]
	for _, s := range samples[1:] {
		if of(s) == of(last) {
			continue
		}
		if s.T >= a && last.T <= b {
			longest = max(longest, s.T-last.T)
		}
		last = s
	}
	return time.Duration(longest)
}

// at gives the first sample not before a time.
func at(samples []sample, when int64) sample {
	i, _ := slices.BinarySearchFunc(samples, when, func(s sample, when int64) int { return cmp.Compare(s.T, when) })
	return samples[min(i, len(samples)-1)]
}

// rate gives the MB/s of a direction between a and b.
func rate(samples []sample, a, b int64, of func(sample) uint64) float64 {
	first, last := at(samples, a), at(samples, b)
	return float64(of(last)-of(first)) / 1e6 / (float64(last.T-first.T) / 1e9)
}

var streamDone = regexp.MustCompile(`stream done rx=(\d+) tx=(\d+) errors=(\d+) gap_ms=(\d+)`)

// TestConnectionSurvivesMoves: a TCP connection between the guest and a peer in
// another network namespace, bytes both ways with every one checked at both
// ends, survives moves back and forth between two taps of one bridge: first with
// the kernel's least retransmission timeout, then with a low one. The long form
// does it with full pipes, too, where the machine's own speed sets the stalls.
func TestConnectionSurvivesMoves(t *testing.T) {
	if os.Getenv(soakEnv) == "" {
		connectionSurvives(t, 128, 2, 2)
		return
	}
	for name, rate := range map[string]int{"paced": 128, "full": 0} {
		t.Run(name, func(t *testing.T) { connectionSurvives(t, rate, 5, 20) })
	}
}

// connectionSurvives moves a guest so often with the ordinary timeout and so often
// with the low one. rate is in KiB/s each way, 0 for as fast as it goes.
func connectionSurvives(t *testing.T, rate, ordinary, low int) {
	n := network(t, rate)
	disk := diskCopy(t)
	tr := startTrip(t, "--kernel", bzImagePath, "--disk", "path="+disk+",id=root", "--cpus", "1", "--memory", "128M",
		"--net", "tap=tap0,bridge="+bridgeName)
	// The lab's one processor is emulated, and guest and peer share it with all of the
	// migration. So it is held back, and where they leave it enough they come first.
	tr.how, tr.prefers = []string{"--bandwidth", "10MB/s"}, rate > 0
	tr.waitFor(t, up)
	if tr.prefers {
		preferVCPUs(tr.now)
	}
	tr.now.typeLine(t, "ip addr add "+guestAddr+netBits+" dev eth0 && ip link set eth0 up")
	tr.now.typeLine(t, fmt.Sprintf("stream to=%s port=%d rate=%d &", peerAddr, peerPort, rate))
	tr.waitFor(t, "stream at")

	var moves []moment
	for i := range ordinary + low {
		if i == ordinary {
			n.order(t, peerOrder{RTOMin: lowRTO}, 2)
			tr.now.typeLine(t, fmt.Sprintf("rtomin 10.77.0.0%s eth0 %d; echo rtomin=$?", netBits, lowRTO))
			tr.waitFor(t, "rtomin=0")
		}
		m := moment{low: i >= ordinary}
		measure := func() {
			time.Sleep(margin) // the stream before the move
			m.start = monotonic()
		}
		r := tr.move(t, measure, "--disk", "root="+disk, "--net", fmt.Sprintf("net0=tap%d,bridge=%s", (i+1)%2, bridgeName))
		m.end, m.downtime, m.total = monotonic(), r.DowntimeMS, r.TotalMS
		time.Sleep(margin) // and after it
		moves = append(moves, m)
	}
	tr.now.typeLine(t, "kill $(pidof stream)")
	tr.until(t, "the stream's end", streamDone.MatchString)
	done := streamDone.FindStringSubmatch(tr.console())
	result := n.result(t)
	text := tr.end(t)
	require.NotContains(t, text, "stream ERROR")
	require.Empty(t, result.Error)
	require.Equal(t, "0", done[3])
	require.Equal(t, []string{fmt.Sprint(result.TX), fmt.Sprint(result.RX)}, done[1:3], "what one end sent the other received")
	requireClean(t, disk)
	judgeMoves(t, result.Samples, moves)
}

// judgeMoves prints the table of all moves, and how many with the low timeout keep
// to the bound. It is a figure and no condition: how long a stream stalls is the
// machine's doing, too.
func judgeMoves(t testing.TB, samples []sample, moves []moment) {
	rx, tx := func(s sample) uint64 { return s.RX }, func(s sample) uint64 { return s.TX }
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	var table strings.Builder
	table.WriteString("\n| move | least timeout ms | total ms | downtime ms | stall ms: to peer, to guest | undisturbed | sent again |" +
		" MB/s to peer: before, during, after | to guest |\n|---|---|---|---|---|---|---|---|---|\n")
	kept, low := 0, 0
	for i, m := range moves {
		before, after := m.start-int64(margin), m.end+int64(margin)
		timeout := 200
		if m.low {
			timeout = lowRTO
		}
		quiet := max(stall(samples, before, m.start-1, rx), stall(samples, before, m.start-1, tx))
		toPeer, toGuest := stall(samples, m.start, after, rx), stall(samples, m.start, after, tx)
		fmt.Fprintf(&table, "| %d | %d | %.0f | %.1f | %.1f, %.1f | %.1f | %d |", i+1, timeout, m.total, m.downtime, ms(toPeer), ms(toGuest), ms(quiet),
			at(samples, after).Re-at(samples, m.start).Re)
		for _, of := range []func(sample) uint64{rx, tx} {
			fmt.Fprintf(&table, " %.2f, %.2f, %.2f |", rate(samples, before, m.start, of), rate(samples, m.start, m.end, of), rate(samples, m.end, after, of))
		}
		table.WriteString("\n")
		bound := time.Duration(m.downtime*1e6) + stallBound
		if m.low {
			low++
			if max(toPeer, toGuest) <= bound {
				kept++
			}
		}
	}
	t.Logf("%s%d of %d moves with a least timeout of %d ms stalled for at most the downtime and %v", &table, kept, low, lowRTO, stallBound)
}
