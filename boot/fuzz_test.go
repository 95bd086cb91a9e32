package boot

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
)

// pvhELF makes an ELF file with one segment of code and one note.
func pvhELF(code []byte, paddr uint64, noteType uint32, entry uint64) []byte {
	le := binary.LittleEndian
	const eh, ph = 64, 56
	note := le.AppendUint32(nil, 4)
	note = le.AppendUint32(note, 8)
	note = le.AppendUint32(note, noteType)
	note = append(note, "Xen\x00"...)
	note = le.AppendUint64(note, entry)
	off := uint64(eh + 2*ph)
	b := make([]byte, off)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], eh)
	le.PutUint16(b[52:], eh)
	le.PutUint16(b[54:], ph)
	le.PutUint16(b[56:], 2)
	head := func(at int, kind uint32, off, paddr, filesz, memsz uint64) {
		le.PutUint32(b[at:], kind)
		le.PutUint64(b[at+8:], off)
		le.PutUint64(b[at+24:], paddr)
		le.PutUint64(b[at+32:], filesz)
		le.PutUint64(b[at+40:], memsz)
	}
	head(eh, 1, off, paddr, uint64(len(code)), uint64(len(code))+100)
	head(eh+ph, 4, off+uint64(len(code)), 0, uint64(len(note)), uint64(len(note)))
	return append(append(b, code...), note...)
}

func TestPVH(t *testing.T) {
	mem := newMem(t, 64)
	rd := image("rd", []byte("initrd"))
	e, err := Load(mem, Config{Kernel: image("k", pvhELF([]byte("code"), 0x100000, 18, 0x100002)), Initrd: &rd, Cmdline: "x=1", CPUs: 1})
	require.NoError(t, err)
	require.Equal(t, Protected32, e.Mode)
	require.EqualValues(t, 0x100002, e.RIP)
	info := make([]byte, 56)
	require.NoError(t, mem.ReadAt(info, e.RBX))
	le := binary.LittleEndian
	require.EqualValues(t, startInfoMagic, le.Uint32(info))
	require.EqualValues(t, 1, le.Uint32(info[12:]), "modules")
	require.EqualValues(t, cmdlineAddr, le.Uint64(info[24:]))
	require.EqualValues(t, len(memoryMap(mem)), le.Uint32(info[48:]))
	mod := make([]byte, 16)
	require.NoError(t, mem.ReadAt(mod, modListAddr))
	got := make([]byte, le.Uint64(mod[8:]))
	require.NoError(t, mem.ReadAt(got, le.Uint64(mod)))
	require.Equal(t, "initrd", string(got))
}

func TestBadELF(t *testing.T) {
	for name, tc := range map[string]struct {
		file []byte
		want error
		says string
	}{
		"no note":       {pvhELF([]byte("code"), 0x100000, 17, 0x100000), ErrKernel, "CONFIG_PVH"},
		"entry outside": {pvhELF([]byte("code"), 0x100000, 18, 0x900000), ErrKernel, "entry point"},
		"low segment":   {pvhELF([]byte("code"), 0x9000, 18, 0x9000), ErrMemory, "RAM for kernels"},
		"high segment":  {pvhELF([]byte("code"), 1<<40, 18, 1<<40), ErrMemory, "no amount of memory"},
		"large segment": {pvhELF([]byte("code"), 1<<30, 18, 1<<30), ErrMemory, "raise --memory"},
		"wrap-around":   {pvhELF([]byte("code"), 1<<64-50, 18, 1<<40), ErrMemory, "no amount of memory"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(newMem(t, 64), Config{Kernel: image("k", tc.file), CPUs: 1})
			require.ErrorIs(t, err, tc.want)
			require.ErrorContains(t, err, tc.says)
		})
	}
}

// FuzzLoad: no file makes Load panic or write outside guest memory (which
// guestmem would refuse), and what it accepts starts inside RAM.
func FuzzLoad(f *testing.F) {
	f.Add(bzImage(4096, nil))
	f.Add(pvhELF([]byte("code"), 0x100000, 18, 0x100002))
	f.Add([]byte("\x7fELF"))
	mem, err := guestmem.New(32<<20, guestmem.Options{})
	require.NoError(f, err)
	f.Cleanup(func() { _ = mem.Close() })
	f.Fuzz(func(t *testing.T, file []byte) {
		rd := image("rd", []byte("initrd"))
		e, err := Load(mem, Config{Kernel: image("k", file), Initrd: &rd, Cmdline: "x", CPUs: 1})
		if err == nil && (e.RIP < highMemory || e.RIP >= 32<<20) {
			t.Fatalf("entry at %#x", e.RIP)
		}
	})
}
