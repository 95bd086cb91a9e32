//go:build race

package blockfile

const raceEnabled = true
