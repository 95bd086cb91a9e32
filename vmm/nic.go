package vmm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	stdnet "net"
	"regexp"
	"slices"
	"sync"
	"time"

	"godwit/tap"
	"godwit/virtio"
	"godwit/virtio/net"
)

// NetworkInterface is a network card, and the tap behind it on this host.
type NetworkInterface struct {
	// ID names the card in CONFIG, in `receive --net ID=tap` and in info: 1 to 20
	// letters, digits, '.', '_' or '-'.
	ID string `json:"iface_id"`
	// HostDevName is the tap: one that exists, or one to make. 1 to 15 bytes.
	HostDevName string `json:"host_dev_name"`
	// GuestMAC is the card's address; one is made up from the machine's name and
	// the tap's when it is empty.
	GuestMAC string `json:"guest_mac,omitempty"`
	// Bridge is the bridge that the tap is put into; empty leaves it where it is.
	Bridge string `json:"bridge,omitempty"`
	// MTU is what the guest is told and the tap must have, 68 to 65521 bytes; 0
	// tells the guest nothing.
	MTU int `json:"mtu,omitempty"`
	// QueuePairs is the number of queue pairs, 1 to 16; 0 means 1.
	QueuePairs int `json:"num_queue_pairs,omitempty"`
}

// Limits of network cards.
const (
	MaxNetworkInterfaces = 8
	maxQueuePairs        = 16
	minMTU, maxMTU       = 68, 65521 // of a tap (kernel: tun.c, MAX_MTU)
)

// hostNamePattern is an interface's name, less than what Linux allows.
var hostNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,14}$`)

// withDefaults fills in what may be left out of card i of machine id.
func (n NetworkInterface) withDefaults(id string, i int) NetworkInterface {
	if n.ID == "" {
		n.ID = fmt.Sprintf("net%d", i)
	}
	if n.QueuePairs == 0 {
		n.QueuePairs = 1
	}
	if n.GuestMAC == "" {
		sum := sha256.Sum256(fmt.Appendf(nil, "godwit %q %d %q", id, i, n.HostDevName))
		mac := net.MAC(sum[:6])
		mac[0] = mac[0]&^1 | 2 // one card's, and nobody's by registration
		n.GuestMAC = mac.String()
	}
	return n
}

func (n NetworkInterface) mac() (net.MAC, error) {
	hw, err := stdnet.ParseMAC(n.GuestMAC)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 || net.MAC(hw) == (net.MAC{}) {
		return net.MAC{}, fmt.Errorf("%w: network %q: %q is no address of a card; write for example 02:00:00:00:00:01", ErrConfig, n.ID, n.GuestMAC)
	}
	return net.MAC(hw), nil
}

// validateNetworks checks all cards of a machine. The host's names in an incoming
// one are its source's, and not used here.
func validateNetworks(list []NetworkInterface, incoming bool) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, a...))
	}
	if len(list) > MaxNetworkInterfaces {
		return bad("%d network interfaces; at most %d", len(list), MaxNetworkInterfaces)
	}
	ids, taps := map[string]bool{}, map[string]bool{}
	for _, n := range list {
		switch {
		case !idPattern.MatchString(n.ID) || len(n.ID) > 20:
			return bad("network id %q; use 1 to 20 letters, digits, '.', '_' or '-'", n.ID)
		case ids[n.ID]:
			return bad("two networks with id %q; give each its own", n.ID)
		case n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU):
			return bad("network %q: an MTU of %d; give %d to %d, or none", n.ID, n.MTU, minMTU, maxMTU)
		case n.QueuePairs < 1 || n.QueuePairs > maxQueuePairs:
			return bad("network %q: %d queue pairs; give 1 to %d", n.ID, n.QueuePairs, maxQueuePairs)
		}
		if _, err := n.mac(); err != nil {
			return err
		}
		ids[n.ID] = true
		if incoming {
			continue
		}
		switch {
		case !hostNamePattern.MatchString(n.HostDevName):
			return bad("network %q: tap %q; give the name of an interface, 1 to 15 letters, digits, '.', '_', '@' or '-'", n.ID, n.HostDevName)
		case n.Bridge != "" && !hostNamePattern.MatchString(n.Bridge):
			return bad("network %q: bridge %q; give the name of an interface", n.ID, n.Bridge)
		case taps[n.HostDevName]:
			return bad("network %q: tap %q is another card's; give each its own", n.ID, n.HostDevName)
		}
		taps[n.HostDevName] = true
	}
	return nil
}

// HostNetwork is what stands behind a card on this host.
type HostNetwork struct {
	Tap    string
	Bridge string // empty leaves the tap where it is
}

// resolveNetworks finds the tap of every card that arrives: only those that the
// operator named here are opened.
func (in Incoming) resolveNetworks(list []NetworkInterface) (map[string]HostNetwork, error) {
	out := map[string]HostNetwork{}
	for _, n := range list {
		h, ok := in.Networks[n.ID]
		if !ok {
			return nil, fmt.Errorf("%w: network %q is tap %q at the source and nothing here says which to use; start the receiver with --net %s=TAP[,bridge=NAME]",
				ErrIncompatible, n.ID, n.HostDevName, n.ID)
		}
		out[n.ID] = h
	}
	for id := range in.Networks {
		if !slices.ContainsFunc(list, func(n NetworkInterface) bool { return n.ID == id }) {
			return nil, fmt.Errorf("%w: --net %s=… names no network of the machine", ErrIncompatible, id)
		}
	}
	return out, nil
}

// NetworkInfo is a network card and what it has done.
type NetworkInfo struct {
	ID         string    `json:"id"`
	Tap        string    `json:"tap"`
	Bridge     string    `json:"bridge,omitempty"`
	MAC        string    `json:"mac"` // as the guest has it now
	MTUBytes   int       `json:"mtu_bytes"`
	QueuePairs int       `json:"queue_pairs"`
	LinkUp     bool      `json:"link_up"`
	Stats      net.Stats `json:"stats"`
}

// nic is a network card: its tap and the device that shows it.
type nic struct {
	NetworkInterface
	host HostNetwork
	tap  *tap.Interface
	dev  *net.Device

	quiet bool          // released to a destination
	stop  chan struct{} // closed to end the announcements
	done  sync.WaitGroup
}

var _ part = (*nic)(nil)

// newNIC opens a tap and makes its device. A tap is up and in its bridge from
// here on, at a destination too: what the network sends while the guest is on
// its way waits in the tap. Nothing leaves it before the guest runs, so nobody
// learns of it too early.
func newNIC(spec NetworkInterface, a assembly) (_ part, err error) {
	n := &nic{NetworkInterface: spec, host: HostNetwork{Tap: spec.HostDevName, Bridge: spec.Bridge}}
	if a.incoming {
		n.host = a.networks[spec.ID]
	}
	mac, err := spec.mac()
	if err != nil {
		return nil, err
	}
	n.tap, err = tap.Open(tap.Options{Name: n.host.Tap, Bridge: n.host.Bridge, MTU: spec.MTU, Queues: spec.QueuePairs})
	if err != nil {
		return nil, fmt.Errorf("network %q: %w", spec.ID, err)
	}
	n.dev, err = net.New(net.Config{Backend: n.tap, MAC: mac, MTU: uint16(spec.MTU), Pairs: spec.QueuePairs})
	if err != nil {
		return nil, errors.Join(err, n.tap.Close())
	}
	return n, nil
}

func (n *nic) kind() string          { return "network" }
func (n *nic) name() string          { return n.ID }
func (n *nic) device() virtio.Device { return n.dev }
func (n *nic) vital() bool           { return true }

// release makes the tap quiet: the paused device reads and writes nothing, and
// without carrier a bridge gives it nothing either. What the bridge knows of the
// guest is forgotten, so that from now on it floods what is for the guest, to
// the destination's tap among others.
func (n *nic) release() error {
	n.hush()
	n.quiet = true
	mac := n.dev.MAC()
	if err := n.plug(false); err != nil {
		return err
	}
	return n.tap.Forget(mac[:])
}

// plug sets the carrier where the kernel can. A tap that somebody has removed is
// as quiet as can be, and keeps no guest from moving or from running on.
func (n *nic) plug(in bool) error {
	err := n.tap.SetCarrier(in)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, tap.ErrGone) {
		return nil
	}
	return err
}

// expect throws away what gathered so far: the source's tap got it, too.
func (n *nic) expect() { n.tap.Purge() }

// claim undoes release at a source whose migration failed. That the guest has
// stayed is told when it runs: a paused device says nothing.
func (n *nic) claim() error {
	if !n.quiet {
		return nil
	}
	if err := n.plug(n.dev.LinkUp()); err != nil {
		return err
	}
	n.quiet = false
	return nil
}

// announceGaps are the pauses between announcements: the first comes at once,
// and QEMU's default after that (announce-initial, -step, -max, -rounds).
var announceGaps = []time.Duration{
	50 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond, 350 * time.Millisecond, 450 * time.Millisecond,
}

// follow announces the guest, several times: a single packet can be lost, and a
// switch far away may need a while.
func (n *nic) follow() {
	n.hush()
	if !n.dev.LinkUp() {
		_ = n.plug(false) // the card is silent without it
		return            // setLink comes here again
	}
	stop := make(chan struct{})
	n.stop = stop
	n.done.Go(func() {
		for _, gap := range announceGaps {
			_ = n.dev.Announce() // counted and kept by the device; the next may go
			select {
			case <-stop:
				return
			case <-time.After(gap):
			}
		}
		_ = n.dev.Announce()
	})
}

// hush ends the announcements.
func (n *nic) hush() {
	if n.stop != nil {
		close(n.stop)
		n.stop = nil
	}
	n.done.Wait()
}

func (n *nic) close() error {
	n.hush()
	return n.tap.Close()
}

func (n *nic) info(i *Info) {
	i.Networks = append(i.Networks, NetworkInfo{
		ID: n.ID, Tap: n.host.Tap, Bridge: n.host.Bridge, MAC: n.dev.MAC().String(),
		MTUBytes: n.tap.MTU(), QueuePairs: n.QueuePairs, LinkUp: n.dev.LinkUp(), Stats: n.dev.Stats(),
	})
}
