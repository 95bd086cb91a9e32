package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// wrong are values that no flag of a type takes. A type that is not here is one of our
// lists of settings.
var wrong = map[string][]string{
	"N":           {"", "x", "-1", "1.5", " 1", "1 ", "0x", "99999999999999999999", "-99999999999999999999"},
	"SIZE":        {"", "x", "0", "-1", "1.5G", "10Q", "G", "1g", "99999999999999999999", "99999999999T"},
	"RATE":        {"", "x", "5", "-1MB/s", "MB/s", "0.0000001B/s", "99999999999999999999GB/s", "1 MB/s"},
	"TIME":        {"", "x", "5", "-1s", "s", "1000h", "99999999999999999999h", "1 s"},
	"bool":        {"", "x", "2", "yes", "-1"},
	"string":      {""},
	"stringArray": nil, // judged where it is used
	"raw|qcow2":   {"", "x", "vmdk", "RAW", "raw,qcow2"},
}

var settings = []string{"", "x", ",", "=", "=x", "x=", "path", "path=", "a=b", "a=b,a=b", strings.Repeat("x", 10_000), "\x1b[2J"}

// insides are words of Go and of libraries that no user wrote.
var insides = []string{"strconv", "parsing \"", "json:", "unexpected EOF", "invalid syntax", "value out of range", "%!", "\x1b"}

// Every flag of every command refuses what it cannot mean, in its user's words.
func TestEveryFlagRefusesNonsense(t *testing.T) {
	walk(newRoot(), func(c *cobra.Command, f *pflag.Flag) {
		values, known := wrong[f.Value.Type()]
		if !known {
			values = settings
		}
		if _, ok := f.Annotations[takesEmpty]; ok {
			values = nil
		}
		for _, value := range values {
			if strings.HasPrefix(value, "a=b") && strings.HasPrefix(f.Value.Type(), "ID=") {
				continue // any name may be a disk's or a card's, any text a path
			}
			t.Run(strings.ReplaceAll(c.CommandPath(), " ", "_")+"/"+f.Name+"="+value[:min(len(value), 20)], func(t *testing.T) {
				err := try(c.CommandPath(), "--"+f.Name+"="+value)
				require.Error(t, err, "it is taken")
				require.Equal(t, exitUsage, codeOf(err))
				text := err.Error()
				require.Contains(t, text, "--"+f.Name)
				for _, word := range insides {
					require.NotContains(t, text, word)
				}
				require.Less(t, len(text), 1000)
			})
		}
	})
}

// A flag that is given twice has its last value, unless it collects.
func TestFlagsGivenTwice(t *testing.T) {
	for _, c := range []struct {
		command, args string
		wrong         bool
	}{
		{"godwit run", "--cpus=1 --cpus=2", false},
		{"godwit run", "--memory=1G --memory=2G", false},
		{"godwit run", "--disk=path=a --disk=path=b", false},
		{"godwit receive", "--disk=vda=a --disk=vdb=b", false},
		{"godwit receive", "--disk=vda=a --disk=vda=b", true},
		{"godwit receive", "--console=con0=stdio --console=con0=stdio", true},
		{"godwit receive", "--net=net0=a --net=net0=b", true},
		{"godwit run", "--disk=path=a,path=b", true},
		{"godwit migrate", "--to=unix:a --to=unix:b", false},
	} {
		t.Run(c.command+" "+c.args, func(t *testing.T) {
			err := try(c.command, strings.Fields(c.args)...)
			if c.wrong {
				require.ErrorContains(t, err, "twice")
				require.Equal(t, exitUsage, codeOf(err))
				return
			}
			require.NoError(t, err)
		})
	}
}

// try has a new command read args, and does nothing else.
func try(path string, args ...string) error {
	root := newRoot()
	c, _, err := root.Find(strings.Fields(path)[1:])
	if err != nil {
		return err
	}
	if err := c.ParseFlags(args); err != nil {
		return c.FlagErrorFunc()(c, err)
	}
	return checkEmpty(c.Flags())
}

// walk visits every flag of every command.
func walk(c *cobra.Command, visit func(*cobra.Command, *pflag.Flag)) {
	c.Flags().VisitAll(func(f *pflag.Flag) { visit(c, f) })
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}
