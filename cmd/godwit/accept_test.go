package main

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// However many strangers come, the operator hears of them once a second at most.
func TestRefusalsAreFew(t *testing.T) {
	var said []string
	r := newRefusals(func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) })
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() { r.tell(errors.New("no godwit")) })
	}
	wg.Wait()
	require.NotEmpty(t, said)
	require.Less(t, len(said), 100)
	unsaid := r.unsaid
	r.last = r.last.Add(-2 * refusalEvery)
	r.tell(errors.New("another"))
	require.Equal(t, fmt.Sprintf("turned a connection away (and %d others before): another", unsaid), said[len(said)-1])
}

// A guest that resets in a loop is told of ten times, then once a minute, and each
// of its resets is counted.
func TestResetsInALoopAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResets()
		said, counted := 0, 0
		for range 3000 { // five minutes
			if before, ok := r.due(); ok {
				said, counted = said+1, counted+1
				if before != "" {
					var n int
					_, err := fmt.Sscanf(before, " (and %d others before)", &n)
					require.NoError(t, err)
					counted += n
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		require.LessOrEqual(t, said, 10+5)
		require.Greater(t, said, 10)
		require.Equal(t, 3000, counted+r.rest())
	})
}
