package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`

// fakeQEMU greets and answers each command with what answer says.
func fakeQEMU(t *testing.T, hello string, answer func(command string, arguments json.RawMessage) string) net.Conn {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		if _, err := fmt.Fprintln(theirs, hello); err != nil {
			return
		}
		for in := bufio.NewScanner(theirs); in.Scan(); {
			var order struct {
				Execute   string          `json:"execute"`
				Arguments json.RawMessage `json:"arguments"`
			}
			if err := json.Unmarshal(in.Bytes(), &order); err != nil {
				return
			}
			text := `{"return": {}}`
			if order.Execute != "qmp_capabilities" {
				text = answer(order.Execute, order.Arguments)
			}
			if text == "" {
				return // hangs up
			}
			if _, err := fmt.Fprintln(theirs, text); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { ours.Close(); <-done })
	return ours
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestQMPKeepsEventsAndAnswersApart(t *testing.T) {
	conn := fakeQEMU(t, greeting, func(command string, arguments json.RawMessage) string {
		require.Equal(t, "query-migrate", command)
		require.JSONEq(t, `{"a": 1}`, string(arguments))
		return `{"timestamp": {"seconds": 7, "microseconds": 5000}, "event": "MIGRATION_PASS", "data": {"pass": 2}}
{"timestamp": {"seconds": 8, "microseconds": 0}, "event": "JOB", "data": "odd"}
{"return": {"status": "active"}}
{"timestamp": {"seconds": 9, "microseconds": 0}, "event": "MIGRATION", "data": {"status": "completed"}}`
	})
	ctx := deadline(t)
	q, err := newQMP(ctx, conn)
	require.NoError(t, err)
	var got struct{ Status string }
	require.NoError(t, q.do(ctx, "query-migrate", map[string]int{"a": 1}, &got))
	require.Equal(t, "active", got.Status)
	var e qmpEvent
	require.NoError(t, await(ctx, "the event", &q.watch, nil, func() (ok bool, _ error) {
		e, ok = q.first(func(e qmpEvent) bool { return e.name == "MIGRATION" && e.data.Status == "completed" })
		return ok, nil
	}))
	e, ok := q.first(func(e qmpEvent) bool { return e.data.Pass == 2 })
	require.True(t, ok)
	require.Equal(t, time.Unix(7, 5_000_000), e.at)
	q.close()
}

func TestQMPErrors(t *testing.T) {
	ctx := deadline(t)
	for name, c := range map[string]struct{ answer, says string }{
		"refused":    {`{"error": {"class": "GenericError", "desc": "Parameter 'multifd-channels' expects a value"}}`, "expects a value"},
		"hangs up":   {"", "the connection ended"},
		"no JSON":    {"Segmentation fault", "the connection ended"},
		"wrong type": {`{"return": [1]}`, "answer to x"},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := newQMP(ctx, fakeQEMU(t, greeting, func(string, json.RawMessage) string { return c.answer }))
			require.NoError(t, err)
			defer q.close()
			err = q.do(ctx, "x", nil, &struct{}{})
			require.ErrorIs(t, err, errQMP)
			require.ErrorContains(t, err, c.says)
		})
	}
	_, err := newQMP(ctx, fakeQEMU(t, `{"return": {}}`, nil))
	require.ErrorContains(t, err, "no greeting")
	// A QEMU that says nothing ends with the stage, and with its reason.
	late, cancel := context.WithCancelCause(ctx)
	ours, theirs := net.Pipe()
	defer theirs.Close()
	cancel(errors.New("booting took more than 2m"))
	_, err = newQMP(late, ours)
	require.ErrorContains(t, err, "booting took more than 2m")
	_, err = theirs.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the connection is closed")
}

func TestListenQEMUAsksForThePort(t *testing.T) {
	ctx := deadline(t)
	in := `{"return": {"socket-address": [{"port": "41234", "host": "127.0.0.1", "type": "inet"}]}}`
	q, err := newQMP(ctx, fakeQEMU(t, greeting, func(command string, arguments json.RawMessage) string {
		if command == "migrate-incoming" {
			require.JSONEq(t, `{"uri": "tcp:127.0.0.1:0"}`, string(arguments))
			return `{"return": {}}`
		}
		return in
	}))
	require.NoError(t, err)
	defer q.close()
	at, err := listenQEMU(ctx, q)
	require.NoError(t, err)
	require.Equal(t, "tcp:127.0.0.1:41234", at)
	in = `{"return": {"status": "setup"}}`
	_, err = listenQEMU(ctx, q)
	require.ErrorContains(t, err, "no address")
}

func TestQEMUSettingsGoOutAsTheyStand(t *testing.T) {
	ctx := deadline(t)
	got := map[string]string{}
	q, err := newQMP(ctx, fakeQEMU(t, greeting, func(command string, arguments json.RawMessage) string {
		got[command] = string(arguments)
		return `{"return": {}}`
	}))
	require.NoError(t, err)
	defer q.close()
	s := xbzrle(64)
	m := &qemuMover{k: &Case{Downtime: defaultDowntime, Link: linkLimit}, s: &s}
	require.NoError(t, m.configure(ctx, q))
	require.JSONEq(t, `{"capabilities": [{"capability": "events", "state": true}, {"capability": "xbzrle", "state": true}]}`, got["migrate-set-capabilities"])
	require.JSONEq(t, `{"max-bandwidth": 125000000, "downtime-limit": 30, "xbzrle-cache-size": 67108864}`, got["migrate-set-parameters"])
	m.k.Link = 0
	require.NoError(t, m.configure(ctx, q))
	require.Contains(t, got["migrate-set-parameters"], fmt.Sprint(unlimited))
}

// The event comes a moment before the figures are there.
func TestQEMUsFiguresAreWaitedFor(t *testing.T) {
	ctx := deadline(t)
	asked := 0
	q, err := newQMP(ctx, fakeQEMU(t, greeting, func(string, json.RawMessage) string {
		if asked++; asked < 3 {
			return `{"return": {"status": "completed", "total-time": 0, "ram": {"transferred": 1}}}`
		}
		return `{"return": {"status": "completed", "total-time": 416, "downtime": 3, "cpu-throttle-percentage": 20, "ram": {"transferred": 19000000, "dirty-sync-count": 3}}}`
	}))
	require.NoError(t, err)
	defer q.close()
	e := &end{monitor: q, p: &process{done: make(chan struct{})}}
	raw, r, err := e.result(ctx, true)
	require.NoError(t, err)
	require.Contains(t, string(raw), "416")
	require.Equal(t, 416.0, r.TotalTime)
	require.Equal(t, 3.0, r.Downtime)
	require.Equal(t, 20, r.CPUThrottle)
	require.Equal(t, uint64(19000000), r.RAM.Transferred)
	require.Equal(t, 3, r.RAM.DirtySyncCount)
}
