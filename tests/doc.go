// Package tests is where godwit is tried as a whole: guest boots, migrations
// from process to process, conformance with other tools, and the rules that
// no single package can check, such as who may import whom.
package tests
