package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is printed can be repeated elsewhere: it names no file of this machine.
func TestCommandNamesNoFile(t *testing.T) {
	for args, want := range map[string]string{
		"":                                "",
		"-cases|a,b|-runs|5|-slow":        " -cases 'a,b' -runs 5 -slow",
		"-godwit|/x/godwit|-runs=5":       " -runs=5",
		"--out=/x/raw.jsonl|-markdown|/x": "",
		"-slow|-out|/x|-qemu|/y|-try|ws-20k:--codec lz4": " -slow -try 'ws-20k:--codec lz4'",
	} {
		var list []string
		if args != "" {
			list = strings.Split(args, "|")
		}
		require.Equal(t, "go run ./tests/peers"+want, command(list), args)
	}
}
