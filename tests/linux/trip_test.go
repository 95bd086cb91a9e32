package linux

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration"
)

// trip is a guest that goes from one godwit process to the next, as users move
// guests.
type trip struct {
	dir  string
	now  *process // where the guest runs
	sock string   // its API
	hops int
	how  []string // flags of godwit migrate
	// prefers has the vCPUs of each destination preferred to all else.
	prefers bool
	// text is what the guest wrote at the places where it was.
	text string
}

var listening = regexp.MustCompile(`listening on (\S+)`)

// startTrip runs a guest; args are those of godwit run.
func startTrip(t testing.TB, args ...string) *trip {
	t.Helper()
	tr := &trip{dir: t.TempDir()}
	tr.sock = tr.socket()
	tr.now = godwit(t, append([]string{"run", "--api-sock", tr.sock}, args...)...)
	return tr
}

func (tr *trip) socket() string { return filepath.Join(tr.dir, fmt.Sprintf("%d.sock", tr.hops)) }

// console is everything that the guest wrote so far.
func (tr *trip) console() string { return tr.text + tr.now.out.String() }

// until waits for a condition on it.
func (tr *trip) until(t testing.TB, what string, ok func(text string) bool) {
	t.Helper()
	tr.now.out.until(t, what, func(string) bool {
		select {
		case <-tr.now.done:
			if !ok(tr.console()) {
				t.Fatalf("the guest's process ended without %s\nstdout: %s\nstderr: %s", what, tr.console(), tr.now.err)
			}
		default:
		}
		return ok(tr.console())
	})
}

func (tr *trip) waitFor(t testing.TB, what string) {
	t.Helper()
	tr.until(t, what, func(text string) bool { return strings.Contains(text, what) })
}

// destination starts a process that waits for the guest; args are those of
// godwit receive. It gives the address, too.
func (tr *trip) destination(t testing.TB, args ...string) (*process, string) {
	t.Helper()
	tr.hops++
	p := godwit(t, append([]string{"receive", "--listen", "tcp:127.0.0.1:0", "--api-sock", tr.socket(), "--once"}, args...)...)
	if tr.prefers {
		go preferVCPUs(p) // ends with the process
	}
	p.err.until(t, "listening", func(text string) bool {
		select {
		case <-p.done:
			t.Fatalf("godwit receive ended: %s", text)
		default:
		}
		return listening.MatchString(text)
	})
	return p, listening.FindStringSubmatch(p.err.String())[1]
}

// attempts bounds the tries of a move. On a machine that has far too much to do a
// process may get no CPU for the five seconds after which its peer counts as gone.
// The guest then runs on where it was, and the next try has to succeed.
const attempts = 3

// move takes the guest to another process, for which args are those of godwit
// receive. It calls before, if there is one, just before each try.
func (tr *trip) move(t testing.TB, before func(), args ...string) migration.Report {
	t.Helper()
	for i := 1; ; i++ {
		to, addr := tr.destination(t, args...)
		if before != nil {
			before()
		}
		m := godwit(t, append([]string{"migrate", "--api-sock", tr.sock, "--to", addr, "--json"}, tr.how...)...)
		code := m.exit(t)
		if code != 0 && i < attempts && strings.Contains(m.err.String(), "no sign of life") {
			t.Logf("try %d failed on a busy machine: %s", i, m.err)
			continue
		}
		require.Equal(t, 0, code, "%s\nsource: %s\ndestination: %s", m.err, tr.now.err, to.err)
		lines := bytes.Split(bytes.TrimSpace([]byte(m.out.String())), []byte("\n"))
		var r migration.Report
		require.NoError(t, json.Unmarshal(lines[len(lines)-1], &r), m.out)
		require.Equal(t, migration.Completed, r.Status)
		require.Equal(t, 0, tr.now.exit(t), "the source ends with 0: %s", tr.now.err)
		tr.text += tr.now.out.String()
		tr.now, tr.sock = to, tr.socket()
		return r
	}
}

// end powers the guest off and gives all that it wrote.
func (tr *trip) end(t testing.TB) string {
	t.Helper()
	tr.now.typeLine(t, "poweroff")
	require.Equal(t, 0, tr.now.exit(t), tr.now.err)
	return tr.console()
}
