package main

import (
	"fmt"
	"strconv"
	"strings"

	"godwit/cmd/godwit/internal/units"
	"godwit/vmm"
)

// networksValue collects `run --net`.
type networksValue []vmm.NetworkInterface

func (v *networksValue) Set(s string) error {
	n, err := parseNetwork(s)
	if err == nil {
		*v = append(*v, n)
	}
	return err
}

func (v *networksValue) Type() string   { return "tap=NAME[,..]" }
func (v *networksValue) String() string { return "" }

// parseNetwork reads tap=NAME[,mac=M][,bridge=B][,queues=N][,mtu=N][,id=S]. What
// a value may be is vmm's to say.
func parseNetwork(s string) (vmm.NetworkInterface, error) {
	bad := func(what string) (vmm.NetworkInterface, error) {
		return vmm.NetworkInterface{}, fmt.Errorf("net %.200q: %w: %s; write tap=NAME[,mac=ADDRESS][,bridge=NAME][,queues=N][,mtu=BYTES][,id=NAME]", s, units.ErrSyntax, what)
	}
	pairs, err := units.ParsePairs(s)
	if err != nil {
		return vmm.NetworkInterface{}, err
	}
	var n vmm.NetworkInterface
	for _, p := range pairs {
		var number *int
		switch {
		case p.Value == "":
			return bad(fmt.Sprintf("%.40q", p.Key))
		case p.Key == "tap":
			n.HostDevName = p.Value
		case p.Key == "mac":
			n.GuestMAC = p.Value
		case p.Key == "bridge":
			n.Bridge = p.Value
		case p.Key == "id":
			n.ID = p.Value
		case p.Key == "queues":
			number = &n.QueuePairs
		case p.Key == "mtu":
			number = &n.MTU
		default:
			return bad(fmt.Sprintf("%.40q", p.Key))
		}
		if number == nil {
			continue
		}
		if *number, err = strconv.Atoi(p.Value); err != nil || *number < 1 {
			return bad(fmt.Sprintf("%s=%.40q is no number above 0", p.Key, p.Value))
		}
	}
	if n.HostDevName == "" {
		return bad("no tap")
	}
	return n, nil
}

// networkMapValue collects `receive --net ID=TAP[,bridge=NAME]`.
type networkMapValue map[string]vmm.HostNetwork

func (v networkMapValue) Set(s string) error {
	bad := fmt.Errorf("net %.200q: %w; write ID=TAP[,bridge=NAME], for example net0=tap7,bridge=br0", s, units.ErrSyntax)
	id, rest, ok := strings.Cut(s, "=")
	name, option, more := strings.Cut(rest, ",")
	if !ok || id == "" || name == "" {
		return bad
	}
	n := vmm.HostNetwork{Tap: name}
	if more {
		key, bridge, ok := strings.Cut(option, "=")
		if !ok || key != "bridge" || bridge == "" || strings.Contains(bridge, ",") {
			return bad
		}
		n.Bridge = bridge
	}
	if id == "tap" || id == "mac" {
		return bad // as run --net has it
	}
	if _, twice := v[id]; twice {
		return fmt.Errorf("net %.200q: %w: %s given twice", s, units.ErrSyntax, id)
	}
	v[id] = n
	return nil
}

func (v networkMapValue) Type() string   { return "ID=TAP[,bridge=NAME]" }
func (v networkMapValue) String() string { return "" }
