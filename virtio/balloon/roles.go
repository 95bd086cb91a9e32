package balloon

import (
	"fmt"

	"godwit/virtio/queue"
)

// What a queue is for, in the order in which they are numbered.
const (
	roleInflate = iota
	roleDeflate
	roleStats
	roleHinting
	roleReporting
	numRoles
)

// roles gives the queue of each role, -1 for none.
type roles [numRoles]int8

var noRoles = roles{-1, -1, -1, -1, -1}

// needs are the features of each role.
var needs = [numRoles]uint64{roleStats: featureStats, roleHinting: featureHinting, roleReporting: featureReporting}

// Queue sizes. Linux gives a hint a chain of its own, of one block of at most
// 4 MiB, and drops what the queue has no room for; it refuses a reporting queue of
// fewer than 32 (PAGE_REPORTING_CAPACITY).
const (
	queueSize     = 128
	hintQueueSize = 1024
)

// QueueSizes implements virtio.Device. There are always all of them, large
// from the first on that may be for hints, so that either way of counting them
// finds its queue.
func (d *Device) QueueSizes() []uint16 {
	return []uint16{queueSize, queueSize, hintQueueSize, hintQueueSize, hintQueueSize}
}

// assign finds out which queue is which. Virtio 1.2, 5.5.2, gives each role a fixed
// number. Drivers do not: Linux up to 6.10 numbers the queues of the features
// that it negotiated one after the other, and hosts that it runs on count so, too.
// Both go upwards in the order of roles, so the first queue that was set up is
// the first role that was negotiated, and so on.
func assign(features uint64, queues []*queue.Queue) roles {
	r, next := noRoles, 0
	for role, needs := range needs {
		if features&needs != needs {
			continue
		}
		for next < len(queues) && queues[next] == nil {
			next++
		}
		if next == len(queues) {
			break
		}
		r[role] = int8(next)
		next++
	}
	return r
}

// agree holds roles that were restored to what the driver negotiated.
func (r roles) agree(features uint64) error {
	for role, q := range r {
		if q >= 0 && features&needs[role] != needs[role] {
			return fmt.Errorf("virtio-balloon state: queue %d has a use that takes feature %#x, which was not negotiated", q, needs[role])
		}
	}
	return nil
}
