package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// NetworkUpdate is the body of PATCH /network-interfaces/{iface_id}. Firecracker has
// rate limits there, which are not known here.
type NetworkUpdate struct {
	// LinkUp plugs the cable in or pulls it.
	LinkUp *bool `json:"link_up"`
}

// SetLink plugs the cable of a network card in, or pulls it.
func (i *Instance) SetLink(id string, up bool) error {
	m, _, err := i.current()
	if err != nil {
		return err
	}
	return m.SetLink(id, up)
}

func (s *Server) patchNetwork(r *http.Request) (any, error) {
	var u NetworkUpdate
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	if u.LinkUp == nil {
		return nil, fmt.Errorf("%w: no link_up", errRequest)
	}
	return nil, s.inst.SetLink(r.PathValue("iface_id"), *u.LinkUp)
}

// SetLink plugs the cable of a network card in, or pulls it.
func (c *Client) SetLink(ctx context.Context, id string, up bool) error {
	return c.do(ctx, http.MethodPatch, "/network-interfaces/"+url.PathEscape(id), NetworkUpdate{&up}, nil)
}
