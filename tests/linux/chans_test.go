package linux

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/vmm"
)

// connect is a program of the host's that connects to a unix socket.
func connect(t testing.TB, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// requireStream reads what the guest's stream sends: first is its first word
// before that is multiplied.
func requireStream(t testing.TB, r io.Reader, first uint64) {
	t.Helper()
	b := make([]byte, 32<<10)
	_, err := io.ReadFull(r, b)
	require.NoError(t, err)
	for i := 0; i < len(b); i += 8 {
		require.Equal(t, (first+uint64(i/8))*0x9e3779b97f4a7c15, binary.LittleEndian.Uint64(b[i:]), "word %d", i/8)
	}
}

// chans uses every channel of a Linux guest once, both ways. round tells the
// lines of one use from those of another. It leaves connections open.
func chans(t *testing.T, m *vmm.Machine, out *console, dir string, round int) {
	done := func(word string) string { return fmt.Sprintf("%s-%d-ok", word, round) }
	// What is typed is echoed, so the answer is put together by the guest.
	say := func(word string) string { return fmt.Sprintf(`echo "%s""-%d-ok"`, word, round) }

	typeLine(t, m, `test $(head -c 64 /dev/hwrng | wc -c) = 64 && `+say("rng"))
	out.waitFor(t, done("rng"))

	// connected: what the guest says before the device has taken the client is said to
	// nobody, and dropped.
	connected := func(port int) {
		require.Eventually(t, func() bool {
			i, err := m.Info()
			return err == nil && i.Console.Ports[port].Connected
		}, patience, 10*time.Millisecond)
	}
	channel := connect(t, filepath.Join(dir, "channel"))
	connected(1)
	// The driver makes the node when the device has told it of the port, and opens it a little later.
	typeLine(t, m, `until port=$(echo /dev/vport*p1) && : <$port; do usleep 10000; done 2>/dev/null; `+say("port"))
	out.waitFor(t, done("port"))
	// A read is at its end while the guest has not heard of the client, and to close the port drops what came.
	typeLine(t, m, `exec 4<>$port; until read -r x <&4; do usleep 10000; done; test "$x" = question && `+say("channel"))
	_, err := io.WriteString(channel, "question\n")
	require.NoError(t, err)
	out.waitFor(t, done("channel"))
	typeLine(t, m, `echo answer >&4; exec 4>&-`)
	line, err := bufio.NewReader(channel).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "answer\n", line)

	hvc := connect(t, filepath.Join(dir, "hvc"))
	connected(0)
	// Held open: Linux drops what a terminal got when its last user closes it.
	typeLine(t, m, `stty -F /dev/hvc0 raw -echo; exec 3<>/dev/hvc0; echo hello >&3`)
	line, err = bufio.NewReader(hvc).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello", strings.TrimSpace(line))
	typeLine(t, m, `read -r y <&3 && exec 3>&- && test "$y" = typed && `+say("hvc"))
	_, err = io.WriteString(hvc, "typed\n")
	require.NoError(t, err)
	out.waitFor(t, done("hvc"))

	// Guest to host, then host to guest.
	l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprintf("v_%d", 7000+round)))
	require.NoError(t, err)
	defer l.Close()
	typeLine(t, m, fmt.Sprintf("stream to=vsock:2 port=%d rate=64 &", 7000+round))
	c, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	requireStream(t, c, 1)

	typeLine(t, m, fmt.Sprintf("stream to=vsock:listen port=%d rate=64 &", 8000+round))
	late := time.Now().Add(patience)
	for {
		c := connect(t, filepath.Join(dir, "v"))
		_, err := fmt.Fprintf(c, "CONNECT %d\n", 8000+round)
		require.NoError(t, err)
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); err == nil {
			require.True(t, strings.HasPrefix(line, "OK "), line)
			requireStream(t, r, 1<<63)
			return
		}
		require.True(t, time.Now().Before(late), "the guest does not listen:\n%s", out)
		time.Sleep(50 * time.Millisecond) // until it does
	}
}

// TestChannels: random numbers, a console, a named channel and vsock work in
// Linux, on both sides of a live move that finds all of them in use. The guest
// hears that its vsock connections are gone.
func TestChannels(t *testing.T) {
	disk := diskCopy(t)
	here, there := t.TempDir(), t.TempDir()
	cfg := linuxConfig(disk, 1, "")
	cfg.Entropy = &vmm.Entropy{RateLimiter: &vmm.RateLimiter{Bandwidth: &vmm.TokenBucket{Size: 64 << 10, RefillTime: 1000}}}
	cfg.Consoles = []vmm.Console{{ID: "hvc", Path: "unix:" + here + "/hvc"}, {ID: "channel", Name: "org.example.0", Path: "unix:" + here + "/channel"}}
	cfg.Vsock = &vmm.Vsock{GuestCID: 3, UDSPath: here + "/v"}
	m, out := boot(t, cfg)
	chans(t, m, out, here, 1)
	i, err := m.Info()
	require.NoError(t, err)
	require.Equal(t, 2, i.Vsock.Stats.Open)
	require.True(t, i.Console.Ports[1].Connected)

	m = move(t, m, out, vmm.Incoming{
		Disks:    map[string]string{"root": disk},
		Consoles: map[string]string{"hvc": "unix:" + there + "/hvc", "channel": "unix:" + there + "/channel"},
		Vsock:    there + "/v",
	}, migration.SendOptions{Verify: true})
	chans(t, m, out, there, 2)
	i, err = m.Info()
	require.NoError(t, err)
	require.EqualValues(t, 1, i.Vsock.Stats.TransportResets)
	require.Equal(t, 2, i.Vsock.Stats.Open)
	require.NotZero(t, i.Entropy.Stats.Bytes)
	typeLine(t, m, "poweroff")
	require.Equal(t, vmm.ExitPowerOff, waitEnd(t, m, out).Kind, out)
}
