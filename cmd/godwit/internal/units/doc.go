// Package units reads what people write on a command line: sizes, rates,
// drives and lists of settings. All of it is pure; errors say what was wrong
// and give an example. Any goroutine may call any function.
package units
