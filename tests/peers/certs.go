package main

import "godwit/tests/certs"

// certify makes an authority and a certificate that both ends show, and returns
// the flags that name them.
func certify(dir string) ([]string, error) {
	ca, err := certs.New(dir, "authority")
	if err != nil {
		return nil, err
	}
	cert, key, err := ca.Sign("peers", certs.Leaf{})
	if err != nil {
		return nil, err
	}
	return []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", ca.File}, nil
}
