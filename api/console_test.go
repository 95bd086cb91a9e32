package api

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestResizeConsole(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	ctx := t.Context()
	refused := func(status int, err error) {
		t.Helper()
		e := new(RequestError)
		require.True(t, errors.As(err, &e), "%v", err)
		require.Equal(t, status, e.Status, e.Message)
	}
	require.NoError(t, r.c.ResizeConsole(ctx, "con0", 132, 50))
	require.Equal(t, [2]uint16{132, 50}, r.vm.size)
	refused(http.StatusNotFound, r.c.ResizeConsole(ctx, "other", 1, 1))
	refused(http.StatusBadRequest, r.c.ResizeConsole(ctx, "channel", 1, 1))
	for _, body := range []any{struct{}{}, map[string]int{"rows": 1}, map[string]int{"rows": 1, "columns": 1 << 16}, map[string]int{"rows": -1, "columns": 1}} {
		refused(http.StatusBadRequest, r.c.do(ctx, http.MethodPatch, "/consoles/con0", body, nil))
	}
	r.inst.Detach()
	refused(http.StatusConflict, r.c.ResizeConsole(ctx, "con0", 1, 1))
}
