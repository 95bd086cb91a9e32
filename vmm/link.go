package vmm

import (
	"errors"
	"fmt"
)

// ErrNoNetwork marks a request to a network card that the machine does not have.
var ErrNoNetwork = errors.New("the machine has no such network card")

// SetLink plugs the cable of a network card in, or pulls it: the guest's driver is
// told, and the tap has carrier or has none. Without a cable no frame passes. One
// that is plugged in says where the guest is, which may have moved meanwhile. It
// travels with the guest.
func (m *Machine) SetLink(id string, up bool) error {
	m.op.Lock()
	defer m.op.Unlock()
	if s := m.State(); s == StateClosed || s == StateEnded {
		return fmt.Errorf("set link: %w: the machine is %s", ErrState, s)
	}
	for _, p := range m.dev.parts {
		if n, ok := p.(*nic); ok && n.ID == id {
			was := n.dev.LinkUp()
			if err := n.setLink(up); err != nil || was || !up {
				return err
			}
			if m.State() == StateRunning {
				n.follow()
			} else {
				m.toFollow = true // a guest that stands still is announced when it runs
			}
			return nil
		}
	}
	return fmt.Errorf("%w: %q; `godwit info` lists them", ErrNoNetwork, id)
}

func (n *nic) setLink(up bool) error {
	n.dev.SetLink(up)
	if n.quiet {
		return nil // claim looks at it
	}
	return n.plug(up)
}
