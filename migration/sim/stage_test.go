package sim_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration"
)

// A destination says in which stage a migration broke: guest memory travels until
// the last round has passed, whatever else has come before.
func TestStageOfAFailure(t *testing.T) {
	for method, stage := range map[string]error{
		"Touched":   migration.ErrMemory,
		"Dirty":     migration.ErrMemory, // after round 1
		"Pause":     migration.ErrMemory,
		"SaveState": migration.ErrState,
		"Release":   migration.ErrState,
	} {
		t.Run(method, func(t *testing.T) {
			r := newRig(t, 600)
			for i := range uint64(600) {
				r.put(i, i+1)
			}
			r.src.Fail(method, errors.New("boom"))
			res := r.migrate(context.Background())
			for _, err := range []error{res.sendErr, res.recvErr} {
				require.ErrorContains(t, err, "boom")
				for _, s := range []error{migration.ErrConfig, migration.ErrMemory, migration.ErrState, migration.ErrCommit} {
					require.Equal(t, s == stage, errors.Is(err, s), "%v: %v", s, err)
				}
			}
			require.NoError(t, r.src.Unharmed())
		})
	}
}
