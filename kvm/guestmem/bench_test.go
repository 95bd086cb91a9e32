package guestmem

import "testing"

func BenchmarkWriteAt4K(b *testing.B) {
	m := newMemory(b, 64*mib, Options{})
	p := make([]byte, PageSize)
	if err := m.Populate([]Extent{{0, m.Size()}}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(PageSize)
	var gpa uint64
	for b.Loop() {
		if err := m.WriteAt(p, gpa); err != nil {
			b.Fatal(err)
		}
		gpa = (gpa + PageSize) % m.Size()
	}
}

func BenchmarkLoadUint16(b *testing.B) {
	m := newMemory(b, 5*gib, Options{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.LoadUint16(HoleEnd + 2); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStoreUint16(b *testing.B) {
	m := newMemory(b, 5*gib, Options{})
	b.ReportAllocs()
	for b.Loop() {
		if err := m.StoreUint16(HoleEnd+2, 1); err != nil {
			b.Fatal(err)
		}
	}
}

// The assembly store against its portable twin, without bounds check and mark.
func BenchmarkRawStore16(b *testing.B) {
	for name, store := range map[string]func(*uint16, uint16){"native": storeUint16, "cas": casUint16} {
		b.Run(name, func(b *testing.B) {
			var w [2]uint16
			for b.Loop() {
				store(&w[0], 1)
			}
		})
	}
}

func BenchmarkFence(b *testing.B) {
	for b.Loop() {
		Fence()
	}
}

func BenchmarkMarkDirty(b *testing.B) {
	m := newMemory(b, 8*gib, Options{})
	b.ReportAllocs()
	for b.Loop() {
		m.MarkDirty(HoleEnd, PageSize)
	}
}

func BenchmarkDrainDirty8G(b *testing.B) {
	m := newMemory(b, 8*gib, Options{})
	dst := make([]uint64, (m.Frames()+63)/64)
	for name, dirty := range map[string]uint64{"clean": 0, "full": 9 * gib} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.MarkDirty(0, dirty)
				m.DrainDirty(dst)
			}
		})
	}
}

func BenchmarkTouchedUntouched8G(b *testing.B) {
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			m := newMemory(b, 8*gib, Options{Backing: w.backing})
			m.noPagemapScan.Store(w.fallback)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.Touched(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
