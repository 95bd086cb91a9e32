package api

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSetLink(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	ctx := t.Context()
	refused := func(status int, err error) {
		t.Helper()
		e := new(RequestError)
		require.True(t, errors.As(err, &e), "%v", err)
		require.Equal(t, status, e.Status, e.Message)
	}
	require.NoError(t, r.c.SetLink(ctx, "net0", false))
	require.Equal(t, map[string]bool{"net0": false}, r.vm.links)
	require.NoError(t, r.c.SetLink(ctx, "net0", true))
	require.Equal(t, map[string]bool{"net0": true}, r.vm.links)
	refused(http.StatusNotFound, r.c.SetLink(ctx, "other", true))
	refused(http.StatusNotFound, r.c.SetLink(ctx, "", true))
	refused(http.StatusBadRequest, r.c.do(ctx, http.MethodPatch, "/network-interfaces/net0", struct{}{}, nil))
	refused(http.StatusBadRequest, r.c.do(ctx, http.MethodPatch, "/network-interfaces/net0", map[string]int{"x": 1}, nil))
	r.inst.Detach()
	refused(http.StatusConflict, r.c.SetLink(ctx, "net0", true))
}
