package migration

import (
	"fmt"

	"godwit/migration/policy"
)

// Not every way of moving a machine has a use for every option. What asks for more
// than the default, and would do nothing, is refused by name: who sets it
// expects something of it.

// setting is an option, and whether it asks for more than the default.
type setting struct {
	what string
	set  bool
}

// whileCopying are the options that act on a guest that runs while it is copied.
// The defaults are filled in.
func (o *SendOptions) whileCopying() []setting {
	return []setting{
		{"a throttle", o.Policies.Throttle != policy.Throttle(policy.None{})},
		{"a stop rule", o.Policies.Stop != policy.Stop(policy.LastSync{MaxRounds: policy.DefaultMaxRounds})},
		{"a downtime limit", o.DowntimeLimit != DefaultDowntimeLimit},
	}
}

// toPages are the options that act on pages as they go.
func (o *SendOptions) toPages() []setting {
	return []setting{
		{"an order of pages", o.Policies.Order != policy.Order(policy.Address{})},
		{"a page codec", o.Policies.Codec.ID() != 0},
	}
}

// checkUnused refuses what a session of this mode would not heed.
func (o *SendOptions) checkUnused() error {
	var all []setting
	switch {
	case o.Local:
		all = append(o.toPages(), o.whileCopying()...)
		all = append(all, setting{"a bandwidth limit", o.Bandwidth != 0})
	case o.Mode == StopAndCopy:
		all = o.whileCopying()
	}
	for _, s := range all {
		if s.set {
			return o.useless(s.what)
		}
	}
	return nil
}

// useless is why an option does nothing in a session of this mode.
func (o *SendOptions) useless(what string) error {
	if o.Local {
		return fmt.Errorf("%w: %w with %s: no page is copied; leave it out, or leave local out", ErrOptions, ErrLocal, what)
	}
	return fmt.Errorf("%w: %s in mode %q: the guest is paused before anything is copied; leave it out, or use mode %q", ErrOptions, what, o.Mode, PreCopy)
}

// CheckSave refuses options that are wrong and, as a file has no peer and its
// machine is paused first, those that Save would not heed. A file is always
// StopAndCopy; PreCopy, the default, is taken for that.
func CheckSave(o SendOptions) error {
	if o.Mode == StopAndCopy {
		o.Mode = PreCopy // what both have no use for is told of files
	}
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	all := append(o.toPages(), o.whileCopying()...)
	for _, s := range append(all, setting{fmt.Sprintf("%d streams", o.Streams), o.Streams > 1}) {
		if s.set {
			return fmt.Errorf("%w: %s on the way into a file: the guest is paused and its memory written once, as it is; leave it out", ErrOptions, s.what)
		}
	}
	switch {
	case o.Local:
		return fmt.Errorf("%w: %w into a file; memory changes hands between processes only", ErrOptions, ErrLocal)
	case o.FreePageHint:
		return fmt.Errorf("%w: %w on the way into a file: the guest is paused first and cannot be asked", ErrOptions, ErrHint)
	}
	return nil
}
