//go:build !amd64

package guestmem

import "sync/atomic"

func storeUint16(p *uint16, v uint16) { casUint16(p, v) }

var fenceWord atomic.Uint32

// fence relies on all loads and stores of ring fields being sync/atomic
// operations here, which are sequentially consistent among themselves.
func fence() { fenceWord.Add(1) }
