package main

import (
	"maps"
	"slices"
)

// spread is the middle and the ends of some figures.
type spread struct{ Median, Min, Max float64 }

// spreadOf needs at least one figure. The median of an even number is the mean of
// the middle two.
func spreadOf(figures []float64) spread {
	f := slices.Sorted(slices.Values(figures))
	n := len(f)
	return spread{Median: (f[(n-1)/2] + f[n/2]) / 2, Min: f[0], Max: f[n-1]}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
