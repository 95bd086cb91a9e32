package statetest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
)

// counter reads versions 1 (16 bits) and 2 (32 bits), like a part with a past.
type counter struct{ n uint32 }

func (c *counter) StateID() string      { return "test/counter" }
func (c *counter) StateVersion() uint32 { return 2 }
func (c *counter) Save(e *state.Encoder) error {
	e.U32(c.n)
	return nil
}

func (c *counter) Restore(version uint32, d *state.Decoder) error {
	if version == 1 {
		c.n = uint32(d.U16())
	} else {
		c.n = d.U32()
	}
	return d.Err()
}

func TestGoldenReadsEveryVersion(t *testing.T) {
	Golden(t, &counter{n: 0x12345678}, func() state.Saver { return &counter{} })
}

func TestRestoreReportsDamage(t *testing.T) {
	p := Stream(t, &counter{n: 1})
	require.Error(t, Restore(&counter{}, p[:len(p)-1]))
	require.ErrorIs(t, Restore(other{}, p), state.ErrMissing)
}

type other struct{}

func (other) StateID() string                          { return "other" }
func (other) StateVersion() uint32                     { return 1 }
func (other) Save(*state.Encoder) error                { return nil }
func (other) Restore(_ uint32, d *state.Decoder) error { return d.Err() }
