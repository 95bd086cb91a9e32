package tool

import (
	"context"
	"errors"
	"fmt"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

// RepairKind says what Check may change.
type RepairKind string

// What may be repaired.
const (
	RepairNothing RepairKind = ""
	RepairLeaks   RepairKind = "leaks"
	RepairAll     RepairKind = "all"
)

// Checked is what Check found.
type Checked struct {
	Path string `json:"path"`
	// Status is clean, leaks or corrupt: what is left after the repair.
	Status string `json:"status"`
	*qcow2.CheckReport
	// RepairedCorruptions and RepairedLeaks are gone; Found describes them.
	RepairedCorruptions int64    `json:"repaired_corruptions"`
	RepairedLeaks       int64    `json:"repaired_leaks"`
	Found               []string `json:"found,omitempty"`
}

// Check follows every reference of a qcow2 image, and repairs it if asked. It
// describes up to limit findings.
func Check(ctx context.Context, path string, repair RepairKind, limit int) (*Checked, error) {
	f, err := blockfile.OpenHost(path, blockfile.Options{ReadOnly: repair == RepairNothing})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := &Checked{Path: path}
	var before *qcow2.CheckReport
	if repair == RepairNothing {
		c.CheckReport, err = qcow2.Check(ctx, f, limit)
		before = c.CheckReport
	} else {
		before, c.CheckReport, err = qcow2.Repair(ctx, f, repair == RepairAll, limit)
	}
	switch {
	case errors.Is(err, qcow2.ErrMagic):
		if _, foreign := detect(f); foreign != nil {
			err = foreign
		}
		return nil, fmt.Errorf("check %q: %w; only qcow2 images have something to check", path, err)
	case errors.Is(err, qcow2.ErrUnrepairable):
		return nil, fmt.Errorf("repair %q, which has %d corruptions and %d leaks: %w", path, before.Corruptions, before.Leaks, err)
	case err != nil:
		return nil, fmt.Errorf("check %q: %w", path, err)
	}
	if c.RepairedCorruptions, c.RepairedLeaks = before.Corruptions-c.Corruptions, before.Leaks-c.Leaks; c.RepairedCorruptions > 0 || c.RepairedLeaks > 0 {
		c.Found = before.Findings
	}
	switch {
	case c.Corruptions > 0:
		c.Status = "corrupt"
	case c.Leaks > 0:
		c.Status = "leaks"
	default:
		c.Status = "clean"
	}
	return c, nil
}
