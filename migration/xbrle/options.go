package xbrle

import (
	"fmt"
	"strconv"
	"strings"

	"godwit/migration/policy"
)

const (
	minCache     = 64 << 10
	maxCache     = 1 << 40
	defaultCache = "64M"
	defaultMax   = "1G" // of cache=auto
)

func init() {
	policy.Codecs.Register("xbrle", func(o *policy.Options) (policy.Codec, error) {
		config, err := ParseConfig(o)
		if err != nil {
			return nil, err
		}
		return New(config), nil
	})
	policy.Codecs.Register("rle", func(*policy.Options) (policy.Codec, error) { return RLE{}, nil })
}

// ParseConfig reads the codec's options: cache=SIZE|auto|0, max=SIZE and
// prime=all|hot|none.
func ParseConfig(o *policy.Options) (config Config, err error) {
	size, limit, prime := o.String("cache", defaultCache), o.String("max", ""), o.String("prime", "")
	if size == "auto" {
		config.Auto, config.Prime, size = true, PrimeHot, defaultMax
		if limit != "" {
			size = limit
		}
	} else if limit != "" {
		return config, fmt.Errorf("option max=%s is the limit of cache=auto; the cache has %s", limit, size)
	}
	if config.Bytes, err = parseSize(size); err != nil {
		return config, err
	}
	switch prime {
	case "":
	case "all":
		config.Prime = PrimeAll
	case "hot":
		config.Prime = PrimeHot
	case "none":
		config.Prime = PrimeNone
	default:
		return config, fmt.Errorf("option prime=%s must be all, hot or none", prime)
	}
	return config, nil
}

// parseSize reads bytes with an optional binary K, M or G.
func parseSize(text string) (int, error) {
	digits, shift := text, 0
	if i := strings.IndexAny(text, "KMG"); i >= 0 && i == len(text)-1 {
		digits, shift = text[:i], 10*(1+strings.IndexByte("KMG", text[i]))
	}
	n, err := strconv.ParseUint(digits, 10, 41)
	if err != nil || n != 0 && (n > maxCache>>shift || n<<shift < minCache) {
		return 0, fmt.Errorf("cache size %q must be 0, or bytes with K, M or G from 64K to 1024G", text)
	}
	return int(n << shift), nil
}
