package main

import (
	"os"

	"godwit/cmd/godwit/internal/console"
	"godwit/lab"
)

func main() {
	lab.Init()      // returns at once unless this is process 1 of a lab
	console.Guard() // returns at once unless this guards a terminal
	os.Exit(execute(os.Args[1:]))
}
