package vmm

import (
	"context"
	"fmt"

	"godwit/virtio/blk"
)

// Info is what `godwit info` shows of a machine. Every field's name says its
// unit.
type Info struct {
	ID            string        `json:"id"`
	State         string        `json:"state"`
	PausedFor     string        `json:"paused_for,omitempty"` // the disk that has no room, if one paused the machine
	VCPUs         int           `json:"vcpus"`
	MemoryMiB     int           `json:"memory_mib"`
	MemoryBacking string        `json:"memory_backing"`
	Tracker       string        `json:"tracker"`
	ResidentBytes uint64        `json:"resident_bytes"` // guest memory that the host has given
	Exits         []uint64      `json:"exits"`          // returns of KVM_RUN, by vCPU
	BootMarks     []BootMark    `json:"boot_marks"`
	Serial        SerialInfo    `json:"serial"`
	Drives        []DriveInfo   `json:"drives"`
	Networks      []NetworkInfo `json:"networks"`
	// Nil where the machine has no such device.
	Balloon *BalloonInfo `json:"balloon,omitempty"`
	Entropy *EntropyInfo `json:"entropy,omitempty"`
	Console *ConsoleInfo `json:"console,omitempty"`
	Vsock   *VsockInfo   `json:"vsock,omitempty"`
}

// BootMark is a byte that the guest wrote to the boot-timer port.
type BootMark struct {
	Code  uint8  `json:"code"`
	AtUS  int64  `json:"at_us"` // since the machine was assembled, microseconds
	Count uint64 `json:"count"`
}

// SerialInfo counts the console's output.
type SerialInfo struct {
	WrittenBytes uint64 `json:"written_bytes"`
	LostBytes    uint64 `json:"lost_bytes"`
	LastError    string `json:"last_error,omitempty"` // why output was lost last, where writing it failed
}

// DriveInfo is a disk and what it has done.
type DriveInfo struct {
	ID        string    `json:"id"`
	Path      string    `json:"path"`
	SizeBytes int64     `json:"size_bytes"`
	Format    string    `json:"format"`
	ReadOnly  bool      `json:"read_only"`
	Snapshot  bool      `json:"snapshot"` // changes go to a temporary overlay
	Stats     blk.Stats `json:"stats"`
}

// Info collects the figures. It disturbs the guest no more than a look at
// counters.
func (m *Machine) Info() (Info, error) {
	// Counting resident pages takes a while; it must not hold up a pause. The
	// memory refuses by itself once it is closed.
	resident, err := m.mem.Resident()
	if err != nil {
		return Info{}, fmt.Errorf("info: %w", err)
	}
	m.op.Lock()
	defer m.op.Unlock()
	i := Info{
		ID:            m.cfg.ID,
		State:         m.State().String(),
		PausedFor:     m.pauseReason(),
		VCPUs:         len(m.vcpus),
		MemoryMiB:     m.cfg.Machine.MemSizeMiB,
		MemoryBacking: m.cfg.Machine.MemoryBacking,
		Tracker:       m.cfg.Machine.Tracker,
		ResidentBytes: resident,
		BootMarks:     []BootMark{},
		Drives:        []DriveInfo{},
		Networks:      []NetworkInfo{},
	}
	if m.State() == StateClosed {
		return i, fmt.Errorf("info: %w: the machine is closed", ErrState)
	}
	for _, v := range m.vcpus {
		i.Exits = append(i.Exits, v.exits.Load())
	}
	for _, mark := range m.dev.timer.Marks() {
		i.BootMarks = append(i.BootMarks, BootMark{Code: mark.Code, AtUS: mark.At.Microseconds(), Count: mark.Count})
	}
	s := m.dev.serial.Stats()
	i.Serial = SerialInfo{WrittenBytes: s.Written, LostBytes: s.Lost, LastError: faultText(s.WriteErr)}
	for _, p := range m.dev.parts {
		p.info(&i)
	}
	return i, nil
}

// Input hands p to the guest's serial port, as if typed. It returns when all
// of p is queued there, or with how much was when ctx ended or the machine was
// closed; a guest that does not read never makes a vCPU wait.
func (m *Machine) Input(ctx context.Context, p []byte) (int, error) {
	return m.dev.serial.Input(ctx, p)
}
