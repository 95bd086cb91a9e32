package migration

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration/wire"
)

// What a file announces is prepared once, by huge pages, where data lands.
func TestAnnouncedIsPreparedWhereDataLands(t *testing.T) {
	const huge = populatePiece
	var a announced
	require.NoError(t, a.add([]Extent{{GPA: 0x1000, Len: 0x3000}, {GPA: huge - 0x1000, Len: 0x3000}}))
	require.NoError(t, a.add([]Extent{{GPA: 3 * huge, Len: 5 * huge}}))
	require.ErrorIs(t, a.add([]Extent{{GPA: 4 * huge, Len: 0x1000}}), wire.ErrFormat, "out of order")
	around := func(gpa uint64, pages uint32) []Extent {
		es, err := a.around(&wire.Frame{Type: wire.TypeRaw, Body: wire.AppendRun(nil, wire.Run{GPA: gpa, Pages: pages}), Bulk: pages * pageSize})
		require.NoError(t, err)
		return es
	}
	require.Equal(t, []Extent{{GPA: 0x1000, Len: 0x3000}, {GPA: huge - 0x1000, Len: 0x1000}}, around(0x2000, 1))
	require.Empty(t, around(0x3000, 1), "it is prepared")
	require.Equal(t, []Extent{{GPA: huge, Len: 0x2000}}, around(huge-0x1000, 2))
	require.Empty(t, around(2*huge, 1), "it was not announced")
	require.Equal(t, []Extent{{GPA: 3 * huge, Len: huge}, {GPA: 4 * huge, Len: huge}}, around(4*huge-0x1000, 2))
}
