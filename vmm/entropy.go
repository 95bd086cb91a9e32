package vmm

import (
	"fmt"
	"time"

	"godwit/virtio"
	"godwit/virtio/rng"
)

// Entropy is a virtio-rng device.
type Entropy struct {
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// RateLimiter bounds what a device does for its guest.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
}

// TokenBucket holds up to Size bytes and is filled from empty within RefillTime,
// so the rate is Size per RefillTime.
type TokenBucket struct {
	Size uint64 `json:"size"` // bytes, 1 to 2^40
	// OneTimeBurst is a number of bytes on top, 0 to 2^40, that is not filled again.
	OneTimeBurst uint64 `json:"one_time_burst,omitempty"`
	RefillTime   uint64 `json:"refill_time"` // milliseconds, 1 to 86400000
}

// limit is none where nothing is limited.
func (e *Entropy) limit() (rng.Limit, error) {
	if e.RateLimiter == nil || e.RateLimiter.Bandwidth == nil {
		return rng.Limit{}, nil
	}
	b := e.RateLimiter.Bandwidth
	if most := uint64(rng.MaxRefill / time.Millisecond); b.RefillTime < 1 || b.RefillTime > most {
		return rng.Limit{}, fmt.Errorf("refill_time of %d ms; give 1 to %d", b.RefillTime, most)
	}
	if b.Size < 1 || b.Size > rng.MaxSize || b.OneTimeBurst > rng.MaxSize {
		return rng.Limit{}, fmt.Errorf("a bucket of %d bytes with a burst of %d; give 1 to %d, and 0 to %d", b.Size, b.OneTimeBurst, uint64(rng.MaxSize), uint64(rng.MaxSize))
	}
	return rng.Limit{Size: b.Size, OneTimeBurst: b.OneTimeBurst, Refill: time.Duration(b.RefillTime) * time.Millisecond}, nil
}

func (e *Entropy) validate() error {
	if e == nil {
		return nil
	}
	if _, err := e.limit(); err != nil {
		return fmt.Errorf("%w: entropy: %w", ErrConfig, err)
	}
	return nil
}

// EntropyInfo is what the entropy device has done.
type EntropyInfo struct {
	Stats rng.Stats `json:"stats"`
}

// entropy is the machine's virtio-rng device. The host's random numbers are
// everywhere, so there is nothing to release or claim.
type entropy struct {
	plainPart
	dev *rng.Device
}

var _ part = (*entropy)(nil)

func newEntropy(spec Entropy) (part, error) {
	l, err := spec.limit()
	if err != nil {
		return nil, fmt.Errorf("%w: entropy: %w", ErrConfig, err)
	}
	dev, err := rng.New(rng.Config{Limit: l})
	return &entropy{dev: dev}, err
}

func (e *entropy) kind() string          { return "entropy" }
func (e *entropy) name() string          { return "rng" }
func (e *entropy) device() virtio.Device { return e.dev }
func (e *entropy) info(i *Info)          { i.Entropy = &EntropyInfo{Stats: e.dev.Stats()} }
