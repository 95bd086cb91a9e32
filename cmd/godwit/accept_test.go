package main

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// However many strangers come, the operator hears of them once a second at most.
func TestRefusalsAreFew(t *testing.T) {
	var said []string
	r := refusals{say: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }}
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
