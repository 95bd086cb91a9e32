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
	"strings"
	"sync"
	"time"

	"godwit/migration"
	"godwit/migration/policy"
	"godwit/unixsocket"
	"godwit/vmm"
)

const (
	maxBody = 64 << 10 // bytes of a request; the largest legal one is far below
	// bodyTime is how long a request's body may take: all of it fits into one packet.
	bodyTime = 10 * time.Second
	// idleTime is how long a connection may stay without a request.
	idleTime = time.Minute
	// watchEvery is how often a watcher hears of a migration without news.
	watchEvery = 200 * time.Millisecond
)

// Server serves an Instance on a socket.
type Server struct {
	inst *Instance
	http http.Server
	end  context.CancelFunc // ends what requests wait for
	done chan struct{}      // closed when Serve has returned

	mu      sync.Mutex
	busy    map[net.Conn]struct{} // connections with a request under way
	closing bool
	idle    chan struct{} // closed when closing and none is busy
}

// Listen makes the socket at path and serves inst there until Close.
func Listen(path string, inst *Instance) (*Server, error) {
	l, err := unixsocket.Listen(path)
	if err != nil {
		return nil, err
	}
	return Serve(l, inst), nil
}

// Serve serves inst on l until Close, which closes l.
func Serve(l net.Listener, inst *Instance) *Server {
	ctx, end := context.WithCancel(context.Background())
	s := &Server{inst: inst, end: end, done: make(chan struct{}), busy: map[net.Conn]struct{}{}, idle: make(chan struct{})}
	s.http = http.Server{
		Handler:           s.whole(s.routes()),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState:         s.track,
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l) // ends with Close; a listener that fails ends it too
	}()
	return s
}

// connKey finds a request's connection in its context.
type connKey struct{}

// track keeps the set of connections whose request is not yet answered. One enters
// it when its request has come in full, by whole.
func (s *Server) track(c net.Conn, state http.ConnState) {
	if state == http.StateActive {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, c)
	s.checkIdle()
}

// whole hands requests on that have come in full. A body that takes too long, or is
// still under way when the server ends, holds nothing up: reading it fails.
func (s *Server) whole(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := http.NewResponseController(w)
		_ = conn.SetReadDeadline(time.Now().Add(bodyTime)) // a connection that is gone shows in the read
		unhook := context.AfterFunc(r.Context(), func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if unhook() && err == nil {
			err = conn.SetReadDeadline(time.Time{})
		}
		if err != nil {
			w.Header().Set("Connection", "close") // what is left of the body is nobody's
			answer(w, nil, fmt.Errorf("%w: body: %w", errRequest, err))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
			s.mu.Lock()
			s.busy[c] = struct{}{}
			s.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

// checkIdle tells Close that there is nothing to wait for. mu is held.
func (s *Server) checkIdle() {
	if s.closing && len(s.busy) == 0 {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
}

// Close ends what requests wait for, gives answers under way up to timeout to
// reach their clients, so that whoever watches a migration hears its end, closes
// all connections and removes the socket. It is called once.
//
// http.Server.Shutdown will not do: it waits seconds for a connection that has
// not asked anything yet.
func (s *Server) Close(timeout time.Duration) error {
	s.http.SetKeepAlivesEnabled(false)
	s.end()
	s.mu.Lock()
	s.closing = true
	s.checkIdle()
	s.mu.Unlock()
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-s.idle:
	case <-t.C:
	}
	err := s.http.Close()
	<-s.done
	return err
}

// handler answers one request with a value to be written as JSON, or nil for
// 204, or an error.
type handler func(r *http.Request) (any, error)

// resources are what the API has, "METHOD PATH" each: docs/openapi.json describes
// them.
func (s *Server) resources() map[string]http.HandlerFunc {
	on := func(h handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			v, err := h(r)
			answer(w, v, err)
		}
	}
	return map[string]http.HandlerFunc{
		"GET /{$}":                             on(func(*http.Request) (any, error) { return s.inst.Describe(), nil }),
		"GET /vm/info":                         on(func(*http.Request) (any, error) { return s.inst.Info() }),
		"PATCH /vm":                            on(s.patchVM),
		"PUT /actions":                         on(s.putActions),
		"GET /balloon":                         on(func(*http.Request) (any, error) { return s.inst.Balloon() }),
		"PATCH /balloon":                       on(s.patchBalloon),
		"GET /balloon/statistics":              on(func(*http.Request) (any, error) { return s.inst.BalloonStatistics() }),
		"PATCH /balloon/statistics":            on(s.patchBalloonStatistics),
		"PATCH /network-interfaces/{iface_id}": on(s.patchNetwork),
		"PATCH /consoles/{id}":                 on(s.patchConsole),
		"GET /migration":                       s.getMigration,
		"PUT /migration":                       s.putMigration,
		"PATCH /migration":                     on(s.patchMigration),
		"DELETE /migration":                    on(func(r *http.Request) (any, error) { return nil, s.inst.CancelMigration(r.Context()) }),
	}
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range s.resources() {
		mux.HandleFunc(pattern, h)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		err := fmt.Errorf("%w: no resource %.200q", errNotFound, r.URL.Path)
		if allowed := methodsOf(mux, r); len(allowed) > 0 {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			err = fmt.Errorf("%w: %.20q of %.200q; there is %s", errMethod, r.Method, r.URL.Path, strings.Join(allowed, ", "))
		}
		answer(w, nil, err)
	})
}

// methodsOf are the methods that r's path has.
func methodsOf(mux *http.ServeMux, r *http.Request) []string {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := mux.Handler(other); pattern != "" {
			allowed = append(allowed, method)
		}
	}
	return allowed
}

func (s *Server) patchVM(r *http.Request) (any, error) {
	var u VMUpdate
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	switch {
	case u.State == "Paused" && !u.Force && !u.ForceStale:
		return nil, s.inst.Pause(r.Context())
	case u.State == "Resumed":
		return nil, s.inst.Resume(r.Context(), u.Force, u.ForceStale)
	}
	return nil, fmt.Errorf("%w: state %.40q; use Paused or Resumed, force only with the latter", errRequest, u.State)
}

func (s *Server) putActions(r *http.Request) (any, error) {
	var a Action
	if err := decode(r, &a); err != nil {
		return nil, err
	}
	if a.Type != "InstanceStop" {
		return nil, fmt.Errorf("%w: action_type %.40q; there is InstanceStop", errRequest, a.Type)
	}
	return nil, s.inst.Stop()
}

func (s *Server) patchMigration(r *http.Request) (any, error) {
	var u MigrationUpdate
	if err := decode(r, &u); err != nil {
		return nil, err
	}
	return nil, s.inst.UpdateMigration(u)
}

func (s *Server) getMigration(w http.ResponseWriter, r *http.Request) {
	mv, err := s.inst.last()
	switch {
	case err != nil:
		answer(w, nil, err)
	case wantsWatch(r):
		watch(w, r, mv)
	default:
		answer(w, mv.status(), nil)
	}
}

func (s *Server) putMigration(w http.ResponseWriter, r *http.Request) {
	var q MigrationRequest
	err := decode(r, &q)
	var mv *move
	if err == nil {
		mv, err = s.inst.start(q)
	}
	if err != nil || !wantsWatch(r) {
		answer(w, nil, err)
		return
	}
	watch(w, r, mv)
}

func wantsWatch(r *http.Request) bool { return r.URL.Query().Get("watch") == "1" }

// watch writes the status as a line of JSON at every change and every
// watchEvery; the last line has the report. A client that goes away ends it,
// not the migration.
func watch(w http.ResponseWriter, r *http.Request, mv *move) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc, out := json.NewEncoder(w), http.NewResponseController(w)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		news := mv.news() // before the status, so that no change falls between
		st := mv.status()
		// A client that reads nothing for a minute is gone.
		_ = out.SetWriteDeadline(time.Now().Add(time.Minute))
		if enc.Encode(st) != nil || out.Flush() != nil || st.Report != nil {
			return
		}
		select {
		case <-mv.done:
		case <-news:
		case <-tick.C:
		case <-r.Context().Done():
			if !mv.ended() { // else its end is still to be told
				return
			}
		}
	}
}

// Errors of the server itself.
var (
	errRequest  = errors.New("bad request")
	errNotFound = errors.New("not found")
	errMethod   = errors.New("method not allowed")
)

// decode reads the body, exactly one JSON object of known fields.
func decode(r *http.Request, to any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("%w: body: %s", errRequest, bodyFault(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: body: more than one JSON value", errRequest)
	}
	return nil
}

// bodyFault is why a body is no request, in the words of JSON.
func bodyFault(err error) string {
	kind := new(json.UnmarshalTypeError)
	switch {
	case errors.Is(err, io.EOF):
		return "it is empty; a JSON object is expected"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "it ends inside the JSON object"
	case errors.As(err, &kind):
		return fmt.Sprintf("field %q cannot be a %s", kind.Field, kind.Value)
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

// answer writes v as 200, nil as 204, an error as its status and a Fault.
func answer(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	switch {
	case err != nil:
		status, v = statusOf(err), Fault{Message: err.Error()}
	case v == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that is gone needs no answer
}

func statusOf(err error) int {
	for _, e := range []error{errRequest, ErrAddress, ErrTLS, vmm.ErrConfig, migration.ErrOptions, policy.ErrBadPolicy} {
		if errors.Is(err, e) {
			return http.StatusBadRequest
		}
	}
	if errors.Is(err, errMethod) {
		return http.StatusMethodNotAllowed
	}
	for _, e := range []error{errNotFound, ErrNoMigration, vmm.ErrNoBalloon, vmm.ErrNoNetwork, vmm.ErrNoConsole} {
		if errors.Is(err, e) {
			return http.StatusNotFound
		}
	}
	// What is left is right in itself and refused by the machine's state.
	return http.StatusConflict
}
