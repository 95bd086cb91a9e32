package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// ConsoleUpdate is the body of PATCH /consoles/{id}, which Firecracker does not
// have.
type ConsoleUpdate struct {
	// Columns and Rows are the size of what shows the console now.
	Columns *uint16 `json:"columns"`
	Rows    *uint16 `json:"rows"`
}

// ResizeConsole tells the guest how large what shows a console is now.
func (i *Instance) ResizeConsole(id string, columns, rows uint16) error {
	m, _, err := i.current()
	if err != nil {
		return err
	}
	return m.ResizeConsole(id, columns, rows)
}

func (s *Server) patchConsole(r *http.Request) (any, error) {
	var u ConsoleUpdate
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	if u.Columns == nil || u.Rows == nil {
		return nil, fmt.Errorf("%w: give both columns and rows", errRequest)
	}
	return nil, s.inst.ResizeConsole(r.PathValue("id"), *u.Columns, *u.Rows)
}

// ResizeConsole tells the guest how large what shows a console is now.
func (c *Client) ResizeConsole(ctx context.Context, id string, columns, rows uint16) error {
	return c.do(ctx, http.MethodPatch, "/consoles/"+url.PathEscape(id), ConsoleUpdate{&columns, &rows}, nil)
}
