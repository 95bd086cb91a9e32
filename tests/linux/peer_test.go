package linux

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peerEnv makes this test program the peer of a guest's stream instead: in a
// network namespace of its own, at the far end of a veth pair.
const peerEnv = "GODWIT_LINUX_PEER"

// The network of the test: peer and guest are neighbours behind one bridge.
const (
	peerLink  = "peer0" // the peer's end of the veth pair
	peerAddr  = "10.77.0.1"
	guestAddr = "10.77.0.2"
	netBits   = "/24"
	peerPort  = 7000
)

// peerOrder is what the peer is told on its input: once when its link is there,
// and at any time later. It says "ready" when it has done so.
type peerOrder struct {
	RTOMin int `json:"rto_min"` // ms, 0 for the kernel's own
	Rate   int `json:"rate"`    // KiB/s to send, 0 for as fast as it goes; the first order's counts
}

// sample is the state of the stream at a time, taken at least every few
// milliseconds.
type sample struct {
	T  int64  `json:"t"`  // CLOCK_MONOTONIC, ns: one clock for all processes of the machine
	RX uint64 `json:"rx"` // bytes received
	TX uint64 `json:"tx"` // bytes that the guest acknowledged
	Re uint32 `json:"re"` // segments that the peer had to send again
}

// peerResult is what the peer says when the stream has ended.
type peerResult struct {
	RX      uint64   `json:"rx"`
	TX      uint64   `json:"tx"`
	Error   string   `json:"error,omitempty"`
	Samples []sample `json:"samples"`
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail with this clock
	return ts.Nano()
}

// runPeer is main of the peer: with the first order it listens; it serves one
// stream (boot/rootfs/stream.c) and prints the result as JSON.
func runPeer() error {
	orders := json.NewDecoder(os.Stdin)
	var o peerOrder
	if err := orders.Decode(&o); err != nil {
		return err
	}
	link, err := peerNetwork()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", peerAddr, peerPort))
	if err != nil {
		return err
	}
	rate := o.Rate
	go func() { // ends with the process
		for {
			if err := setRTOMin(link, o.RTOMin); err != nil {
				fmt.Fprintln(os.Stderr, "peer:", err)
				return
			}
			fmt.Println("ready")
			if orders.Decode(&o) != nil {
				return
			}
		}
	}()
	c, err := l.Accept()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(servePeer(c.(*net.TCPConn), rate))
}

// peerNetwork gives the link its address.
func peerNetwork() (netlink.Link, error) {
	link, err := netlink.LinkByName(peerLink)
	if err != nil {
		return nil, err
	}
	addr, err := netlink.ParseAddr(peerAddr + netBits)
	if err != nil {
		return nil, err
	}
	return link, errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
}

// setRTOMin does what "ip route change ... rto_min" does, for all routes of a
// link.
func setRTOMin(link netlink.Link, ms int) error {
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, r := range routes {
		r.RtoMin = ms
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("rto_min of %v: %w", r, err)
		}
	}
	return nil
}

// pattern gives n bytes of a stream whose word 0 is first, from byte at on, in
// buf, which has room for two words more.
func pattern(buf []byte, first, at uint64, n int) []byte {
	skip := int(at % 8)
	for i := 0; i < skip+n; i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], (first+at/8+uint64(i/8))*0x9e3779b97f4a7c15)
	}
	return buf[skip : skip+n]
}

const (
	firstOfConnecting = 1
	firstOfListening  = 1 << 63
)

// stream is the peer's side of one connection.
type stream struct {
	c      *net.TCPConn
	rx     uint64
	mu     sync.Mutex
	result peerResult
}

func servePeer(c *net.TCPConn, rate int) *peerResult {
	s := &stream{c: c}
	var wg, watch sync.WaitGroup
	stop, closing := make(chan struct{}), make(chan struct{})
	watch.Go(func() { s.sample(stop) })
	var rerr, werr error
	wg.Go(func() { rerr = s.receive(); close(closing) })
	wg.Go(func() { werr = s.send(rate, closing) })
	wg.Wait()
	close(stop)
	watch.Wait()
	if err := errors.Join(rerr, werr); err != nil {
		s.result.Error = err.Error()
	}
	s.result.RX = s.rx
	return &s.result
}

func (s *stream) receive() error {
	const most = 1 << 18
	got, buf := make([]byte, most), make([]byte, most+16)
	for {
		n, err := s.c.Read(got)
		if want := pattern(buf, firstOfConnecting, s.rx, n); !bytes.Equal(got[:n], want) {
			return fmt.Errorf("a wrong byte among the %d from the guest after byte %d", n, s.rx)
		}
		s.mu.Lock()
		s.rx += uint64(n)
		s.mu.Unlock()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive after %d bytes: %w", s.rx, err)
		}
	}
}

// sendTick is how often the peer sends when it has a rate, as the guest does
// (TICK_MS in boot/rootfs/stream.c).
const sendTick = 10 * time.Millisecond

// send goes on until the guest has closed its direction. At a rate it sends a
// tick's worth at a time: whoever sends each byte as it falls due never sleeps,
// and makes a frame of every few bytes.
func (s *stream) send(rate int, closing <-chan struct{}) error {
	const piece = 1 << 16
	buf := make([]byte, piece+16)
	tick := time.NewTicker(sendTick)
	defer tick.Stop()
	pause := tick.C
	if rate == 0 {
		pause = ready
	}
	for start := time.Now(); ; {
		select {
		case <-closing:
			return s.c.CloseWrite()
		case <-pause:
		}
		due := piece
		if rate > 0 {
			due = int(min(piece, int64(time.Since(start).Seconds()*float64(rate)*1024)-int64(s.result.TX)))
		}
		if due <= 0 {
			continue
		}
		n, err := s.c.Write(pattern(buf, firstOfListening, s.result.TX, due))
		s.result.TX += uint64(n)
		if err != nil {
			return fmt.Errorf("send after %d bytes: %w", s.result.TX, err)
		}
	}
}

// ready never makes anybody wait.
var ready = func() chan time.Time { c := make(chan time.Time); close(c); return c }()

// sample looks at the stream until stop. What was sent counts when it is
// acknowledged: what fits into a socket's buffer has not arrived.
func (s *stream) sample(stop <-chan struct{}) {
	raw, err := s.c.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		var info *unix.TCPInfo
		_ = raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
		if err != nil || info == nil {
			return
		}
		s.mu.Lock()
		now := sample{T: monotonic(), RX: s.rx, TX: info.Bytes_acked, Re: info.Total_retrans}
		s.mu.Unlock()
		s.result.Samples = append(s.result.Samples, now)
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}
