// Package scripts tries what runs the tests on packages made for it: counts, a second
// try, the end in time.
package scripts
