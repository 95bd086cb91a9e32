package vmm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm"
	"godwit/migration"
)

func TestConfigIsChecked(t *testing.T) {
	good := Config{ID: "a", BootSource: BootSource{Guest: GuestMetronome}, Drives: []Drive{{ID: "x", PathOnHost: "/x"}}}
	require.NoError(t, good.withDefaults().validate(false))
	for says, change := range map[string]func(*Config){
		"id \"\"":            func(c *Config) { c.ID = "" },
		"id \"a b\"":         func(c *Config) { c.ID = "a b" },
		"65 vCPUs":           func(c *Config) { c.Machine.VCPUCount = 65 },
		"-1 vCPUs":           func(c *Config) { c.Machine.VCPUCount = -1 },
		"4 MiB of memory":    func(c *Config) { c.Machine.MemSizeMiB = 4 },
		"nothing to boot":    func(c *Config) { c.BootSource = BootSource{} },
		"give one":           func(c *Config) { c.BootSource.KernelImagePath = "k" },
		"no built-in":        func(c *Config) { c.BootSource.Guest = "other" },
		"takes no initrd":    func(c *Config) { c.BootSource.InitrdPath = "i" },
		"has no path":        func(c *Config) { c.Drives = []Drive{{ID: "x"}} },
		"two drives":         func(c *Config) { c.Drives = append(c.Drives, c.Drives[0]) },
		"use raw or qcow2":   func(c *Config) { c.Drives = []Drive{{ID: "x", PathOnHost: "/x", Format: "vmdk"}} },
		"and a snapshot":     func(c *Config) { c.Drives = []Drive{{ID: "x", PathOnHost: "/x", IsReadOnly: true, Snapshot: true}} },
		"17 queues":          func(c *Config) { c.Drives = []Drive{{ID: "x", PathOnHost: "/x", Queues: 17}} },
		"at most 16":         func(c *Config) { c.Drives = make([]Drive, 17) },
		"balloon of 513 MiB": func(c *Config) { c.Balloon = &Balloon{AmountMiB: 513} },
		"balloon of -1 MiB":  func(c *Config) { c.Balloon = &Balloon{AmountMiB: -1} },
		"every 3601 s":       func(c *Config) { c.Balloon = &Balloon{StatsPollingIntervalS: 3601} },
		"refill_time of 0":   func(c *Config) { c.Entropy = &Entropy{&RateLimiter{&TokenBucket{Size: 1}}} },
		"bucket of 0":        func(c *Config) { c.Entropy = &Entropy{&RateLimiter{&TokenBucket{RefillTime: 1}}} },
		"backing \"paper\"":  func(c *Config) { c.Machine.MemoryBacking = "paper" },
	} {
		c := good
		c.Drives = append([]Drive(nil), good.Drives...)
		change(&c)
		err := c.withDefaults().validate(false)
		require.ErrorIs(t, err, ErrConfig, says)
		require.ErrorContains(t, err, says)
	}
	_, err := ParseConfig([]byte(`{"id":"a","machine-config":{"vcpus":2}}`))
	require.ErrorContains(t, err, "unknown field")
}

// What is wrong with a configuration is told in JSON's words, with its line.
func TestParseConfigSaysWhere(t *testing.T) {
	for text, says := range map[string]string{
		"":        "line 1: the file ends before",
		"{\"a\":": "line 1: the file ends before",
		"{\n\"id\": \"a\",\n\"machine-confg\": {}}":           `line 3: unknown field "machine-confg"`,
		"{\n\"machine-config\": {\n\"vcpu_count\": \"two\"}}": `line 3: "machine-config.vcpu_count" must be a whole number in range, not string`,
		"{\"machine-config\": {\"mem_size_mib\": 1e99}}":      `"machine-config.mem_size_mib" must be a whole number in range, not number 1e99`,
		"{\"drives\": {}}":      `"drives" must be a list, not object`,
		"{\"id\": 7}":           `"id" must be a text, not number`,
		"{\"boot-source\": []}": `"boot-source" must be an object, not array`,
		"{\"drives\": [{\"drive_id\":\"a\",\"is_read_only\":\"yes\"}]}": "must be true or false",
		"{\"id\":\"a\"}\n}": "line 2: text behind the end",
		"{\"id\":\"a\",,}":  "line 1: invalid character ','",
	} {
		t.Run(says, func(t *testing.T) {
			_, err := ParseConfig([]byte(text))
			require.ErrorIs(t, err, ErrConfig)
			require.ErrorContains(t, err, says)
			for _, inside := range []string{"json:", "Go ", "EOF", "strconv"} {
				require.NotContains(t, err.Error(), inside)
			}
		})
	}
}

func TestStrangersConfig(t *testing.T) {
	entry := strings.TrimSuffix(strings.Repeat(`{},`, 300), ",")
	for says, text := range map[string]string{
		"EOF":               ``,
		"unknown field":     `{"config":{"id":"a","gpu":1}}`,
		"300 CPUID entries": `{"cpuid":[` + entry + `]}`,
		"300 drives":        `{"config":{"drives":[` + entry + `]}}`,
		"KiB of CONFIG":     `{"x":"` + strings.Repeat("x", 2<<20) + `"}`,
	} {
		_, err := parseWireConfig([]byte(text))
		require.ErrorIs(t, err, ErrConfig)
		require.ErrorContains(t, err, says)
	}
}

// FuzzIncomingConfig: no CONFIG makes the destination panic, or build a machine
// with a disk that its operator did not offer.
func FuzzIncomingConfig(f *testing.F) {
	c := Config{ID: "a", Machine: MachineConfig{VCPUCount: 1, MemSizeMiB: 16}}
	seed, err := json.Marshal(wireConfig{Config: c, CPUID: []kvm.CPUIDEntry{{Function: 1}}, TSCKHz: 1})
	require.NoError(f, err)
	f.Add(seed)
	f.Add([]byte(`{"config":{"id":"a","drives":[{"drive_id":"d","path_on_host":"/dev/null"}]},"cpuid":[{"Function":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		w, err := parseWireConfig(data)
		if err != nil || w.Config.Machine.MemSizeMiB > 64 || w.Config.Machine.VCPUCount > 4 {
			return // building large machines is not what is tried here
		}
		m, err := newIncoming(Incoming{}, migration.Offer{Config: data})
		if err != nil {
			return
		}
		if len(m.cfg.Drives) > 0 {
			t.Errorf("opened %v", m.cfg.Drives)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestResolve(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	in, out, other := filepath.Join(dir, "in"), filepath.Join(dir, "out"), filepath.Join(dir, "other")
	require.NoError(t, os.Mkdir(in, 0o700))
	disk := filepath.Join(in, "disk")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.WriteFile(out, nil, 0o600))
	require.NoError(t, os.Symlink(out, filepath.Join(in, "link")))
	require.NoError(t, os.Symlink(disk, filepath.Join(in, "alias")))
	require.NoError(t, os.Symlink(in, other))
	for path, want := range map[string]string{
		disk: disk, filepath.Join(in, "alias"): disk, filepath.Join(other, "disk"): disk,
		filepath.Join(in, "link"): "", filepath.Join(in, "..", "out"): "", in + "/../out": "", out: "",
		filepath.Join(in, "missing"): "", "in/disk": "", in + "x/disk": "", "": "",
	} {
		for _, prefixes := range [][]string{{in}, {other}, {"/no/such", in}} {
			got, ok := Resolve(prefixes, path)
			require.Equal(t, want, got, path)
			require.Equal(t, want != "", ok, path)
		}
		_, ok := Resolve(nil, path)
		require.False(t, ok, "nothing is allowed by itself")
	}

	t.Chdir(dir)
	for _, prefix := range []string{"in", "./in/", "other", "out/../in", "."} {
		got, ok := Resolve([]string{prefix}, disk)
		require.True(t, ok, prefix)
		require.Equal(t, disk, got, prefix)
		_, ok = Resolve([]string{"in"}, out)
		require.False(t, ok, prefix)
	}
	_, ok := Resolve([]string{""}, disk)
	require.False(t, ok, "a prefix that says nothing is not the working directory")
}

// A link that is turned elsewhere after the check does not matter any more.
func TestIncomingDiskIsOpenedWhereItWasChecked(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	require.NoError(t, os.Mkdir(in, 0o700))
	disk, alias := filepath.Join(in, "disk"), filepath.Join(in, "alias")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.WriteFile(out, nil, 0o600))
	require.NoError(t, os.Symlink(disk, alias))
	i := Incoming{AllowPrefixes: []string{in}, Disks: map[string]string{"mine": out}}
	paths, err := i.resolve([]Drive{{ID: "its", PathOnHost: alias}, {ID: "mine", PathOnHost: "/elsewhere"}})
	require.NoError(t, err)
	require.NoError(t, os.Remove(alias))
	require.NoError(t, os.Symlink(out, alias))
	require.Equal(t, map[string]string{"its": disk, "mine": out}, paths)
	_, err = i.resolve([]Drive{{ID: "its", PathOnHost: alias}, {ID: "mine"}})
	require.ErrorIs(t, err, ErrIncompatible)
	require.ErrorContains(t, err, "--allow-path")
}
