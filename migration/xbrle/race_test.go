//go:build race

package xbrle

const raceEnabled = true
