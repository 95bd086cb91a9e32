package main

import (
	"fmt"
	"math/bits"

	"godwit/cmd/godwit/internal/units"
	"godwit/vmm"
)

// entropyValue is --rng.
type entropyValue struct{ spec *vmm.Entropy }

func (v *entropyValue) Set(s string) (err error) {
	v.spec, err = parseEntropy(s)
	return err
}

func (v *entropyValue) Type() string   { return "rate=N[,burst=N]|unlimited" }
func (v *entropyValue) String() string { return "" }

// parseEntropy reads rate=SIZE[,burst=SIZE], both in bytes, or unlimited. The
// burst is what the bucket holds: a second's worth where it is left out.
func parseEntropy(s string) (*vmm.Entropy, error) {
	if s == "unlimited" {
		return &vmm.Entropy{}, nil
	}
	bad := fmt.Errorf("rng %.80q: %w; write rate=BYTES[,burst=BYTES], for example rate=64K, or unlimited", s, units.ErrSyntax)
	pairs, err := units.ParsePairs(s)
	if err != nil {
		return nil, bad
	}
	var rate, burst uint64
	for _, p := range pairs {
		n, err := units.ParseSize(p.Value)
		switch {
		case err != nil || n == 0:
			return nil, bad
		case p.Key == "rate":
			rate = n
		case p.Key == "burst":
			burst = n
		default:
			return nil, bad
		}
	}
	if rate == 0 {
		return nil, bad
	}
	if burst == 0 {
		burst = rate
	}
	hi, lo := bits.Mul64(burst, 1000)
	if hi != 0 {
		return nil, bad
	}
	// Whole milliseconds: the time is rounded up, so the rate is never exceeded.
	refill := (lo-1)/rate + 1
	return &vmm.Entropy{RateLimiter: &vmm.RateLimiter{Bandwidth: &vmm.TokenBucket{Size: burst, RefillTime: refill}}}, nil
}
