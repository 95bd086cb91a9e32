package mmio

// maxComplaints bounds what one device can write to the log: its driver decides
// how often something is wrong.
const maxComplaints = 16

// Used implements virtio.Notifier.
func (t *Transport) Used() { t.raise(interruptUsed) }

// ConfigChanged implements virtio.Notifier. The generation goes up first, so that
// a driver which reads the configuration right now reads it again.
func (t *Transport) ConfigChanged() {
	t.generation.Add(1)
	if t.status.Load()&statusDriverOK != 0 {
		t.raise(interruptConfig)
	}
}

// NeedsReset implements virtio.Notifier: virtio 1.2, 2.1.2.
func (t *Transport) NeedsReset(cause error) {
	t.complain("device needs reset", cause)
	old := t.status.Or(statusNeedsReset)
	if old&statusDriverOK != 0 {
		t.raise(interruptConfig)
	}
}

// raise sets bits and sends the edge, in this order: whoever gets the edge finds
// the bits.
func (t *Transport) raise(bits uint32) {
	t.pending.Or(bits)
	if err := t.irq.Trigger(); err != nil {
		t.complain("interrupt lost", err)
	}
}

func (t *Transport) complain(what string, cause error) {
	if t.complaints.Add(1) > maxComplaints {
		t.complaints.Store(maxComplaints) // never wraps around
		return
	}
	t.log.Warn(what, "device", t.id, "cause", cause)
}
