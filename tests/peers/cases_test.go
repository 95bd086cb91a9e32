package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheMatrixIsSound(t *testing.T) {
	names := map[string]bool{}
	for _, k := range cases() {
		require.False(t, names[k.Name], k.Name)
		names[k.Name] = true
		require.NoError(t, k.Guest.Validate(), k.Name)
		require.Less(t, k.filledMiB(), k.MemoryMiB, k.Name)
		require.Equal(t, k.Load == nil, k.Downtime != 0, k.Name)
		require.Contains(t, goals, k.Name)
		settings := map[string]bool{}
		for _, s := range k.Settings {
			require.False(t, settings[s.Name], "%s, %s", k.Name, s.Name)
			settings[s.Name] = true
			require.True(t, strings.HasPrefix(s.Name, string(s.Side)+" "), s.Name)
			require.True(t, s.Side == QEMU || len(s.Capabilities)+len(s.Parameters) == 0, "%s: QEMU's things", s.Name)
			require.True(t, s.Side == Godwit || len(s.Run)+len(s.Receive)+len(s.Migrate) == 0, "%s: godwit's things", s.Name)
		}
	}
	require.Len(t, goals, len(names), "a goal for a case that there is not")
}

// chosenNames is "case/setting" of all that is chosen.
func chosenNames(t *testing.T, c choice) []string {
	chosen, err := choose(cases(), c)
	require.NoError(t, err)
	var names []string
	for _, k := range chosen {
		for _, s := range k.Settings {
			names = append(names, k.Name+"/"+s.Name)
		}
	}
	return names
}

func TestChoose(t *testing.T) {
	for name, c := range map[string]struct {
		choice
		want []string
	}{
		"a case, without what is slow": {choice{cases: []string{"ws-50k"}}, []string{"ws-50k/qemu xbzrle 512M", "ws-50k/qemu xbzrle 512M limit 300ms", "ws-50k/godwit xbrle 512M"}},
		"a case, with what is slow": {choice{cases: []string{"ws-50k"}, slow: true},
			[]string{"ws-50k/qemu xbzrle 512M", "ws-50k/qemu xbzrle 512M limit 300ms", "ws-50k/qemu auto-converge", "ws-50k/godwit xbrle 512M"}},
		"what is slow, by name":        {choice{settings: []string{"auto-converge"}}, []string{"ws-50k/qemu auto-converge"}},
		"a side asks for nothing slow": {choice{cases: []string{"ws-50k"}, settings: []string{"qemu"}}, []string{"ws-50k/qemu xbzrle 512M", "ws-50k/qemu xbzrle 512M limit 300ms"}},
		"parts of names":               {choice{cases: []string{"bulk-read"}, settings: []string{"multifd", "streams 1"}}, []string{"bulk-read/qemu multifd 4", "bulk-read/godwit streams 1"}},
		"another setting": {choice{cases: []string{"local"}, settings: []string{"lz4"}, tries: []string{"local:--codec  lz4"}},
			[]string{"local/godwit --codec lz4"}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, chosenNames(t, c.choice)) })
	}
	for _, c := range []struct {
		choice
		says string
	}{
		{choice{cases: []string{"idle"}}, `no case "idle"; cases: idle-8g`},
		{choice{settings: []string{"vmware"}}, "no setting of these cases has a name with vmware"},
		{choice{tries: []string{"ws-20k"}}, "write CASE:FLAGS"},
		{choice{tries: []string{"nowhere:--codec lz4"}}, "write CASE:FLAGS"},
	} {
		_, err := choose(cases(), c.choice)
		require.ErrorContains(t, err, c.says)
	}
}

func TestListNamesWhatIsInTheMatrix(t *testing.T) {
	text := list(cases())
	for _, k := range cases() {
		for _, s := range k.Settings {
			require.Contains(t, text, s.Name)
		}
	}
	require.Contains(t, text, "xbzrle-cache-size=67108864")
	require.Contains(t, text, "left out where godwit has no --tls-cert")
}

func TestFlags(t *testing.T) {
	o, err := parse([]string{"-cases", "bulk,local", "-settings", "x,y", "-try", "bulk:a", "-try", "bulk:b"})
	require.NoError(t, err)
	require.Equal(t, 5, o.runs)
	require.Equal(t, choice{cases: []string{"bulk", "local"}, settings: []string{"x", "y"}, tries: []string{"bulk:a", "bulk:b"}}, o.choice)
	for _, bad := range [][]string{{"-runs", "0"}, {"-timeout", "0s"}, {"ws-20k"}} {
		_, err := parse(bad)
		require.Error(t, err, bad)
	}
}
