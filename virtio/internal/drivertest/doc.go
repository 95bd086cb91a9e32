// Package drivertest is a virtio driver for tests: the guest's side of a split
// ring and of the mmio registers, acting on guest memory like a guest would. It
// waits for interrupts only where a guest would, so a lost one makes a test fail
// instead of passing by polling.
package drivertest
