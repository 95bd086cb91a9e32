package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// RequestError is the server's refusal.
type RequestError struct {
	Status  int // HTTP status
	Message string
}

func (e *RequestError) Error() string { return e.Message }

// Client talks to the socket of one machine. Its methods may be called from
// any goroutine.
type Client struct {
	path string
	http http.Client
}

// NewClient makes a client for the socket at path. Nothing is opened yet.
func NewClient(path string) *Client {
	c := &Client{path: path}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTimeout}
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}
	return c
}

// Describe tells who answers there.
func (c *Client) Describe(ctx context.Context) (InstanceInfo, error) {
	var v InstanceInfo
	return v, c.do(ctx, http.MethodGet, "/", nil, &v)
}

// Info gives the machine's figures.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var v Info
	return v, c.do(ctx, http.MethodGet, "/vm/info", nil, &v)
}

// Pause stops the guest.
func (c *Client) Pause(ctx context.Context) error {
	return c.do(ctx, http.MethodPatch, "/vm", VMUpdate{State: "Paused"}, nil)
}

// Resume lets it run on; force as in VMUpdate.
func (c *Client) Resume(ctx context.Context, force bool) error {
	return c.do(ctx, http.MethodPatch, "/vm", VMUpdate{State: "Resumed", Force: force}, nil)
}

// ResumeStale is Resume with VMUpdate's ForceStale.
func (c *Client) ResumeStale(ctx context.Context) error {
	return c.do(ctx, http.MethodPatch, "/vm", VMUpdate{State: "Resumed", ForceStale: true}, nil)
}

// Stop ends the guest.
func (c *Client) Stop(ctx context.Context) error {
	return c.do(ctx, http.MethodPut, "/actions", Action{Type: "InstanceStop"}, nil)
}

// Migrate starts a migration and tells onStatus, if not nil, how it stands
// until it has ended; the status that it returns has the report. Ending ctx
// ends the watching, not the migration: see CancelMigration.
func (c *Client) Migrate(ctx context.Context, q MigrationRequest, onStatus func(MigrationStatus)) (MigrationStatus, error) {
	return c.watch(ctx, http.MethodPut, q, onStatus)
}

// WatchMigration tells onStatus how the last migration stands until it has
// ended.
func (c *Client) WatchMigration(ctx context.Context, onStatus func(MigrationStatus)) (MigrationStatus, error) {
	return c.watch(ctx, http.MethodGet, nil, onStatus)
}

// Migration tells how the last migration stands.
func (c *Client) Migration(ctx context.Context) (MigrationStatus, error) {
	var v MigrationStatus
	return v, c.do(ctx, http.MethodGet, "/migration", nil, &v)
}

// UpdateMigration retunes the migration under way.
func (c *Client) UpdateMigration(ctx context.Context, u MigrationUpdate) error {
	return c.do(ctx, http.MethodPatch, "/migration", u, nil)
}

// CancelMigration cancels the migration under way and returns when it has
// ended. It is refused once the guest has been handed over.
func (c *Client) CancelMigration(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, "/migration", nil, nil)
}

// do sends one request and reads the answer into to, if that is not nil.
func (c *Client) do(ctx context.Context, method, path string, body, to any) error {
	res, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if to == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(to); err != nil {
		return fmt.Errorf("answer of %q: %w", c.path, err)
	}
	return nil
}

// send sends one request. The answer is a success and its body still open.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://godwit"+path, r)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.failure(err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	var f Fault
	text, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil || json.Unmarshal(text, &f) != nil || f.Message == "" {
		f.Message = fmt.Sprintf("%q answered %s", c.path, res.Status)
	}
	return nil, &RequestError{Status: res.StatusCode, Message: f.Message}
}

// failure says why no answer came.
func (c *Client) failure(err error) error {
	op := new(net.OpError)
	if !errors.As(err, &op) || op.Op != "dial" {
		return fmt.Errorf("talk to %q: %w", c.path, err)
	}
	advice := "does the machine run, with this --api-sock or --name?"
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		advice = "the socket is another user's: run this command as the user who runs the machine"
	case errors.Is(err, unix.ECONNREFUSED):
		advice = "nobody listens there any more: has the machine's process ended?"
	case errors.Is(err, unix.ENOTSOCK), errors.Is(err, unix.EPROTOTYPE):
		advice = "that is no API socket"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG):
		advice = "the path of a socket has at most 107 bytes"
	case errors.Is(err, unix.EAGAIN), op.Timeout():
		advice = "the machine's process does not accept: is it stopped, or the host overloaded?"
	}
	return fmt.Errorf("connect to %q: %w; %s", c.path, op.Err, advice)
}

// Await waits until somebody listens on the socket, at most for so long: a machine's
// socket is there a little later than its process. It tells nothing of why nobody does.
func (c *Client) Await(ctx context.Context, most time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.path)
		if err == nil {
			_ = conn.Close() // it was only to see
			return
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *Client) watch(ctx context.Context, method string, body any, onStatus func(MigrationStatus)) (MigrationStatus, error) {
	res, err := c.send(ctx, method, "/migration?watch=1", body)
	if err != nil {
		return MigrationStatus{}, err
	}
	defer res.Body.Close()
	d := json.NewDecoder(res.Body)
	for {
		var st MigrationStatus
		if err := d.Decode(&st); err != nil {
			return MigrationStatus{}, fmt.Errorf("watch the migration at %q: %w; the machine's process ended or the connection broke, so the result is not known here", c.path, err)
		}
		if onStatus != nil {
			onStatus(st)
		}
		if st.Report != nil {
			return st, nil
		}
	}
}

// WaitReady waits until a server answers, or ctx ends.
func (c *Client) WaitReady(ctx context.Context) error {
	for {
		_, err := c.Describe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}
