package main

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/cmd/godwit/internal/units"
	"godwit/vmm"
)

func TestParseEntropy(t *testing.T) {
	for s, want := range map[string]vmm.TokenBucket{
		"rate=64K":              {Size: 64 << 10, RefillTime: 1000},
		"rate=1000,burst=500":   {Size: 500, RefillTime: 500},
		"burst=1M,rate=64K":     {Size: 1 << 20, RefillTime: 16000},
		"rate=3000,burst=1":     {Size: 1, RefillTime: 1},
		"rate=1,burst=10":       {Size: 10, RefillTime: 10000},
		"rate=7000,burst=10000": {Size: 10000, RefillTime: 1429},
	} {
		e, err := parseEntropy(s)
		require.NoError(t, err, s)
		require.Equal(t, want, *e.RateLimiter.Bandwidth, s)
	}
	e, err := parseEntropy("unlimited")
	require.NoError(t, err)
	require.Nil(t, e.RateLimiter)
	for _, s := range []string{"", "rate", "rate=", "rate=0", "rate=x", "burst=1K", "rate=1K,x=1", "rate=1K,burst=0", "unlimited,rate=1", "rate=1,burst=16777215T"} {
		_, err := parseEntropy(s)
		require.ErrorIs(t, err, units.ErrSyntax, s)
	}
}

func TestParseConsole(t *testing.T) {
	c, err := parseConsole("path=unix:/run/a=b.sock,name=org.example.0,id=agent")
	require.NoError(t, err)
	require.Equal(t, vmm.Console{ID: "agent", Name: "org.example.0", Path: "unix:/run/a=b.sock"}, c)
	for _, s := range []string{"", "unix:a", "path=", "path=a", "path=unix:", "path=file:", "path=stdio:x", "path=tcp:a:1", "path=unix:a,size=1", "path=unix:a,name"} {
		_, err := parseConsole(s)
		require.ErrorIs(t, err, units.ErrSyntax, s)
	}
	v := consoleMapValue{}
	require.NoError(t, v.Set("con0=unix:/a"))
	require.NoError(t, v.Set("con1=stdio"))
	require.Equal(t, consoleMapValue{"con0": "unix:/a", "con1": "stdio"}, v)
	for _, s := range []string{"", "con2", "=unix:a", "con2=", "con0=unix:b", "con2=tcp:x"} {
		require.ErrorIs(t, v.Set(s), units.ErrSyntax, s)
	}
}

func TestParseVsock(t *testing.T) {
	v, err := parseVsock("cid=3,path=/run/v=1.sock")
	require.NoError(t, err)
	require.Equal(t, vmm.Vsock{GuestCID: 3, UDSPath: "/run/v=1.sock"}, *v)
	for _, s := range []string{"", "cid=3", "path=v", "cid=x,path=v", "cid=-1,path=v", "cid=3,path=", "cid=3,path=v,port=1", "cid=0,path=v"} {
		_, err := parseVsock(s)
		require.ErrorIs(t, err, units.ErrSyntax, s)
	}
	var p vsockPathValue
	require.NoError(t, p.Set("path=/a"))
	require.EqualValues(t, "/a", p)
	for _, s := range []string{"", "/a", "path=", "cid=3"} {
		require.ErrorIs(t, p.Set(s), units.ErrSyntax, s)
	}
}

// TestVsockOfAStranger restarts here at the operator's path, or at its own if
// that is allowed.
func TestVsockOfAStranger(t *testing.T) {
	dir := t.TempDir()
	its := vmm.Config{Vsock: &vmm.Vsock{GuestCID: 3, UDSPath: dir + "/v"}}
	for want, r := range map[string]receiver{"": {}, "mine": {vsock: "mine"}, dir + "/v": {allow: []string{dir}}} {
		got, err := r.here(its)
		require.NoError(t, err)
		require.Equal(t, want, got.Vsock.UDSPath)
	}
	require.Equal(t, dir+"/v", its.Vsock.UDSPath, "the machine's is not changed")
}

func TestStdioIsGivenOnce(t *testing.T) {
	require.Equal(t, "con1", stdioConsole([]vmm.Console{{Path: "unix:a"}, {Path: "stdio"}}))
	require.Equal(t, "x", stdioConsole([]vmm.Console{{Path: "stdio", ID: "x"}}))
	require.Empty(t, stdioConsole(nil))
	_, err := newHost(hostFlags{serial: "stdio"}, "", "con0")
	require.ErrorContains(t, err, "--serial none")
	h, err := newHost(hostFlags{serial: "none"}, "", "con0")
	require.NoError(t, err)
	fd, err := h.options().Stdio()
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	h.close()
}

func FuzzParseChannels(f *testing.F) {
	f.Add("rate=64K,burst=1M")
	f.Add("path=unix:a,name=b")
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := parseVsock(s); err == nil && v.UDSPath == "" {
			t.Fatalf("%q has no path", s)
		}
		if c, err := parseConsole(s); err == nil && c.Path == "" {
			t.Fatalf("%q has no path", s)
		}
		if e, err := parseEntropy(s); err == nil && e.RateLimiter != nil && e.RateLimiter.Bandwidth.RefillTime == 0 {
			t.Fatalf("%q is never filled again", s)
		}
	})
}
