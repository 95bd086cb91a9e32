package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"godwit/lab"
)

// An emulated machine with one CPU takes one of the host's. So where there are two,
// and memory for it, two labs run half of the tests each. Within a lab tests follow one
// another: they compare times, and guests that share its one CPU would only wait
// for each other.

// firstHalf are the tests of the first lab, about half of the time; whatever is not
// named runs in the second.
var firstHalf = []string{"TestBalloonGivesBack", "TestReportingGivesBack", "TestDisksSurviveMoves", "TestChannels"}

const (
	labMiB = 4096 // memory of one lab
	// faultCode ends a lab that is at fault, and then the other as well.
	faultCode = 3
)

// twoLabs tells whether to divide the tests. A caller who chooses some gets one lab.
func twoLabs(args []string) bool {
	chosen := slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		return slices.Contains([]string{"test.run", "test.skip", "test.list", "test.bench", "test.fuzz"}, name)
	})
	return !chosen && runtime.NumCPU() >= 2 && availableMiB() >= 3*labMiB
}

// availableMiB is the host's memory that is free or soon could be.
func availableMiB() int {
	text, _ := os.ReadFile("/proc/meminfo")
	_, after, _ := strings.Cut(string(text), "MemAvailable:")
	var kib int
	_, _ = fmt.Sscan(after, &kib) // 0 where the kernel does not say
	return kib / 1024
}

// runHalves runs the tests in two labs at a time. The output of the second is shown
// when the first has ended, so that each test's lines stay together.
func runHalves(ctx context.Context, first lab.Config) (code int, err error) {
	names := "^(" + strings.Join(firstHalf, "|") + ")$"
	second := first
	first.Command = append(slices.Clone(first.Command), "-test.run="+names)
	second.Command = append(slices.Clone(second.Command), "-test.skip="+names)
	var out, errs heldWriter
	second.Stdout, second.Stderr = out.to(second.Stdout), errs.to(second.Stderr)
	g, ctx := errgroup.WithContext(ctx)
	var codes [2]int
	for i, cfg := range []lab.Config{first, second} {
		g.Go(func() (err error) {
			if codes[i], err = lab.Run(ctx, cfg); i == 0 {
				err = errors.Join(err, out.release(), errs.release())
			}
			if err == nil && codes[i] == faultCode {
				err = fmt.Errorf("lab %d of 2 is at fault, so the other is not gone on with", i+1)
			}
			return err
		})
	}
	err = g.Wait()
	return max(codes[0], codes[1]), err
}

// heldWriter keeps what is written until it is released.
type heldWriter struct {
	mu   sync.Mutex
	w    io.Writer
	held *bytes.Buffer // nil once released
}

func (h *heldWriter) to(w io.Writer) *heldWriter {
	h.w, h.held = w, &bytes.Buffer{}
	return h
}

func (h *heldWriter) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held != nil {
		return h.held.Write(p)
	}
	return h.w.Write(p)
}

func (h *heldWriter) release() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.held.WriteTo(h.w)
	h.held = nil
	return err
}

func TestHalvesNameTests(t *testing.T) {
	out, err := exec.Command(os.Args[0], "-test.list", ".").Output()
	require.NoError(t, err)
	all := strings.Fields(string(out))
	require.Subset(t, all, firstHalf)
	require.Greater(t, len(all), len(firstHalf)+3)
	require.False(t, twoLabs([]string{"-test.v", "-test.run=TestX"}))
	require.False(t, twoLabs([]string{"--test.skip", "TestX"}))
}

func TestHeldOutputComesInOrder(t *testing.T) {
	var to bytes.Buffer
	var h heldWriter
	w := h.to(&to)
	for i, s := range []string{"one ", "two ", "three"} {
		_, err := w.Write([]byte(s))
		require.NoError(t, err)
		if i == 1 {
			require.Empty(t, to.String())
			require.NoError(t, h.release())
		}
	}
	require.Equal(t, "one two three", to.String())
}
