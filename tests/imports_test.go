package tests

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// arrows is the package map of docs/architecture.md: what each subtree may
// import of godwit. A subtree may always import itself. The longest matching
// name counts.
var arrows = map[string][]string{
	"cmd/godwit":         {"api", "lab", "vmm", "migration", "blockfile"},
	"api":                {"vmm", "migration", "unixsocket"},
	"lab":                {},
	"vmm":                {"boot", "virtio", "devices", "blockfile", "tap", "migration", "kvm", "unixsocket"},
	"boot":               {"kvm/guestmem"},
	"boot/metronome":     {},
	"unixsocket":         {},
	"virtio":             {"devices/bus", "devices/state", "kvm/guestmem"},
	"devices":            {"devices/bus", "devices/state"},
	"blockfile":          {},
	"tap":                {},
	"migration":          {},
	"migration/wire":     {},
	"migration/policy":   {},
	"migration/adaptive": {"migration/policy", "migration/lz4codec", "migration/xbrle"},
	"migration/sabotage": {},
	"kvm":                {},
	"kvm/guestmem":       {},
}

// leaves are packages that not even their own subtree may lend anything to.
var leaves = map[string]bool{"kvm": true, "kvm/guestmem": true, "migration/wire": true, "migration/sabotage": true, "boot/metronome": true}

func TestImportsGoFromLeftToRight(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "godwit/...").Output()
	require.NoError(t, err)
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for dec.More() {
		var p struct {
			ImportPath string
			Imports    []string
		}
		require.NoError(t, dec.Decode(&p))
		name := strings.TrimPrefix(p.ImportPath, "godwit/")
		if under(name, "tests") {
			continue
		}
		rule, ok := ruleOf(name)
		require.Truef(t, ok, "package %s is not in the package map: add it there, or put it where it belongs", name)
		seen++
		for _, imp := range p.Imports {
			dep, ours := strings.CutPrefix(imp, "godwit/")
			if ours && !allowed(rule, dep) {
				t.Errorf("%s imports %s; %s may import %v", name, dep, rule, arrows[rule])
			}
		}
	}
	require.Greater(t, seen, 10)
}

func ruleOf(name string) (string, bool) {
	best, ok := "", false
	for k := range arrows {
		if under(name, k) && len(k) > len(best) {
			best, ok = k, true
		}
	}
	return best, ok
}

func allowed(rule, dep string) bool {
	if under(dep, rule) && !leaves[rule] {
		return true
	}
	for _, a := range arrows[rule] {
		if under(dep, a) {
			return true
		}
	}
	return false
}

func under(name, root string) bool { return name == root || strings.HasPrefix(name, root+"/") }
