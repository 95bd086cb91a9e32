package balloon_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
	"godwit/devices/state/statetest"
	"godwit/virtio/balloon"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

var golden = balloon.Config{Target: 1234, DeflateOnOOM: true, StatsInterval: 5 * time.Second, Reporting: true, Hinting: true}

func TestState(t *testing.T) {
	g := boot(t, golden, 0, 0, 1, 2, 3, 4)
	g.regs.Set(cfgActual, 77)
	g.regs.Set(cfgPoison, 0xaaaaaaaa)
	g.do(0, g.list(300))
	g.send(2, g.bytes(statistic(4, 1)))
	require.Eventually(t, func() bool { _, ok := g.dev.GuestStats(); return ok }, time.Minute, time.Millisecond)
	require.NoError(t, g.tr.Pause())
	g.regs.Acknowledge()
	statetest.Golden(t, g.tr, func() state.Saver { return fresh(t, g) })
}

// fresh is the transport of a machine like g that was just assembled.
func fresh(t testing.TB, g *guest) *mmio.Transport {
	dev, err := balloon.New(g.cfg)
	require.NoError(t, err)
	tr, err := mmio.New(mmio.Config{ID: "virtio/balloon", Memory: g.mem, Device: dev, Interrupt: drivertest.NewInterrupt()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	return tr
}

func TestRestoreRefuses(t *testing.T) {
	type fields struct {
		target, actual, poison, interval, session, command uint32
		tell                                               byte
		roles                                              [5]byte
	}
	good := fields{target: 10, interval: 5, session: 1 << 31, command: 1, roles: [5]byte{1, 2, 3, 0, 5}}
	restore := func(f fields) error {
		var e state.Encoder
		for _, v := range []uint32{f.target, f.actual, f.poison, f.interval, f.session, f.command} {
			e.U32(v)
		}
		e.U8(f.tell)
		e.Raw(f.roles[:])
		dev, err := balloon.New(balloon.Config{Memory: drivertest.Memory(t, memSize), StatsInterval: time.Second})
		require.NoError(t, err)
		return dev.Restore(1, state.NewDecoder(e.Data()))
	}
	require.NoError(t, restore(good))
	for want, change := range map[string]func(*fields){
		"bad balloon size":                 func(f *fields) { f.target = memSize/4096 + 1 },
		"give both statistics or none":     func(f *fields) { f.interval = 0 },
		"bad interval":                     func(f *fields) { f.interval = 3601 },
		"hinting session 0x5":              func(f *fields) { f.session = 5 },
		"with command 0x80000000":          func(f *fields) { f.command = 1 << 31 },
		"queues [0 1 1 -1 4] cannot be":    func(f *fields) { f.roles[2] = 2 },
		"queues [0 1 2 -1 5] cannot be":    func(f *fields) { f.roles[4] = 6 },
		"queues [0 1 2 -1 -2] cannot be":   func(f *fields) { f.roles[4] = 255 },
		"queues [0 1 2 -1 -128] cannot be": func(f *fields) { f.roles[4] = 129 },
	} {
		f := good
		change(&f)
		require.ErrorContains(t, restore(f), want)
	}
	dev, err := balloon.New(balloon.Config{Memory: drivertest.Memory(t, memSize)})
	require.NoError(t, err)
	require.ErrorContains(t, dev.Restore(2, state.NewDecoder(nil)), "version 2")
}

// TestRestoreRefusesRoles whose features the driver did not negotiate.
func TestRestoreRefusesRoles(t *testing.T) {
	g := boot(t, balloon.Config{}, 0, 0, 1)
	require.NoError(t, g.tr.Pause())
	data := statetest.Data(t, g.tr)
	roles := len(data) - 5
	require.Equal(t, []byte{1, 2, 0, 0, 0}, data[roles:])
	require.NoError(t, fresh(t, g).Restore(1, state.NewDecoder(data)))
	for role := 2; role < 5; role++ {
		changed := slices.Clone(data)
		changed[roles+role] = 3
		require.ErrorContains(t, fresh(t, g).Restore(1, state.NewDecoder(changed)), "queue 2 has a use that takes feature")
	}
}

// TestRestoredBeforeItsDriver: a machine saved while its kernel starts still finds
// its queues.
func TestRestoredBeforeItsDriver(t *testing.T) {
	g := &guest{t: t, mem: drivertest.Memory(t, memSize), irq: drivertest.NewInterrupt(), arena: drivertest.NewArena(0x1000, rings)}
	g.cfg.Memory = g.mem
	g.build()
	g.regs.Set(0x70, 1)
	g.move()
	g.regs.Set(0x70, 3)
	g.start(0, 0, 1)
	g.fill()
	g.do(0, g.list(2000))
	require.Equal(t, []uint32{2000}, g.gone())
}

// FuzzRestore feeds a destination the state of a hostile source.
func FuzzRestore(f *testing.F) {
	stream, err := os.ReadFile("testdata/virtio_balloon-v1.state")
	require.NoError(f, err)
	f.Add(stream)
	g := &guest{t: f, mem: drivertest.Memory(f, memSize), cfg: golden}
	g.cfg.Memory = g.mem
	f.Fuzz(func(t *testing.T, data []byte) {
		tr := fresh(t, g)
		if tr.Restore(1, state.NewDecoder(data)) == nil {
			require.NoError(t, tr.Resume())
			require.NoError(t, tr.Pause())
		}
	})
}
