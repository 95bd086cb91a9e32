package vmm

import (
	"encoding/binary"
	"fmt"
	"time"

	"godwit/devices/state"
	"godwit/kvm"
)

// chipSaver is the state of the in-kernel interrupt controllers and timer.
type chipSaver struct{ vm *kvm.VM }

var _ state.Saver = chipSaver{}

var chips = []kvm.ChipID{kvm.ChipPICMaster, kvm.ChipPICSlave, kvm.ChipIOAPIC}

// StateID implements state.Saver.
func (chipSaver) StateID() string { return "irqchip" }

// StateVersion implements state.Saver.
func (chipSaver) StateVersion() uint32 { return 1 }

// Save implements state.Saver.
func (c chipSaver) Save(e *state.Encoder) error {
	for _, id := range chips {
		chip, err := c.vm.IRQChip(id)
		if err != nil {
			return err
		}
		encodeStruct(e, &chip)
	}
	pit, err := c.vm.PIT2()
	if err != nil {
		return err
	}
	encodeStruct(e, &pit)
	return nil
}

// Restore implements state.Saver.
func (c chipSaver) Restore(_ uint32, d *state.Decoder) error {
	for _, id := range chips {
		var chip kvm.IRQChip
		decodeStruct(d, &chip)
		if d.Err() == nil && chip.ChipID != id {
			d.Fail("interrupt controller %d where %d belongs", chip.ChipID, id)
		}
		if err := d.Err(); err != nil {
			return err
		}
		if err := c.vm.SetIRQChip(&chip); err != nil {
			return err
		}
	}
	var pit kvm.PIT2
	decodeStruct(d, &pit)
	if err := d.Err(); err != nil {
		return err
	}
	return c.vm.SetPIT2(&pit)
}

// clockSaver is the kvmclock. Saved with the wall time of the same moment
// where the kernel gives it, it goes on at the destination as if the downtime
// had been waited out: time never jumps back.
type clockSaver struct {
	vm   *kvm.VM
	caps int // what CapAdjustClock answered
}

var _ state.Saver = clockSaver{}

// StateID implements state.Saver.
func (clockSaver) StateID() string { return "clock" }

// StateVersion implements state.Saver.
func (clockSaver) StateVersion() uint32 { return 1 }

// Save implements state.Saver.
func (c clockSaver) Save(e *state.Encoder) error {
	data, err := c.vm.Clock()
	if err != nil {
		return err
	}
	e.U64(data.Clock)
	e.Bool(data.Flags&kvm.ClockRealtime != 0)
	e.U64(data.Realtime)
	return nil
}

// Restore implements state.Saver.
func (c clockSaver) Restore(_ uint32, d *state.Decoder) error {
	data := kvm.ClockData{Clock: d.U64()}
	hasRealtime := d.Bool()
	data.Realtime = d.U64()
	if err := d.Err(); err != nil {
		return err
	}
	if hasRealtime && c.caps&kvm.ClockRealtime != 0 && timeAway(data.Realtime, time.Now()) > 0 {
		data.Flags = kvm.ClockRealtime
	}
	if err := c.vm.SetClock(&data); err != nil {
		return fmt.Errorf("set the guest's clock: %w", err)
	}
	return nil
}

// encodeStruct appends a kernel struct as the kernel lays it out.
func encodeStruct(e *state.Encoder, v any) {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err) // a type without a fixed size: no input can cause it
	}
	e.Raw(b)
}

// decodeStruct reads it back; after a failure v is zero.
func decodeStruct(d *state.Decoder, v any) {
	b := make([]byte, binary.Size(v))
	d.Raw(b)
	if _, err := binary.Decode(b, binary.LittleEndian, v); err != nil {
		panic(err) // as above
	}
}
