package vmm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"godwit/kvm"
)

// parseWireConfig reads a stranger's CONFIG. A field that we do not know may be
// a device that we do not have: refused.
func parseWireConfig(data []byte) (wireConfig, error) {
	var w wireConfig
	if len(data) > maxWireConfig {
		return w, fmt.Errorf("%w: %d KiB of CONFIG, at most %d", ErrConfig, len(data)>>10, maxWireConfig>>10)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil {
		return wireConfig{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if len(w.CPUID) > maxCPUIDEntries || len(w.Config.Drives) > MaxDrives {
		return wireConfig{}, fmt.Errorf("%w: %d CPUID entries and %d drives; at most %d and %d",
			ErrConfig, len(w.CPUID), len(w.Config.Drives), maxCPUIDEntries, MaxDrives)
	}
	return w, nil
}

// Limits of what a stranger's CONFIG may make us allocate.
const (
	maxWireConfig   = 1 << 20
	maxCPUIDEntries = 256 // KVM_MAX_CPUID_ENTRIES, as in package kvm
	maxMissing      = 64  // CPU features that a refusal names
)

// checkHost gives a peer's CPUID table in its normal form, or refuses it, by name of
// what this host cannot give. Memory is grant's to judge, disks are checked when they
// are opened.
func checkHost(cpuid []kvm.CPUIDEntry) ([]kvm.CPUIDEntry, error) {
	if len(cpuid) == 0 {
		return nil, fmt.Errorf("%w: CONFIG has no CPUID table", ErrConfig)
	}
	cpuid, err := normalCPUID(cpuid)
	if err != nil {
		return nil, err
	}
	sys, err := kvm.Open()
	if err != nil {
		return nil, err
	}
	defer sys.Close()
	have, err := baseCPUID(sys)
	if err != nil {
		return nil, err
	}
	if missing := missingFeatures(cpuid, have); len(missing) > 0 {
		return nil, fmt.Errorf("%w: its vCPUs were promised CPU features that this host lacks: %s",
			ErrIncompatible, strings.Join(missing[:min(len(missing), maxMissing)], ", "))
	}
	return cpuid, nil
}

// resolve finds the path of every drive, or refuses: what a stranger names is
// opened only where the operator said so.
func (in Incoming) resolve(drives []Drive) (map[string]string, error) {
	out := map[string]string{}
	for _, d := range drives {
		if p, ok := in.Disks[d.ID]; ok {
			out[d.ID] = p
			continue
		}
		p, ok := Resolve(in.AllowPrefixes, d.PathOnHost)
		if !ok {
			return nil, fmt.Errorf("%w: disk %q is %q at the source and nothing here says what to open; start the receiver with --disk %s=PATH, or --allow-path PREFIX",
				ErrIncompatible, d.ID, d.PathOnHost, d.ID)
		}
		out[d.ID] = p
	}
	for id := range in.Disks {
		if !slices.ContainsFunc(drives, func(d Drive) bool { return d.ID == id }) {
			return nil, fmt.Errorf("%w: --disk %s=… names no disk of the machine", ErrIncompatible, id)
		}
	}
	return out, nil
}
