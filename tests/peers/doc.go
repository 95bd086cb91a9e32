// Command peers moves the same guest with QEMU and with godwit, in turn, on
// this machine, and prints what each took and the ratios.
//
//	make peers                                  # everything, 5 runs of each setting
//	go run ./tests/peers -list                  # the matrix of cases and settings
//	go run ./tests/peers -cases ws-20k -runs 1  # one case, once
//
// One run is one guest that boots, fills its memory, beats steadily, moves once
// and is checked by its own witness:
//
//	source starts -> guest fills and beats -> destination starts -> memory is warmed
//	  -> guest beats steadily -> migrate -> guest beats and sweeps at the destination
//
// A case with a load moves nothing. Its run is one guest that drives a disk or a
// network interface itself, verifies what it reads, and is looked at for five
// seconds:
//
//	image or tap is made -> guest starts and looks at its disk -> load settles -> 5 s -> end
//
// Runs are interleaved: every setting once, then every setting again. A run that
// fails is a line with an error, and the rest goes on. The program is a benchmark
// and no test: its exit code says only whether it could measure, not who won.
//
// cases.go and load.go have cases and settings as data, goals.go what was to be reached,
// docs/results.md the method.
package main
