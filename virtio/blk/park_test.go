package blk_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/devices/state"
	"godwit/devices/state/statetest"
	"godwit/virtio/blk"
	"godwit/virtio/internal/drivertest"
)

// fullDisk is a disk whose host has no room while full is set. With inline it
// says so at once, else where requests wait.
type fullDisk struct {
	blockfile.File
	full   atomic.Bool
	inline bool
}

func (f *fullDisk) room() error {
	if f.full.Load() {
		return fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return nil
}

func (f *fullDisk) Pwritev(bufs [][]byte, off int64) (int, error) {
	if err := f.room(); err != nil {
		return 0, err
	}
	return f.File.Pwritev(bufs, off)
}

func (f *fullDisk) WriteZeroes(off, n int64, mayUnmap bool) error {
	return errors.Join(f.room(), f.File.WriteZeroes(off, n, mayUnmap))
}

func (f *fullDisk) Flush() error { return errors.Join(f.room(), f.File.Flush()) }

func (f *fullDisk) TryPreadv([][]byte, int64) (bool, error) { return false, nil }

func (f *fullDisk) TryPwritev(bufs [][]byte, off int64) (bool, error) {
	if !f.inline {
		return false, nil
	}
	_, err := f.Pwritev(bufs, off)
	return true, err
}

// parking is a disk and a device that parks, with a bell for each that is.
type parking struct {
	disk *fullDisk
	bell chan struct{}
	path string
}

func newParking(t *testing.T, inline bool) *parking {
	p := &parking{path: filepath.Join(t.TempDir(), "disk.img"), bell: make(chan struct{}, 1<<16)}
	require.NoError(t, writeZeroFile(p.path))
	p.disk = &fullDisk{File: openDisk(t, p.path, blockfile.Options{}), inline: inline}
	return p
}

func (p *parking) config(queues int) blk.Config {
	return blk.Config{Backend: p.disk, Queues: queues, Full: blockfile.Full, OnFull: func(error) { p.bell <- struct{}{} }}
}

// move takes the guest to another device over the same image.
func (p *parking) move(g *guest, queues int) {
	g.cpu.Lock()
	defer g.cpu.Unlock()
	require.NoError(g.t, g.tr.Pause())
	stream := statetest.Stream(g.t, g.tr)
	require.Equal(g.t, stream, statetest.Stream(g.t, g.tr), "a save changes nothing")
	require.NoError(g.t, p.disk.Unlock())
	require.NoError(g.t, g.tr.Close())
	g.irq.Lose()
	p.disk = &fullDisk{File: openDisk(g.t, p.path, blockfile.Options{}), inline: p.disk.inline}
	g.transport(p.config(queues))
	require.NoError(g.t, statetest.Restore(g.tr, stream))
}

func both(t *testing.T, test func(t *testing.T, inline bool)) {
	for _, inline := range []bool{false, true} {
		t.Run(fmt.Sprintf("inline %v", inline), func(t *testing.T) { test(t, inline) })
	}
}

// TestParked: what finds no room is not answered, keeps no pause waiting, is
// tried again by each Resume, here or elsewhere, and is answered when there is
// room.
func TestParked(t *testing.T) {
	for _, moved := range []bool{false, true} {
		t.Run(fmt.Sprintf("moved %v", moved), func(t *testing.T) {
			both(t, func(t *testing.T, inline bool) {
				p := newParking(t, inline)
				g := boot(t, setup{config: p.config(1)})
				p.disk.full.Store(true)
				want := bytes.Repeat([]byte("full"), 128)
				data := g.buffer(want)
				sent := map[uint16]request{}
				for _, r := range []struct {
					kind uint32
					seg  []drivertest.Seg
				}{
					{out, []drivertest.Seg{writeSeg(data, 512)}},
					{writeZeroes, []drivertest.Seg{writeSeg(g.buffer(ranges(8, 8, 0)), 16)}},
					{flush, nil},
				} {
					head, req := g.submit(0, r.kind, 3, r.seg...)
					sent[head] = req
				}
				for range sent {
					<-p.bell
				}
				require.NoError(t, g.tr.Pause())
				require.Equal(t, 3, g.dev.Parked())
				require.NoError(t, g.tr.Resume())
				for range sent {
					<-p.bell // still no room
				}
				require.Equal(t, 3, g.dev.Stats().Parked)
				require.Contains(t, g.dev.Stats().LastHostError, "no space left")
				require.NoError(t, g.tr.Pause())
				for _, r := range sent {
					require.EqualValues(t, unanswered, g.bytes(r.status, 1)[0])
				}
				if moved {
					p.move(g, 1)
					require.Equal(t, 3, g.dev.Parked())
				}
				p.disk.full.Store(false)
				require.NoError(t, g.tr.Resume())
				for range 3 {
					head, _ := g.wait(0)
					require.EqualValues(t, ok, g.bytes(sent[head].status, 1)[0])
					delete(sent, head)
				}
				require.Empty(t, sent)
				require.Zero(t, g.dev.Parked())
				require.Zero(t, g.dev.Stats().HostErrors)
				got := make([]byte, 512)
				_, err := p.disk.Preadv([][]byte{got}, 3*512)
				require.NoError(t, err)
				require.Equal(t, want, got)
			})
		})
	}
}

// TestParkedUnderLoad fills the disk again and again under a busy guest, and
// resumes it here or elsewhere. Every answer is right and none is missing.
func TestParkedUnderLoad(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		both(t, func(t *testing.T, inline bool) {
			const queues = 2
			p := newParking(t, inline)
			g := boot(t, setup{config: p.config(queues), features: refused, size: 32})
			done := make(chan struct{})
			var wg sync.WaitGroup
			for q := range queues {
				wg.Go(func() { newLoad(g, q, queues).run(300) })
			}
			go func() { wg.Wait(); close(done) }()
			for i := 0; ; i++ {
				p.disk.full.Store(true)
				select {
				case <-p.bell:
				case <-done:
					return
				}
				if i%2 == 0 {
					p.move(g, queues)
				} else {
					require.NoError(t, g.tr.Pause())
					p.disk.full.Store(false)
				}
				require.NoError(t, g.tr.Resume())
				for len(p.bell) > 0 {
					<-p.bell
				}
				// One answer at least before the next time.
				for before := g.dev.Stats().Writes; g.dev.Stats().Writes == before; {
					select {
					case <-done:
						return
					default:
					}
				}
			}
		})
	})
}

// TestParkedAndReset: a driver that takes its rings back gets them, and nothing
// is written there or to the disk any more.
func TestParkedAndReset(t *testing.T) {
	for name, take := range map[string]func(*guest){
		"reset": func(g *guest) { g.regs.Set(0x70, 0) },
		"queue": func(g *guest) { g.regs.Set(0x30, 0); g.regs.Set(0x44, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newParking(t, false)
			g := boot(t, setup{config: p.config(1)})
			p.disk.full.Store(true)
			_, r := g.submit(0, out, 0, writeSeg(g.buffer(bytes.Repeat([]byte{1}, 512)), 512))
			<-p.bell
			take(g)
			p.disk.full.Store(false)
			require.NoError(t, g.tr.Pause())
			require.Zero(t, g.dev.Parked())
			_ = statetest.Stream(t, g.tr)
			require.NoError(t, g.tr.Resume())
			require.NoError(t, g.tr.Pause())
			require.EqualValues(t, unanswered, g.bytes(r.status, 1)[0])
			got := make([]byte, 512)
			_, err := p.disk.Preadv([][]byte{got}, 0)
			require.NoError(t, err)
			require.Equal(t, make([]byte, 512), got)
		})
	}
}

// TestParkedAndSpoilt: a guest that changes a request while it is parked and
// moves harms itself alone.
func TestParkedAndSpoilt(t *testing.T) {
	for name, spoil := range map[string]func(g *guest, head uint16, r request){
		"descriptor": func(g *guest, head uint16, _ request) {
			require.NoError(g.t, g.mem.WriteAt(bytes.Repeat([]byte{0xff}, 16), g.rings[0].Desc+16*uint64(head)))
		},
		"header": func(g *guest, _ uint16, r request) { g.writeHeader(r.header, out, 1<<60) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newParking(t, false)
			g := boot(t, setup{config: p.config(1)})
			p.disk.full.Store(true)
			head, r := g.submit(0, out, 0, writeSeg(g.buffer(make([]byte, 512)), 512))
			<-p.bell
			g.cpu.Lock()
			spoil(g, head, r)
			g.cpu.Unlock()
			p.move(g, 1)
			require.NoError(t, g.tr.Resume())
			if name == "header" {
				g.wait(0)
				require.EqualValues(t, ioErr, g.bytes(r.status, 1)[0])
				return
			}
			for g.regs.Get(0x70)&0x40 == 0 { // DEVICE_NEEDS_RESET
			}
		})
	}
}

// TestFullReported: without Full the guest gets the error.
func TestFullReported(t *testing.T) {
	p := newParking(t, false)
	g := boot(t, setup{config: blk.Config{Backend: p.disk}})
	p.disk.full.Store(true)
	require.EqualValues(t, ioErr, g.do(0, out, 0, writeSeg(g.buffer(make([]byte, 512)), 512)))
	require.EqualValues(t, 1, g.dev.Stats().HostErrors)
	_, err := blk.New(blk.Config{Backend: p.disk, Full: blockfile.Full})
	require.Error(t, err)
}

// TestRestoreParkedFromAnEnemy: places that cannot be are refused.
func TestRestoreParkedFromAnEnemy(t *testing.T) {
	p := newParking(t, false)
	g := boot(t, setup{config: p.config(1)})
	p.disk.full.Store(true)
	g.submit(0, out, 0, writeSeg(g.buffer(make([]byte, 512)), 512))
	<-p.bell
	require.NoError(t, g.tr.Pause())
	stream := statetest.Data(t, g.tr)
	for name, last := range map[string][]byte{
		"there are 1 queues": {1, 0, 7, 0, 0, 0},
		"more than 1 queues": {0xff, 0xff, 0, 0, 0, 0},
	} {
		bad := append(bytes.Clone(stream[:len(stream)-6]), last...)
		g.transport(p.config(1))
		require.ErrorContains(t, statetest.Restore(g.tr, statetest.Stream(t, forged(bad))), name)
	}
}

// forged is a saved transport that somebody made up.
type forged []byte

func (forged) StateID() string                      { return "virtio/disk0" }
func (forged) StateVersion() uint32                 { return 1 }
func (f forged) Save(e *state.Encoder) error        { e.Raw(f); return nil }
func (forged) Restore(uint32, *state.Decoder) error { return nil }
