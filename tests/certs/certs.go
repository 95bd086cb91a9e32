package certs

import "testing"

// CA is an Authority of a test, in a folder of the test's, that fails the test
// where it cannot do its work.
type CA struct {
	*Authority
	t testing.TB
}

// NewCA makes an authority.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	a, err := New(t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{a, t}
}

// Sign makes a key and a certificate and gives their files.
func (c *CA) Sign(name string, l Leaf) (cert, key string) {
	c.t.Helper()
	cert, key, err := c.Authority.Sign(name, l)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert, key
}
