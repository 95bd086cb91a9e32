package devicefuzz

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

// Where things are. The memory has a hole and a second region behind it. It is
// mapped, not filled: only what is touched costs anything.
const (
	behindHole = 1 << 20
	memSize    = guestmem.HoleStart + behindHole
	memEnd     = guestmem.HoleEnd + behindHole

	ringArea   = 0x10000 // rings that keep the rules, ringStride each
	ringStride = 0x8000
	maxRings   = 16
	tableArea  = ringArea + maxRings*ringStride // indirect tables that keep the rules
	tableSize  = 16 * 64
	tables     = 64
	dataArea   = 0x100000
	dataSize   = 0x100000
	maxQueue   = 8 // log2 of the largest ring: 256 entries fit ringStride

	maxSteps = 400
)

// machine is one run.
type machine struct {
	t   testing.TB
	s   Subject
	in  input
	mem *guestmem.Memory
	irq *drivertest.Interrupt

	dev    virtio.Device
	tr     *mmio.Transport
	regs   drivertest.Registers
	sizes  []uint16
	paused bool

	rings [maxRings]ring
	table int    // the next indirect table
	spare uint64 // where the next inline bytes go

	// tainted says that the device was told to write over rings or tables, or to
	// look for them elsewhere: it does what it was told, and the used index may
	// then be anything.
	tainted bool
	dirty   []uint64
}

// ring is the driver's side of a queue that was set up by the rules.
type ring struct {
	size              uint16 // 0: none
	desc, avail, used uint64
	idx               uint16 // available index
	next              uint16 // descriptor to use next
	paused            uint16 // used index when the pause began
}

func newMachine(t testing.TB, s Subject, program []byte) *machine {
	mem, err := guestmem.New(memSize, guestmem.Options{SmallPages: true})
	require.NoError(t, err)
	m := &machine{t: t, s: s, in: input{program}, mem: mem, irq: drivertest.NewInterrupt(), spare: dataArea, tainted: s.Wild}
	m.dirty = make([]uint64, (mem.Frames()+63)/64)
	m.instance()
	return m
}

// instance makes a device and its transport, and makes them the ones in use.
func (m *machine) instance() {
	m.dev = m.s.New(m.t, m.mem)
	var err error
	m.tr, err = mmio.New(mmio.Config{ID: "virtio/fuzzed", Memory: m.mem, Device: m.dev, Interrupt: m.irq})
	require.NoError(m.t, err)
	m.regs = drivertest.Registers{T: m.t, Dev: m.tr}
	m.sizes = m.dev.QueueSizes()
}

func (m *machine) close() {
	require.NoError(m.t, m.tr.Close())
	require.NoError(m.t, m.mem.Close())
}

func (m *machine) run() {
	for range maxSteps {
		if len(m.in.b) == 0 {
			break
		}
		m.step(operation(m.in.u8()) % operations)
		m.checkIndices()
	}
	m.resume()
	m.settle()
	m.pause()
	m.checkIndices()
	m.resume()
}

func (m *machine) step(o operation) {
	switch o {
	case opRead:
		off := uint64(m.in.u16() % mmio.Size)
		m.tr.Read(off, make([]byte, min(uint64(m.in.u8()%17), mmio.Size-off)))
	case opWrite:
		off := uint64(m.in.u16() % mmio.Size)
		m.tr.Write(off, m.in.bytes(int(min(uint64(m.in.u8()%17), mmio.Size-off))))
		if off < 0x100 {
			m.tainted = true // perhaps a queue of its own making
		}
	case opConfig:
		m.readConfig()
	case opNegotiate:
		m.negotiate(m.in.u8())
	case opQueue:
		m.setQueue(int(m.in.u8()), m.in.u8())
	case opBadQueue:
		m.badQueue()
	case opRun:
		m.regs.Set(0x70, 15)
	case opChain:
		m.chain()
	case opOffer:
		m.offer(m.ring(), m.in.u16())
	case opBump:
		m.bump(m.ring(), m.in.u16())
	case opEvent:
		r, v := m.ring(), m.in.u16()
		m.store(r.avail+4+2*uint64(r.size), v)
		m.store(r.avail, v)
	case opKick:
		m.regs.Kick(int(m.in.u8()) % len(m.sizes))
	case opSettle:
		m.settle()
	case opPause:
		m.pause()
	case opResume:
		m.resume()
	case opMove:
		m.move(false)
	case opBadMove:
		m.move(true)
	case opReset:
		m.regs.Set(0x70, 0)
		clear(m.rings[:])
	case opMemory:
		gpa, n := m.address(), m.in.u8()
		m.poke(gpa, m.in.bytes(int(n)))
	case opPoke:
		if b := m.in.u8(); m.s.Poke != nil && !m.paused {
			m.s.Poke(m.t, b)
		}
	}
}

// settle waits until the device has answered what it was given, or for a moment.
func (m *machine) settle() {
	const needsReset, driverOK = 64, 4
	if s := m.regs.Get(0x70); m.paused || s&needsReset != 0 || s&driverOK == 0 {
		return
	}
	// Asleep, so that the runtime looks for the worker's wake-up at once.
	for end := time.Now().Add(time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Microsecond) {
		idle := true
		for i := range m.rings {
			if r := &m.rings[i]; r.size != 0 && m.load(r.used+2) != r.idx {
				idle = false
			}
		}
		if idle {
			return
		}
	}
}

func (m *machine) readConfig() {
	off, p := m.in.u64(), make([]byte, m.in.u8()%64)
	for i := range p {
		p[i] = 0xff
	}
	if off&1 == 0 {
		off %= uint64(m.s.ConfigSize) + 16 // near its end is more interesting
	}
	m.dev.ReadConfig(off, p)
	for i, b := range p {
		if at := off + uint64(i); at >= uint64(m.s.ConfigSize) && at >= off {
			require.Zero(m.t, b, "byte %#x of a configuration space of %#x bytes", at, m.s.ConfigSize)
		}
	}
}

// pause holds the device to what virtio.Device promises of Pause.
func (m *machine) pause() {
	if m.paused {
		return
	}
	require.NoError(m.t, m.tr.Pause())
	m.paused = true
	for i := range m.rings {
		if r := &m.rings[i]; r.size != 0 {
			r.paused = m.load(r.used + 2)
		}
	}
	m.forgetDirty()
	active := m.activity()
	for i := range m.sizes {
		m.regs.Kick(i) // lost on nobody: it is for after Resume
	}
	for end := time.Now().Add(20 * time.Microsecond); time.Now().Before(end); {
		runtime.Gosched()
	}
	m.requireClean("a paused device")
	require.Equal(m.t, active, m.activity(), "a paused device used its backend")
}

func (m *machine) forgetDirty() {
	m.mem.DrainDirty(m.dirty)
	clear(m.dirty)
}

// requireClean demands that nothing was written since forgetDirty.
func (m *machine) requireClean(who string) {
	m.mem.DrainDirty(m.dirty)
	for i, w := range m.dirty {
		if w != 0 {
			require.Failf(m.t, "written", "%s wrote to a page of gfn %#x to %#x", who, 64*i, 64*i+63)
		}
	}
}

func (m *machine) activity() uint64 {
	if m.s.Activity == nil {
		return 0
	}
	return m.s.Activity(m.t)
}

func (m *machine) resume() {
	if !m.paused {
		return
	}
	for i := range m.rings {
		if r := &m.rings[i]; r.size != 0 && !m.tainted {
			require.Equal(m.t, r.paused, m.load(r.used+2), "a paused device moved the used index of queue %d", i)
		}
	}
	require.NoError(m.t, m.tr.Resume())
	m.paused = false
}

// move goes on in a second instance, as a destination would. With a broken state
// the second one may refuse, and the first goes on.
func (m *machine) move(broken bool) {
	was := m.paused
	m.pause()
	data := m.saved()
	if broken {
		at, x := int(m.in.u16()), m.in.u8()
		if len(data) > 0 {
			data[at%len(data)] ^= x
		}
	}
	old, oldDev := m.tr, m.dev
	m.instance()
	d := state.NewDecoder(data)
	err := m.tr.Restore(m.tr.StateVersion(), d)
	if err == nil {
		err = d.Finish()
	}
	switch {
	case err != nil && broken:
		require.NoError(m.t, m.tr.Close())
		m.tr, m.dev = old, oldDev
		m.regs.Dev = old
		if !was {
			m.resume()
		}
		return
	case broken:
		m.tainted = true
		clear(m.rings[:]) // wherever they are now
	default:
		require.NoError(m.t, err, "what was saved cannot be restored")
		require.Equal(m.t, data, m.saved(), "a restored device saves to other bytes")
	}
	m.forgetDirty()
	require.NoError(m.t, old.Close())
	m.requireClean("a device that moved away")
	if !was {
		m.resume()
	}
}

func (m *machine) saved() []byte {
	var e state.Encoder
	require.NoError(m.t, m.tr.Save(&e))
	return append([]byte(nil), e.Data()...)
}

// checkIndices: no answer without a request.
func (m *machine) checkIndices() {
	if m.tainted {
		return
	}
	for i := range m.rings {
		r := &m.rings[i]
		if r.size == 0 {
			continue
		}
		used := m.load(r.used + 2)
		require.LessOrEqual(m.t, r.idx-used, r.size, "queue %d: used index %d, available index %d", i, used, r.idx)
	}
}

func (m *machine) load(gpa uint64) uint16 {
	v, err := m.mem.LoadUint16(gpa)
	require.NoError(m.t, err)
	return v
}

func (m *machine) store(gpa uint64, v uint16) {
	require.NoError(m.t, m.mem.StoreUint16(gpa, v))
}

// poke writes guest memory where there is some.
func (m *machine) poke(gpa uint64, p []byte) {
	m.taint(gpa, uint64(len(p)))
	_ = m.mem.WriteAt(p, gpa) // an address that is no memory is part of the game
}

func (m *machine) putDescriptor(table uint64, i uint16, gpa uint64, n uint32, flags, next uint16) {
	if flags&drivertest.Write != 0 {
		m.taint(gpa, uint64(n))
	}
	if flags&drivertest.Indirect != 0 && (gpa < tableArea || gpa >= tableArea+tables*tableSize || gpa%16 != 0) {
		m.tainted = true
	}
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], gpa)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
	_ = m.mem.WriteAt(b[:], table+16*uint64(i))
}

// taint notes that a range may be written that holds rings or tables.
func (m *machine) taint(gpa, n uint64) {
	const end = tableArea + tables*tableSize
	if gpa < end && (gpa+n > ringArea || gpa+n < gpa) {
		m.tainted = true
	}
}
