package vmm

import "time"

// A console or a vsock is a channel to the host's programs. A guest that stays,
// after a migration that failed, is worth more than its channels: where another
// process has taken a path meanwhile, or a destination on this host that does
// not answer still has it, the guest runs on, Info says what is missing, and
// the path is asked for again for a while.
const (
	channelRetry = time.Second
	channelTries = 60
)

// reclaimChannels listens again where the channels did before they were
// released. The caller holds op.
func (m *Machine) reclaimChannels(tries int) {
	if m.channelTimer != nil {
		m.channelTimer.Stop()
		m.channelTimer = nil // its callback may wait for op already
	}
	err := m.dev.claimParts(false)
	switch {
	case err == nil:
		if tries < channelTries {
			m.log.Info("all channels of the machine can be connected to again")
		}
		return
	case tries == 0:
		m.log.Error("a channel of the machine stays closed; free its path before the guest moves or starts again", "error", err)
		return
	case tries == channelTries:
		m.log.Warn("the guest runs on without a channel, which is asked for again for a minute; free its path", "error", err)
	}
	var timer *time.Timer // op guards it: the callback waits until it is set
	timer = time.AfterFunc(channelRetry, func() {
		m.op.Lock()
		defer m.op.Unlock()
		m.retryChannels(timer, tries-1)
	})
	m.channelTimer = timer
}

// retryChannels is what timer does. One that was stopped or replaced while its
// callback waited for op does nothing. The caller holds op.
func (m *Machine) retryChannels(timer *time.Timer, tries int) {
	if m.channelTimer == timer && !m.released && m.State() != StateClosed {
		m.reclaimChannels(tries)
	}
}
