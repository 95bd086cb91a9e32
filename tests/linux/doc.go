// Package linux tries godwit with real Linux guests: boots, shutdowns and live
// migrations of the kernel and the root disk that `make kernel` and `make
// rootfs` build.
//
// Linux needs a KVM that executes kernel mode in full. Where this machine's
// does not, TestMain builds the test program anew without cgo and runs it
// inside the lab; its output and exit code are the inner run's.
package linux
