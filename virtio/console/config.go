package console

import (
	"encoding/binary"
	"fmt"
)

// Offsets in struct virtio_console_config: virtio 1.2, 5.3.4.
const (
	cfgCols     = 0
	cfgRows     = 2
	cfgMaxPorts = 4
	cfgEmergWr  = 8
	cfgSize     = 12
)

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off >= cfgSize {
		return
	}
	var c [cfgSize]byte
	le := binary.LittleEndian
	d.mu.Lock()
	le.PutUint16(c[cfgCols:], d.ports[0].cols)
	le.PutUint16(c[cfgRows:], d.ports[0].rows)
	d.mu.Unlock()
	le.PutUint32(c[cfgMaxPorts:], uint32(len(d.ports)))
	copy(p, c[off:])
}

// WriteConfig implements virtio.Device. A write to emerg_wr puts one character
// out on port 0, whatever state driver and queues are in: virtio 1.2, 5.3.4.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off == cfgEmergWr && len(p) > 0 {
		d.ports[0].emergency(p[0])
	}
}

// Resize says that the host's side of a console is that large now: 5.3.6.
func (d *Device) Resize(port int, cols, rows uint16) error {
	if port < 0 || port >= len(d.ports) || d.ports[port].name != "" {
		return fmt.Errorf("virtio-console: port %d is no console of this device", port)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.ports[port]
	if p.cols == cols && p.rows == rows {
		return nil
	}
	p.cols, p.rows = cols, rows
	if p.guest.ready {
		p.guest.resize = true
		d.kickLocked(controlRX)
	}
	if port == 0 && d.notify != nil {
		d.notify.ConfigChanged()
	}
	return nil
}
