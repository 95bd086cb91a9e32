package metronome

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The committed ELF is what its source gives. Another compiler may well give
// other bytes; then the recorded hash of the source says whether the ELF is of
// this source, and the build is only seen to work.
func TestELFMatchesSource(t *testing.T) {
	for _, tool := range []string{"sh", "gcc", "ld"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot rebuild metronome.elf: %v; install gcc", err)
		}
	}
	out := filepath.Join(t.TempDir(), "metronome.elf")
	output, err := exec.Command("sh", "./build.sh", out).CombinedOutput()
	require.NoError(t, err, "build.sh: %s", output)

	recorded, err := os.ReadFile("metronome.elf.compiler")
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(recorded), sources(t)), "guest/ has changed since metronome.elf was built: run ./build.sh and commit the result")
	if here := compiler(t); !strings.HasPrefix(string(recorded), here) {
		t.Logf("another compiler than the one that made metronome.elf: bytes are not compared.\nrecorded: %shere: %s", recorded, here)
		return
	}
	require.Empty(t, string(output), "the build must be free of warnings")
	rebuilt, err := os.ReadFile(out)
	require.NoError(t, err)
	require.True(t, bytes.Equal(rebuilt, ELF()), "metronome.elf is not what guest/ gives: run ./build.sh and commit the result")
}

// sources hashes what build.sh does: itself and guest/, in the order of names.
func sources(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("guest/*")
	require.NoError(t, err)
	h := sha256.New()
	for _, name := range append([]string{"build.sh"}, names...) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		h.Write(text)
	}
	return hex.EncodeToString(h.Sum(nil)) + "\n"
}

func compiler(t *testing.T) string {
	t.Helper()
	var lines strings.Builder
	for _, tool := range []string{"gcc", "ld"} {
		out, err := exec.Command(tool, "--version").Output()
		require.NoError(t, err)
		line, _, _ := strings.Cut(string(out), "\n")
		lines.WriteString(line + "\n")
	}
	return lines.String()
}

func TestELFLayout(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(ELF()))
	require.NoError(t, err)
	require.Equal(t, elf.EM_X86_64, f.Machine)
	require.Less(t, len(ELF()), 96<<10)

	var loads, notes []*elf.Prog
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_LOAD:
			loads = append(loads, p)
		case elf.PT_NOTE:
			notes = append(notes, p)
		}
	}
	require.Len(t, loads, 1)
	require.EqualValues(t, ImageGPA, loads[0].Paddr)
	require.EqualValues(t, ArenaGPA-ImageGPA, loads[0].Memsz)
	require.Len(t, notes, 1)

	note := make([]byte, notes[0].Filesz)
	_, err = notes[0].ReadAt(note, 0)
	require.NoError(t, err)
	le := f.ByteOrder
	require.EqualValues(t, 4, le.Uint32(note))
	require.EqualValues(t, 8, le.Uint32(note[4:]))
	require.EqualValues(t, 18, le.Uint32(note[8:])) // XEN_ELFNOTE_PHYS32_ENTRY
	require.Equal(t, "Xen\x00", string(note[12:16]))
	require.Equal(t, f.Entry, le.Uint64(note[16:]))
}

// The Go constants are those of guest/layout.h.
func TestLayoutConstants(t *testing.T) {
	header, err := os.ReadFile("guest/layout.h")
	require.NoError(t, err)
	got := map[string]uint64{}
	for _, m := range regexp.MustCompile(`(?m)^#define (\w+)\s+(0x[0-9a-f]+|\d+)\b`).FindAllStringSubmatch(string(header), -1) {
		got[m[1]], err = strconv.ParseUint(m[2], 0, 64)
		require.NoError(t, err)
	}
	for name, want := range map[string]uint64{
		"TRAMPOLINE_GPA": TrampolineGPA, "IMAGE_GPA": ImageGPA, "INFO_GPA": InfoGPA,
		"MAILBOX_GPA": MailboxGPA, "MAILBOX_PAGES": MailboxPages, "ARENA_GPA": ArenaGPA,
		"MAX_VCPUS": MaxVCPUs, "MAX_GIB": MaxMemory >> 30, "PORT_COM1": PortCOM1,
		"PORT_EXIT": PortExit, "PORT_BOOT_TIMER": PortBootTimer,
		"EXIT_BAD_OPTION": ExitBadOption, "EXIT_FAULT": ExitFault,
	} {
		require.Equal(t, want, got[name], name)
	}
}

func TestELFIsACopy(t *testing.T) {
	ELF()[0] ^= 0xff
	require.Equal(t, byte(0x7f), ELF()[0])
}
