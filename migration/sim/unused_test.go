package sim_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/lz4codec"
	"godwit/migration/policy"
)

// An option that would do nothing is refused before anything begins, by name. The
// defaults are taken however they are spelt.
func TestUnusedOptions(t *testing.T) {
	r := newRig(t, 16)
	for says, change := range map[string]func(*migration.SendOptions){
		"a throttle":        func(o *migration.SendOptions) { o.Policies.Throttle = &policy.DirtyLimit{} },
		"a stop rule":       func(o *migration.SendOptions) { o.Policies.Stop = policy.Rounds{N: 1} },
		"a downtime limit":  func(o *migration.SendOptions) { o.DowntimeLimit = time.Millisecond },
		"an order of pages": func(o *migration.SendOptions) { o.Policies.Order = &policy.HotLast{} },
		"a page codec":      func(o *migration.SendOptions) { o.Policies.Codec = lz4codec.New(1) },
		"2 streams":         func(o *migration.SendOptions) { o.Streams = 2 },
	} {
		for _, mode := range []migration.Mode{"", migration.PreCopy, migration.StopAndCopy} {
			o := migration.SendOptions{Mode: mode}
			change(&o)
			_, err := migration.Save(context.Background(), r.src, new(bytes.Buffer), o)
			require.ErrorIs(t, err, migration.ErrOptions, says)
			require.ErrorContains(t, err, says+" on the way into a file: ")
			_, err = migration.NewSession(r.src, r.dial, o)
			switch says {
			case "a throttle", "a stop rule", "a downtime limit":
				if mode == migration.StopAndCopy {
					require.ErrorIs(t, err, migration.ErrOptions, says)
					require.ErrorContains(t, err, says+` in mode "stop-and-copy": `)
					continue
				}
			}
			require.NoError(t, err, says)
		}
	}
	o := migration.SendOptions{DowntimeLimit: migration.DefaultDowntimeLimit, Policies: policy.Set{}.Defaults()}
	require.NoError(t, migration.CheckSave(o))
	o.Mode = migration.StopAndCopy
	require.NoError(t, migration.CheckSave(o))
	s, err := migration.NewSession(r.src, r.dial, o)
	require.NoError(t, err)
	require.Empty(t, r.src.Calls())

	// Nor can they be set later.
	rate, limit := int64(1<<30), time.Second
	require.ErrorContains(t, s.SetThrottle(policy.Cap{Percent: 50}), `a throttle in mode "stop-and-copy"`)
	require.ErrorContains(t, s.Tune(migration.Tuning{Bandwidth: &rate, DowntimeLimit: &limit}), `a downtime limit in mode "stop-and-copy"`)
	require.Zero(t, s.Progress().Limit)
	require.NoError(t, s.SetBandwidth(rate))
	require.NoError(t, s.SetThrottle(nil))
	local := localRig(t, 16)
	s, err = migration.NewSession(local.from, local.dial, migration.SendOptions{Local: true})
	require.NoError(t, err)
	require.ErrorIs(t, s.SetBandwidth(rate), migration.ErrLocal)
	require.ErrorIs(t, s.SetThrottle(&policy.AutoConverge{}), migration.ErrLocal)
}
