// Command godwit runs virtual machines on /dev/kvm and moves them live between
// processes. `godwit help` lists the commands; README.md shows the first two.
//
// One file is one command. What several share:
//
//	cli.go     the root command, errors and exit codes
//	machine.go flags that describe a machine
//	restore.go a machine out of a file, for receive
//	host.go    the life of a machine in this process: console, API, restarts
//	target.go  flags that find a running machine's API socket
package main
