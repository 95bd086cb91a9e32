package vmm

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVsockPathGoesToTheDestination, and comes back after a failure.
func TestVsockPathGoesToTheDestination(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	spec := Vsock{GuestCID: 3, UDSPath: path}
	p, err := newVsock(spec, assembly{})
	require.NoError(t, err)
	defer p.close()
	connect := func() {
		t.Helper()
		c, err := net.Dial("unix", path)
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	connect()
	dest, err := newVsock(spec, assembly{incoming: true, vsock: path})
	require.NoError(t, err)
	defer dest.close()
	require.ErrorContains(t, dest.claim(), "another process listens there")
	require.NoError(t, p.release())
	require.NoError(t, p.claim())
	require.NoError(t, p.claim())
	connect()
	require.NoError(t, p.release())
	require.NoError(t, dest.claim())
	connect()
	var i Info
	dest.info(&i)
	require.Equal(t, path, i.Vsock.Path)
	require.NoError(t, dest.release())
	_, err = os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)

	nobody, err := newVsock(spec, assembly{incoming: true})
	require.NoError(t, err)
	require.NoError(t, nobody.claim())
	require.NoError(t, nobody.close())
}

func TestVsockIsChecked(t *testing.T) {
	require.NoError(t, (*Vsock)(nil).validate(false))
	require.NoError(t, (&Vsock{GuestCID: 3}).validate(true))
	for says, v := range map[string]Vsock{
		"guest_cid 2":          {GuestCID: 2, UDSPath: "v"},
		"guest_cid 4294967295": {GuestCID: 1<<32 - 1, UDSPath: "v"},
		"use a shorter one":    {GuestCID: 3, UDSPath: strings.Repeat("v", 97)},
	} {
		err := v.validate(false)
		require.ErrorIs(t, err, ErrConfig, says)
		require.ErrorContains(t, err, says)
	}
}

// TestStrangersVsockPath is opened where the operator says so only.
func TestStrangersVsockPath(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	its := &Vsock{GuestCID: 3, UDSPath: filepath.Join(dir, "v")}
	for _, c := range []struct {
		in   Incoming
		v    *Vsock
		want string
	}{
		{Incoming{}, its, ""},
		{Incoming{AllowPrefixes: []string{dir}}, its, its.UDSPath},
		{Incoming{AllowPrefixes: []string{filepath.Join(dir, "in")}}, its, ""},
		{Incoming{Vsock: "/x/v"}, its, "/x/v"},
		{Incoming{AllowPrefixes: []string{"/"}}, &Vsock{GuestCID: 3, UDSPath: "relative"}, ""},
		{Incoming{AllowPrefixes: []string{"/"}}, &Vsock{GuestCID: 3}, ""},
		{Incoming{}, nil, ""},
	} {
		got, err := c.in.VsockPath(c.v)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	_, err = Incoming{Vsock: "v"}.VsockPath(nil)
	require.ErrorIs(t, err, ErrIncompatible)
	_, err = Incoming{Vsock: strings.Repeat("v", 100)}.VsockPath(its)
	require.ErrorIs(t, err, ErrConfig)
}
