package api

import (
	"context"
	"fmt"
	"net/http"

	"godwit/vmm"
)

// BalloonUpdate is the body of PATCH /balloon.
type BalloonUpdate struct {
	AmountMiB *int `json:"amount_mib"` // the size to ask the guest for
}

// BalloonStatsUpdate is the body of PATCH /balloon/statistics.
type BalloonStatsUpdate struct {
	PollingIntervalS *int `json:"stats_polling_interval_s"` // seconds, 1 or more
}

// BalloonStats answers GET /balloon/statistics, in Firecracker's words. What the
// guest has not told is left out.
type BalloonStats struct {
	TargetPages        int     `json:"target_pages"` // of 4 KiB
	ActualPages        int     `json:"actual_pages"` // of 4 KiB
	TargetMiB          int     `json:"target_mib"`
	ActualMiB          int     `json:"actual_mib"`
	SwapIn             *uint64 `json:"swap_in,omitempty"`  // bytes
	SwapOut            *uint64 `json:"swap_out,omitempty"` // bytes
	MajorFaults        *uint64 `json:"major_faults,omitempty"`
	MinorFaults        *uint64 `json:"minor_faults,omitempty"`
	FreeMemory         *uint64 `json:"free_memory,omitempty"`      // bytes
	TotalMemory        *uint64 `json:"total_memory,omitempty"`     // bytes
	AvailableMemory    *uint64 `json:"available_memory,omitempty"` // bytes
	DiskCaches         *uint64 `json:"disk_caches,omitempty"`      // bytes
	HugetlbAllocations *uint64 `json:"hugetlb_allocations,omitempty"`
	HugetlbFailures    *uint64 `json:"hugetlb_failures,omitempty"`
}

// pagesPerMiB converts to the unit of the balloon's protocol.
const pagesPerMiB = 256

// balloon gives the figures of the machine's balloon.
func (i *Instance) balloon() (*vmm.BalloonInfo, error) {
	m, _, err := i.current()
	if err != nil {
		return nil, err
	}
	info, err := m.Info()
	if err == nil && info.Balloon == nil {
		err = fmt.Errorf("%w; start it with --balloon size=0", vmm.ErrNoBalloon)
	}
	return info.Balloon, err
}

// Balloon answers GET /balloon: the configuration as it now is.
func (i *Instance) Balloon() (*vmm.Balloon, error) {
	b, err := i.balloon()
	if err != nil {
		return nil, err
	}
	return &vmm.Balloon{AmountMiB: b.TargetMiB, DeflateOnOOM: b.DeflateOnOOM, StatsPollingIntervalS: b.StatsIntervalS,
		FreePageHinting: b.FreePageHinting, FreePageReporting: b.FreePageReporting}, nil
}

// BalloonStatistics answers GET /balloon/statistics.
func (i *Instance) BalloonStatistics() (*BalloonStats, error) {
	b, err := i.balloon()
	if err != nil {
		return nil, err
	}
	if b.StatsIntervalS == 0 {
		return nil, fmt.Errorf("%w: one with statistics; start it with --balloon stats=5s", vmm.ErrNoBalloon)
	}
	s := &BalloonStats{TargetPages: b.TargetMiB * pagesPerMiB, ActualPages: b.ActualMiB * pagesPerMiB, TargetMiB: b.TargetMiB, ActualMiB: b.ActualMiB}
	if g := b.Guest; g != nil {
		s.SwapIn, s.SwapOut, s.MajorFaults, s.MinorFaults = g.SwapInBytes, g.SwapOutBytes, g.MajorFaults, g.MinorFaults
		s.FreeMemory, s.TotalMemory, s.AvailableMemory, s.DiskCaches = g.FreeBytes, g.TotalBytes, g.AvailableBytes, g.CacheBytes
		s.HugetlbAllocations, s.HugetlbFailures = g.HugetlbAllocated, g.HugetlbFailed
	}
	return s, nil
}

// SetBalloon asks the guest for a balloon of so many MiB. It does not wait.
func (i *Instance) SetBalloon(mib int) error {
	m, _, err := i.current()
	if err != nil {
		return err
	}
	return m.SetBalloon(mib)
}

// SetBalloonInterval changes how often the guest is asked for its figures.
func (i *Instance) SetBalloonInterval(seconds int) error {
	m, _, err := i.current()
	if err != nil {
		return err
	}
	return m.SetBalloonInterval(seconds)
}

func (s *Server) patchBalloon(r *http.Request) (any, error) {
	var u BalloonUpdate
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	if u.AmountMiB == nil {
		return nil, fmt.Errorf("%w: no amount_mib", errRequest)
	}
	return nil, s.inst.SetBalloon(*u.AmountMiB)
}

func (s *Server) patchBalloonStatistics(r *http.Request) (any, error) {
	var u BalloonStatsUpdate
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	if u.PollingIntervalS == nil {
		return nil, fmt.Errorf("%w: no stats_polling_interval_s", errRequest)
	}
	return nil, s.inst.SetBalloonInterval(*u.PollingIntervalS)
}

// Balloon gives the balloon's configuration as it now is.
func (c *Client) Balloon(ctx context.Context) (vmm.Balloon, error) {
	var v vmm.Balloon
	return v, c.do(ctx, http.MethodGet, "/balloon", nil, &v)
}

// SetBalloon asks the guest for a balloon of so many MiB.
func (c *Client) SetBalloon(ctx context.Context, mib int) error {
	return c.do(ctx, http.MethodPatch, "/balloon", BalloonUpdate{&mib}, nil)
}

// BalloonStatistics gives what the guest said of its memory.
func (c *Client) BalloonStatistics(ctx context.Context) (BalloonStats, error) {
	var v BalloonStats
	return v, c.do(ctx, http.MethodGet, "/balloon/statistics", nil, &v)
}

// SetBalloonInterval changes how often the guest is asked for its figures.
func (c *Client) SetBalloonInterval(ctx context.Context, seconds int) error {
	return c.do(ctx, http.MethodPatch, "/balloon/statistics", BalloonStatsUpdate{&seconds}, nil)
}
