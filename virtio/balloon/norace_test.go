//go:build !race

package balloon

const raceEnabled = false
