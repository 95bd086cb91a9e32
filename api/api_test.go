package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/vmm"
)

func TestDescribeAndControl(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	got, err := r.c.Describe(ctx)
	require.NoError(t, err)
	require.Equal(t, InstanceInfo{ID: "before", State: StateNotStarted, VMMVersion: Version(), AppName: "godwit"}, got)
	_, err = r.c.Info(ctx)
	refused(t, err, 409, "no machine")
	refused(t, r.c.Pause(ctx), 409, "no machine")
	refused(t, r.c.Stop(ctx), 409, "no machine")
	_, err = r.c.Migration(ctx)
	refused(t, err, 404, "no migration")

	r.inst.Set("vm", r.vm)
	state := func() string {
		d, err := r.c.Describe(ctx)
		require.NoError(t, err)
		require.Equal(t, "vm", d.ID)
		return d.State
	}
	require.Equal(t, StateRunning, state())
	info, err := r.c.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, info.VCPUs)
	for range 2 { // twice is no error
		require.NoError(t, r.c.Pause(ctx))
		require.Equal(t, StatePaused, state())
	}
	for range 2 {
		require.NoError(t, r.c.Resume(ctx, false))
		require.Equal(t, StateRunning, state())
	}
	require.NoError(t, r.c.Stop(ctx))
	require.Equal(t, vmm.StateEnded, r.vm.State())
	require.Nil(t, r.inst.Detach())
	require.Equal(t, StateNotStarted, state())
}

func refused(t *testing.T, err error, status int, text string) {
	t.Helper()
	var e *RequestError
	require.ErrorAs(t, err, &e)
	require.Equal(t, status, e.Status, e.Message)
	require.Contains(t, e.Message, text)
}

func TestBadRequests(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	for _, c := range []struct {
		method, path, body string
		status             int
		fault              string
	}{
		{"GET", "/nowhere", "", 404, "no resource \"/nowhere\""},
		{"POST", "/vm", "", 405, "there is PATCH"},
		{"DELETE", "/vm/info", "", 405, "there is GET"},
		{"POST", "/migration", "{}", 405, "there is GET, PUT, PATCH, DELETE"},
		{"PATCH", "/vm", "", 400, "body"},
		{"PATCH", "/vm", "{", 400, "body"},
		{"PATCH", "/vm", `{"state":"Paused"} {}`, 400, "more than one"},
		{"PATCH", "/vm", `{"state":"Paused","colour":1}`, 400, "colour"},
		{"PATCH", "/vm", `{"state":"Asleep"}`, 400, "Paused or Resumed"},
		{"PATCH", "/vm", `{"state":"Paused","force":true}`, 400, "force"},
		{"PATCH", "/vm", `{"state":"` + strings.Repeat("x", maxBody) + `"}`, 400, "too large"},
		{"PUT", "/actions", `{"action_type":"InstanceStart"}`, 400, "InstanceStop"},
		{"PUT", "/migration", `{}`, 400, "tcp:HOST:PORT"},
		{"PUT", "/migration", `{"to":"tcp:x"}`, 400, "HOST:PORT"},
		{"PUT", "/migration", `{"to":"file:/"}`, 409, "is no file"},
		{"PUT", "/migration", `{"to":"file:/x","streams":2}`, 400, "2 streams on the way into a file"},
		{"PUT", "/migration", `{"to":"file:/x","codec":"lz4"}`, 400, "a page codec on the way into a file"},
		{"PUT", "/migration", `{"to":"file:/x","downtime_limit_ms":1}`, 400, "a downtime limit on the way into a file"},
		{"PUT", "/migration", `{"to":"unix:/x","mode":"stop-and-copy","stop":"measured"}`, 400, `a stop rule in mode "stop-and-copy"`},
		{"PUT", "/migration", `{"to":"tcp:h:1","mode":"postcopy"}`, 400, "not in this version"},
		{"PUT", "/migration", `{"to":"tcp:h:1","mode":"teleport"}`, 400, "teleport"},
		{"PUT", "/migration", `{"to":"tcp:h:1","streams":-1}`, 400, "streams"},
		{"PUT", "/migration", `{"to":"tcp:h:1","bandwidth_bytes_s":1}`, 400, "bandwidth"},
		{"PUT", "/migration", `{"to":"tcp:h:1","timeout_ms":-1}`, 400, "timeout_ms"},
		{"PUT", "/migration", `{"to":"tcp:h:1","downtime_limit_ms":-1}`, 400, "downtime_limit_ms"},
		{"PUT", "/migration", `{"to":"tcp:h:1","order":"sideways"}`, 400, "address"},
		{"PATCH", "/migration", `{"bandwidth_bytes_s":0}`, 404, "no migration"},
		{"DELETE", "/migration", "", 404, "no migration"},
	} {
		req, err := http.NewRequest(c.method, "http://x"+c.path, strings.NewReader(c.body))
		require.NoError(t, err)
		res, err := r.c.http.Do(req)
		require.NoError(t, err)
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, c.status, res.StatusCode, "%s %s %.80s: %s", c.method, c.path, c.body, text)
		require.Equal(t, c.status == 405, res.Header.Get("Allow") != "", "RFC 9110, 15.5.6")
		var f Fault
		require.NoError(t, json.Unmarshal(text, &f), "%s", text)
		require.Contains(t, f.Message, c.fault)
	}
	require.Equal(t, vmm.StateRunning, r.vm.State(), "nothing was done")
}

func TestMigrate(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	r.receive()
	var seen []MigrationStatus
	st, err := r.c.Migrate(context.Background(), MigrationRequest{To: r.to, Verify: true, Streams: 2}, func(s MigrationStatus) { seen = append(seen, s) })
	require.NoError(t, err)
	require.NoError(t, <-r.received)
	require.Equal(t, migration.Completed, st.Report.Status, st.Report.Error)
	require.Equal(t, 2, st.Report.Streams)
	require.Equal(t, st.Report.Verify.Source, st.Report.Verify.Destination)
	require.True(t, r.vm.hasMoved())
	require.NotEmpty(t, seen)
	for _, s := range seen[:len(seen)-1] {
		require.Nil(t, s.Report, "only the last has the report")
	}
	// Who comes late hears the end all the same.
	again, err := r.c.WatchMigration(context.Background(), nil)
	require.NoError(t, err)
	require.Equal(t, st, again)
	refused(t, r.c.CancelMigration(context.Background()), 409, "handed over")
	refused(t, r.c.Resume(context.Background(), true), 409, "runs elsewhere")
	require.Equal(t, migration.Completed, r.inst.Detach().Report.Status)
}

func TestKeepStaysPaused(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	r.receive()
	st, err := r.c.Migrate(context.Background(), MigrationRequest{To: r.to, Keep: true}, nil)
	require.NoError(t, err)
	require.Equal(t, migration.Completed, st.Report.Status)
	require.False(t, r.vm.hasMoved())
	for _, force := range []bool{false, true} {
		refused(t, r.c.Resume(context.Background(), force), 409, "runs elsewhere")
	}
	_, err = r.c.Migrate(context.Background(), MigrationRequest{To: r.to}, nil)
	refused(t, err, 409, "moved to")
	require.NoError(t, r.c.Stop(context.Background()))
}

func TestOneMigrationAtATimeManyWatch(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	r.gate = make(chan struct{})
	r.receive()
	ctx := context.Background()
	require.NoError(t, r.inst.StartMigration(MigrationRequest{To: r.to}))
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			st, err := r.c.WatchMigration(ctx, nil)
			if err != nil || st.Report.Status != migration.Completed {
				t.Errorf("watch: %+v, %v", st, err)
			}
		})
	}
	_, err := r.c.Migrate(ctx, MigrationRequest{To: r.to}, nil)
	refused(t, err, 409, "under way")
	refused(t, r.c.Pause(ctx), 409, "under way")
	refused(t, r.c.Resume(ctx, false), 409, "under way")
	st, err := r.c.Migration(ctx)
	require.NoError(t, err)
	require.Nil(t, st.Report)
	close(r.gate)
	wg.Wait()
}

func TestUpdateAndCancel(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	r.deaf()
	ctx := context.Background()
	require.NoError(t, r.c.do(ctx, "PUT", "/migration", MigrationRequest{To: r.to, Bandwidth: 1e6}, nil))
	rate, limit, throttle := int64(5e6), 12.5, "none"
	require.NoError(t, r.c.UpdateMigration(ctx, MigrationUpdate{Bandwidth: &rate, DowntimeLimitMS: &limit, Throttle: &throttle}))
	st, err := r.c.Migration(ctx)
	require.NoError(t, err)
	require.Equal(t, rate, st.Progress.Limit)
	require.Equal(t, 12500*time.Microsecond, st.Progress.DowntimeLimit)
	bad := "sleepy"
	refused(t, r.c.UpdateMigration(ctx, MigrationUpdate{Bandwidth: new(int64), Throttle: &bad}), 400, "sleepy")
	st, err = r.c.Migration(ctx)
	require.NoError(t, err)
	require.Equal(t, rate, st.Progress.Limit, "a bad update changes nothing")
	zero := 0.0
	refused(t, r.c.UpdateMigration(ctx, MigrationUpdate{Bandwidth: new(int64), DowntimeLimitMS: &zero}), 400, "must be above 0")
	st, err = r.c.Migration(ctx)
	require.NoError(t, err)
	require.Equal(t, rate, st.Progress.Limit, "nor does a limit that cannot be met")
	r.vm.sim.Fail("CanPace", errors.New("no ring here"))
	ring, empty := "dirty-limit:20", ""
	refused(t, r.c.UpdateMigration(ctx, MigrationUpdate{Bandwidth: new(int64), Throttle: &ring}), 400, "no ring here")
	st, err = r.c.Migration(ctx)
	require.NoError(t, err)
	require.Equal(t, rate, st.Progress.Limit, "nor does a throttle that the machine cannot obey")
	r.vm.sim.Fail("CanPace", nil)
	for _, text := range []*string{&ring, &empty} {
		require.NoError(t, r.c.UpdateMigration(ctx, MigrationUpdate{Throttle: text}))
	}

	require.NoError(t, r.c.CancelMigration(ctx))
	st, err = r.c.Migration(ctx)
	require.NoError(t, err)
	require.Equal(t, migration.Cancelled, st.Report.Status)
	require.NoError(t, r.vm.sim.Unharmed())
	refused(t, r.c.CancelMigration(ctx), 409, "no migration is running")
	refused(t, r.c.UpdateMigration(ctx, MigrationUpdate{Bandwidth: &rate}), 409, "no migration is running")
	require.NoError(t, r.c.Pause(ctx), "the machine is free again")
}

// A migration that ends without an answer to GO leaves the guest paused, and
// only force, after the lease, lets it run here.
func TestResumeAfterUnknownOutcome(t *testing.T) {
	lost := &migration.OutcomeError{ForceAfter: time.Now().Add(50 * time.Millisecond), Err: io.ErrUnexpectedEOF}
	for _, c := range []struct {
		name      string
		err       error
		plain     string // what resume without force is told; "" for done
		elsewhere bool
	}{
		{"unknown", lost, "nobody can know", true},
		{"not taken", &migration.OutcomeError{Known: true, Err: io.EOF}, "", false},
		{"disk lost", migration.ErrStaysPaused, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.inst.Set("vm", r.vm)
			require.NoError(t, r.vm.sim.Pause(context.Background()))
			require.NoError(t, r.vm.sim.Release())
			done := make(chan struct{})
			close(done)
			r.inst.move = &move{to: Address{"tcp", "h:1"}, machine: r.vm, err: c.err, done: done}
			ctx := context.Background()
			require.Equal(t, c.elsewhere, r.inst.move.outcome() != nil)
			if c.plain != "" {
				refused(t, r.c.Resume(ctx, false), 409, c.plain)
				require.Equal(t, vmm.StatePaused, r.vm.State())
				require.NoError(t, r.c.Resume(ctx, true))
				require.True(t, r.vm.certain, "nobody knows where the guest was")
				require.False(t, r.vm.stale)
				require.True(t, time.Now().After(lost.ForceAfter), "the lease is waited out")
			} else {
				require.NoError(t, r.c.Resume(ctx, false))
			}
			require.Equal(t, vmm.StateRunning, r.vm.State())
			require.NoError(t, r.inst.move.outcome(), "the guest may move again")
			r.inst.move = nil
		})
	}
}

func TestAddresses(t *testing.T) {
	for text, want := range map[string]Address{
		"tcp:127.0.0.1:80": {"tcp", "127.0.0.1:80"},
		"tcp:[::1]:0":      {"tcp", "[::1]:0"},
		"tcp::7000":        {"tcp", ":7000"},
		"unix:a/b:c":       {"unix", "a/b:c"},
		"file:a b":         {"file", "a b"},
	} {
		got, err := ParseAddress(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
		require.Equal(t, text, got.String())
	}
	for _, text := range []string{"", "tcp", "tcp:", "tcp:h", "tcp:h:", "tcp:h:port", "tcp:h:99999", "unix:", "unix:@x",
		"unix:" + strings.Repeat("x", 108), "udp:h:1", "file:", "file:a\x00b", "h:1"} {
		_, err := ParseAddress(text)
		require.ErrorIs(t, err, ErrAddress, text)
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"tcp:h:1", "unix:x", "tcp:[::1]:0", "unix:@", "::::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err == nil && a.String() != s {
			t.Fatalf("%q became %q", s, a)
		}
	})
}

func FuzzRequests(f *testing.F) {
	f.Add("PATCH", "/vm", `{"state":"Paused"}`)
	f.Add("PUT", "/migration?watch=1", `{"to":"tcp:h:1","streams":4}`)
	f.Add("PATCH", "/migration", `{"throttle":"none"}`)
	s := Server{inst: NewInstance("vm", nil)}
	h := s.routes()
	f.Fuzz(func(t *testing.T, method, path, body string) {
		req, err := http.NewRequest(method, "http://x/", strings.NewReader(body))
		if err != nil {
			return
		}
		req.URL.Path, req.URL.RawQuery, _ = strings.Cut(path, "?")
		w := discard{header: http.Header{}}
		h.ServeHTTP(&w, req)
		if w.status >= 500 {
			t.Fatalf("%s %s: %d", method, path, w.status)
		}
	})
}

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }
