package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// qmp is a client of QEMU's machine protocol (QEMU, docs/interop/qmp-spec.txt):
// JSON objects both ways, answers in the order of commands, events in between.
// Commands are for one goroutine at a time.
type qmp struct {
	watch
	conn    net.Conn
	replies chan qmpMessage

	events sync.Mutex
	seen   []qmpEvent
	err    error // why reading ended
}

type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Greeting  json.RawMessage `json:"QMP"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// qmpEvent is an event and when QEMU says that it was.
type qmpEvent struct {
	name string
	at   time.Time
	data struct {
		Status string `json:"status"` // of MIGRATION
		Pass   int    `json:"pass"`   // of MIGRATION_PASS
	}
}

var errQMP = errors.New("QMP")

// dialQMP connects to the socket that p makes, and ends the negotiation.
func dialQMP(ctx context.Context, path string, p *process) (*qmp, error) {
	var conn net.Conn
	err := await(ctx, "QEMU's QMP socket", &p.diag.watch, []*process{p}, func() (bool, error) {
		c, err := net.Dial("unix", path)
		if err != nil {
			return false, nil // it is not there yet, or the process ends and says why
		}
		conn = c
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return newQMP(ctx, conn)
}

func newQMP(ctx context.Context, conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, replies: make(chan qmpMessage, 1)}
	go q.read()
	select {
	case m, ok := <-q.replies:
		if !ok || m.Greeting == nil {
			q.close()
			return nil, fmt.Errorf("%w: no greeting from QEMU: %w", errQMP, q.readError())
		}
	case <-ctx.Done():
		q.close()
		return nil, fmt.Errorf("%w: wait for the greeting: %w", errQMP, context.Cause(ctx))
	}
	if err := q.do(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// close ends the connection and, with it, the reader.
func (q *qmp) close() {
	_ = q.conn.Close() // the process behind it is killed next
	for range q.replies {
	}
}

func (q *qmp) read() {
	defer close(q.replies)
	defer q.changed()
	for d := json.NewDecoder(q.conn); ; {
		var m qmpMessage
		if err := d.Decode(&m); err != nil {
			q.events.Lock()
			q.err = err
			q.events.Unlock()
			return
		}
		if m.Event == "" {
			q.replies <- m
			continue
		}
		e := qmpEvent{name: m.Event, at: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)}
		_ = json.Unmarshal(m.Data, &e.data) // events of other kinds have other data
		q.events.Lock()
		q.seen = append(q.seen, e)
		q.events.Unlock()
		q.changed()
	}
}

func (q *qmp) readError() error {
	q.events.Lock()
	defer q.events.Unlock()
	if q.err == nil {
		return errors.New("it sent something else")
	}
	return q.err
}

// do executes a command and reads what it returns into to, if that is not nil.
func (q *qmp) do(ctx context.Context, command string, arguments, to any) error {
	deadline, _ := ctx.Deadline() // the zero time is none
	if err := q.conn.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("%w: %s: %w", errQMP, command, err)
	}
	order := map[string]any{"execute": command}
	if arguments != nil {
		order["arguments"] = arguments
	}
	if err := json.NewEncoder(q.conn).Encode(order); err != nil {
		return fmt.Errorf("%w: %s: %w", errQMP, command, err)
	}
	select {
	case m, ok := <-q.replies:
		switch {
		case !ok:
			return fmt.Errorf("%w: %s: the connection ended: %w", errQMP, command, q.readError())
		case m.Error != nil:
			return fmt.Errorf("%w: %s %v: %s: %s", errQMP, command, arguments, m.Error.Class, m.Error.Desc)
		case to == nil:
			return nil
		}
		if err := json.Unmarshal(m.Return, to); err != nil {
			return fmt.Errorf("%w: answer to %s: %w", errQMP, command, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %s: %w", errQMP, command, context.Cause(ctx))
	}
}

// first is the first event that fits, if it came.
func (q *qmp) first(is func(qmpEvent) bool) (qmpEvent, bool) {
	q.events.Lock()
	defer q.events.Unlock()
	for _, e := range q.seen {
		if is(e) {
			return e, true
		}
	}
	return qmpEvent{}, false
}
