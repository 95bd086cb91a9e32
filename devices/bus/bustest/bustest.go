// Package bustest plays fuzzed sequences of guest accesses on a bus.
package bustest

import (
	"encoding/binary"

	"godwit/devices/bus"
)

// StepLen is how many bytes of a program make one access.
const StepLen = 5

// Step returns the program of one access of 1, 2, 4 or 8 bytes at addr.
func Step(write bool, addr uint16, width int, value uint8) []byte {
	var op byte
	for 1<<(op&3) < width {
		op++
	}
	if write {
		op |= 4
	}
	p := binary.LittleEndian.AppendUint16([]byte{op}, addr)
	return append(p, value, ^value)
}

// Play runs every whole step of the program on b: reads and writes of every
// width at base plus an offset below span, which must be above 0. between, if
// not nil, runs after each.
func Play(b *bus.Bus, base, span uint64, program []byte, between func()) {
	var p [8]byte
	for ; len(program) >= StepLen; program = program[StepLen:] {
		op := program[0]
		addr := base + (uint64(binary.LittleEndian.Uint16(program[1:]))-base)%span
		access := p[:1<<(op&3)]
		if op&4 != 0 {
			for i := range access {
				access[i] = program[3+i%2]
			}
			b.Write(addr, access)
		} else {
			b.Read(addr, access)
		}
		if between != nil {
			between()
		}
	}
}
