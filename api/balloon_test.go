package api

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/virtio/balloon"
	"godwit/vmm"
)

func TestBalloon(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	ctx := t.Context()
	refused := func(status int, err error) {
		t.Helper()
		e := new(RequestError)
		require.True(t, errors.As(err, &e), "%v", err)
		require.Equal(t, status, e.Status, e.Message)
	}
	_, err := r.c.Balloon(ctx)
	refused(http.StatusNotFound, err)
	refused(http.StatusNotFound, r.c.SetBalloon(ctx, 1))

	r.vm.balloon = &vmm.BalloonInfo{TargetMiB: 64, ActualMiB: 63, DeflateOnOOM: true, FreePageReporting: true}
	_, err = r.c.BalloonStatistics(ctx)
	refused(http.StatusNotFound, err)
	require.NoError(t, r.c.SetBalloon(ctx, 0))
	require.NoError(t, r.c.SetBalloon(ctx, 100))
	refused(http.StatusBadRequest, r.c.SetBalloon(ctx, 1001))
	b, err := r.c.Balloon(ctx)
	require.NoError(t, err)
	require.Equal(t, vmm.Balloon{AmountMiB: 100, DeflateOnOOM: true, FreePageReporting: true}, b)

	require.NoError(t, r.c.SetBalloonInterval(ctx, 7))
	free := uint64(4711)
	r.vm.balloon.Guest = &balloon.GuestStats{FreeBytes: &free}
	s, err := r.c.BalloonStatistics(ctx)
	require.NoError(t, err)
	require.Equal(t, BalloonStats{TargetPages: 25600, ActualPages: 63 * 256, TargetMiB: 100, ActualMiB: 63, FreeMemory: &free}, s)

	for _, path := range []string{"/balloon", "/balloon/statistics"} {
		refused(http.StatusBadRequest, r.c.do(ctx, http.MethodPatch, path, struct{}{}, nil))
		refused(http.StatusBadRequest, r.c.do(ctx, http.MethodPatch, path, map[string]int{"x": 1}, nil))
	}
	_, err = r.c.Migrate(ctx, MigrationRequest{To: "file:/nowhere/x", FreePageHint: true}, nil)
	refused(http.StatusBadRequest, err)
	_, err = r.c.Migrate(ctx, MigrationRequest{To: "unix:/nowhere/x", FreePageHint: true, Mode: "stop-and-copy"}, nil)
	refused(http.StatusBadRequest, err)
	r.inst.Detach()
	refused(http.StatusConflict, r.c.SetBalloon(ctx, 1))
}
