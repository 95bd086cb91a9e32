// Package boottimer is a port on which a guest marks the moments of its boot:
// each byte that it writes is recorded with the time since the machine
// started. The first time a value is written counts; later ones are only
// counted, so a guest cannot make the record grow.
//
// The record moves with the guest, and the time goes on from where it stood
// when the machine was saved.
package boottimer
