package policy_test

import (
	"cmp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
	"godwit/migration/policy/policytest"
)

// spelled are policies that want more than their name.
var spelled = map[string]string{"cap": "cap:50"}

// every makes a constructor of a registered policy by its name.
func every[P any](t *testing.T, g *policy.Registry[P], suite func(*testing.T, func() P)) {
	for _, name := range g.Names() {
		t.Run(name, func(t *testing.T) {
			suite(t, func() P {
				p, err := g.Parse(cmp.Or(spelled[name], name))
				require.NoError(t, err)
				return p
			})
		})
	}
}

func TestConformance(t *testing.T) {
	every(t, policy.Orders, policytest.Order)
	every(t, policy.Codecs, policytest.Codec)
	every(t, policy.Throttles, policytest.Throttle)
	every(t, policy.Stops, policytest.Stop)
}

func TestParse(t *testing.T) {
	s, err := policy.Parse("", "", "", "")
	require.NoError(t, err)
	require.Equal(t, policy.Set{}.Defaults(), s)
	s, err = policy.Parse("address", "raw", "none", "last-sync,rounds=7")
	require.NoError(t, err)
	require.Equal(t, policy.LastSync{MaxRounds: 7}, s.Stop)
	for text, says := range map[string]string{
		"first-sync":                    `stop "first-sync"; known: last-sync, measured, rounds, xen`,
		"last-sync,rounds":              `option "rounds" is not NAME=VALUE`,
		"last-sync,rounds=0":            "whole number from 1",
		"last-sync,rounds=x":            "whole number",
		"last-sync,rounds=1,rounds=2":   "given twice",
		"last-sync,colour=red":          `no option "colour"`,
		"last-sync:5":                   "takes no value behind ':'",
		"last-sync,rounds=99999999999":  "whole number",
		"last-sync,rounds=5,colour=red": `no option "colour"`,
		"last-sync,=5":                  `option "=5" is not NAME=VALUE`,
		"last-sync,rounds=":             `option "rounds=" is not NAME=VALUE`,
	} {
		_, err := policy.Parse("", "", "", text)
		require.ErrorIs(t, err, policy.ErrBadPolicy)
		require.ErrorContains(t, err, says, text)
	}
	for _, bad := range [][3]string{{"x", "", ""}, {"", "x", ""}, {"", "", "x"}} {
		_, err := policy.Parse(bad[0], bad[1], bad[2], "")
		require.ErrorIs(t, err, policy.ErrBadPolicy)
	}
}

func TestRegistry(t *testing.T) {
	var g policy.Registry[string]
	g.Register("echo", func(o *policy.Options) (string, error) { return o.String("", "nothing") + o.String("end", "."), nil })
	for text, want := range map[string]string{"echo": "nothing.", "echo:a": "a.", "echo:a:b,end=!": "a:b!"} {
		got, err := g.Parse(text)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Panics(t, func() { g.Register("echo", nil) })
	require.Panics(t, func() { g.Register("a,b", nil) })
}

func FuzzDecodePolicy(f *testing.F) {
	f.Add("last-sync,rounds=3")
	f.Add("last-sync:3,=4")
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := policy.Stops.Parse(text); err == nil && text != "" && p == nil {
			t.Fatalf("%q gives neither a policy nor an error", text)
		}
	})
}

func TestLastSync(t *testing.T) {
	s := policy.LastSync{MaxRounds: 5}
	r := policy.Round{Number: 1, DirtyPages: 100, Bandwidth: 1e9, EstDowntime: 40 * time.Millisecond, DowntimeLimit: 30 * time.Millisecond}
	require.Equal(t, policy.Continue, s.Decide(r))
	r.EstDowntime = 30 * time.Millisecond
	require.Equal(t, policy.Finish, s.Decide(r))
	r.Bandwidth = 0
	require.Equal(t, policy.Continue, s.Decide(r), "an estimate without a bandwidth is none")
	r.Number = 5
	require.Equal(t, policy.Finish, s.Decide(r))
}
