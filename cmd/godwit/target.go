package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"godwit/api"
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// targetFlags find a running machine.
type targetFlags struct{ socket, name string }

func (t *targetFlags) add(f *pflag.FlagSet) {
	f.StringVar(&t.socket, "api-sock", "", "API socket `PATH` of the machine, as given to run, as in --api-sock vm.sock")
	f.StringVar(&t.name, "name", "", "the machine's `NAME`, as given to run, as in --name web")
}

// startTime is how long a command waits for a machine that is still starting.
const startTime = 2 * time.Second

// client talks to the machine, which may have been started a moment ago.
func (t *targetFlags) client(ctx context.Context) (*api.Client, error) {
	path := t.socket
	switch {
	case t.socket != "" && t.name != "":
		return nil, usage("both --api-sock and --name; one says which machine")
	case t.name != "":
		var err error
		if path, err = socketOf(t.name); err != nil {
			return nil, err
		}
	case t.socket == "":
		return nil, usage("which machine? give --api-sock PATH or --name NAME")
	}
	c := api.NewClient(path)
	c.Await(ctx, startTime)
	return c, nil
}

// socketOf is where the API socket of a named machine lies: in godwit/ below
// XDG_RUNTIME_DIR, or below /run for root, or else in a folder of the user's
// own below the folder for temporary files.
func socketOf(name string) (string, error) {
	if !namePattern.MatchString(name) {
		return "", usage("name %.80q; use 1 to 64 letters, digits, '.', '_' or '-'", name)
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	switch {
	case dir != "":
		dir = filepath.Join(dir, "godwit")
	case os.Geteuid() == 0:
		dir = "/run/godwit"
	default:
		dir = filepath.Join(os.TempDir(), "godwit-"+strconv.Itoa(os.Geteuid()))
	}
	return filepath.Join(dir, name+".sock"), nil
}

// makeSocketDir makes the folder of socketOf. One that another user made is
// refused: who owns the folder can replace the socket.
func makeSocketDir(socket string) error {
	dir := filepath.Dir(socket)
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return fmt.Errorf("make the folder for API sockets: %w", err)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("folder for API sockets: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !st.IsDir() || !ok || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("folder for API sockets %q: %w: it is not this user's alone; use --api-sock", dir, fs.ErrPermission)
	}
	return nil
}
