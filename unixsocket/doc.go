// Package unixsocket makes listening unix sockets that only their user can
// connect to, and cleans up after processes that are gone. It is a leaf: the
// API, consoles and virtual sockets all listen through it.
package unixsocket
