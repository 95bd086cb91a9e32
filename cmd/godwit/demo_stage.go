package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"godwit/api"
	"godwit/migration"
)

// stage holds the processes of a demo.
type stage struct {
	flags    *demoFlags
	guest    guest
	dir      string
	children []*child
}

// play boots the guest and moves it twice: live for the figures, and verified.
func (s *stage) play(ctx context.Context) (*demoResult, error) {
	res := &demoResult{Guest: s.flags.what(), OK: true}
	c, err := s.boot(ctx, res)
	if err != nil {
		return nil, err
	}
	for _, verify := range []bool{false, true} {
		if c, err = s.move(ctx, c, res, verify); err != nil {
			return nil, err
		}
	}
	s.tell("asking the guest what it noticed")
	return res, s.step(ctx, "end the guest", func(ctx context.Context) error { return s.guest.finish(ctx, c, res) })
}

// step bounds one step and says which one it was that failed.
func (s *stage) step(ctx context.Context, what string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(s.flags.patience),
		fmt.Errorf("not within %v", time.Duration(s.flags.patience)))
	defer cancel()
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (s *stage) tell(format string, a ...any) {
	tellAs("demo", format, a...)
}

func (s *stage) start(args ...string) (*child, error) {
	name := fmt.Sprintf("process %d", len(s.children)+1)
	c, err := startChild(name, append(args, "--api-sock", s.socket(len(s.children)))...)
	if err == nil {
		s.children = append(s.children, c)
	}
	return c, err
}

func (s *stage) socket(i int) string { return filepath.Join(s.dir, fmt.Sprintf("%d.sock", i+1)) }

func (s *stage) boot(ctx context.Context, res *demoResult) (*child, error) {
	s.tell("booting %s in a process of its own", res.Guest)
	c, err := s.start(append([]string{"run", "--name", "demo", "--no-reboot"}, s.guest.args()...)...)
	if err != nil {
		return nil, err
	}
	return c, s.step(ctx, "boot the guest", func(ctx context.Context) error {
		_, at, err := c.out.wait(ctx, 0, s.guest.booted)
		if err != nil {
			return err
		}
		res.BootMS = float64(at.Sub(c.began)) / 1e6
		return s.guest.steady(ctx, c)
	})
}

// move takes the guest from one process to a new one.
func (s *stage) move(ctx context.Context, from *child, res *demoResult, verify bool) (*child, error) {
	client := api.NewClient(s.socket(len(s.children) - 1))
	to, err := s.start(append([]string{"receive", "--listen", "tcp:127.0.0.1:0", "--once", "--no-reboot"}, s.guest.receiveArgs()...)...)
	if err != nil {
		return nil, err
	}
	m := demoMove{Verified: verify}
	what := "moving it live to a second process: it runs on while its memory is copied"
	if verify {
		what = "moving it live to a third one, with both ends hashing its memory"
	}
	s.tell("%s", what)
	mark := from.out.count()
	err = s.step(ctx, what, func(ctx context.Context) error {
		const listening = "godwit: listening on "
		line, _, err := to.diag.wait(ctx, 0, func(l string) bool { return strings.HasPrefix(l, listening) })
		if err != nil {
			return fmt.Errorf("the receiver: %w", err)
		}
		q := api.MigrationRequest{To: strings.TrimPrefix(line, listening), Verify: verify, Streams: s.flags.streams}
		show := newProgress()
		st, err := client.Migrate(ctx, q, func(st api.MigrationStatus) { show.Show(st.Progress) })
		show.Clear()
		if err != nil {
			return err
		}
		if m.Report = st.Report; m.Report.Status != migration.Completed {
			return errors.New(m.Report.Error)
		}
		if err := from.wait(ctx); err != nil {
			return err
		}
		return s.guest.steady(ctx, to)
	})
	if err != nil {
		return nil, err
	}
	if err := s.guest.after(&m, from.out.joined(mark, to.out)); err != nil {
		return nil, err
	}
	if v := m.Report.Verify; verify && (v == nil || v.Source != v.Destination) {
		return nil, fmt.Errorf("memory hashes differ: %+v", v)
	}
	res.Moves = append(res.Moves, m)
	return to, nil
}

// end makes sure that no process is left.
func (s *stage) end() {
	for _, c := range s.children {
		c.end()
	}
}

// showOutput prints the end of what the processes said, to find out more.
func (s *stage) showOutput() {
	for _, c := range s.children {
		for _, l := range []*lineLog{c.out, c.diag} {
			for _, line := range l.from(max(l.count()-40, 0)) {
				tellAs(c.name, "%s", line)
			}
		}
	}
}
