//go:build !race

package blockfile

const raceEnabled = false
