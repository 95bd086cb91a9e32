// Package lab runs a command inside an emulated machine that has real nested
// KVM, for hosts whose own /dev/kvm is missing or cannot run a stock Linux.
//
// QEMU's TCG emulates AMD's SVM, so Debian's cloud kernel loads kvm-amd there
// and a VMM inside sees an ordinary KVM with nested paging:
//
//	host                                     outer machine (QEMU, TCG)
//	----                                     -------------------------
//	Prepare: kernel package -> cache         stock kernel, kvm-amd
//	Run:     initramfs  -------------------> /init = Config.Init, calls lab.Init
//	         disks      <== virtio-blk ====> the same paths, links to /dev/vdX
//	         Stdin      --- stdin frames --> \
//	         Stdout/err <-- output frames --  } the command
//	         Outputs    <-- output trees --- /
//	         exit code  <-- exit frame -----
//	         console    <-- ttyS0 ---------- the kernel's own words, kept apart
//
// # One program on both sides
//
// Process 1 of the outer machine is the calling program itself (Config.Init,
// by default the running executable). Its main must call [Init] first; in any
// other process that call returns at once. The program must be static, that is
// built with CGO_ENABLED=0, since the initramfs has no C library. busybox is
// added when the host has a static one; nothing here needs it.
//
// # Clocks inside
//
// The command starts when the outer kernel's TSC rate is final, which takes Linux
// about a second and a half from its start, and when a vCPU made for the purpose has
// shown a clock that goes. A kvm loaded before gives guests that stand still at
// their first sleep (clock.go says why); such a machine is ErrMachine, not a command
// that hangs.
//
// # How things get in and out
//
//   - Config.Files travel as copies in the initramfs and cost memory inside.
//     What the command changes in them is lost.
//   - Config.Disks are attached as virtio-blk with the image's raw bytes as the
//     disk, so every write lands in the host's file at once. The path inside is
//     a link to the block device. Sizes must be multiples of 512 bytes.
//   - Config.Outputs are files or folders that the command makes; they are
//     sent back when it has ended, and only then.
//   - [FilesOf] finds all three in the arguments of a godwit command. Paths
//     are the same inside and outside, so no argument is rewritten.
//
// Standard streams, the exit code and outputs share one virtio-serial port in
// small frames: binary-clean, in order, and never mixed with kernel messages.
// With Config.Terminal the command gets a pseudo-terminal instead.
//
// When the command has ended, everything else inside is killed, file systems
// are synced and QEMU is stopped. QEMU never outlives the thread that runs it.
//
// This package imports nothing else of godwit.
package lab
