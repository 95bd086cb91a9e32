package units

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "1": 1, "4096": 4096, "1K": 1024, "512M": 512 << 20, "2G": 2 << 30, "1T": 1 << 40,
		"18446744073709551615": 1<<64 - 1,
	} {
		got, err := ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "M", "-1", "+1", " 1", "1 M", "1.5G", "1MB", "1MiB", "0x10", "1k",
		"18446744073709551616", "18446744073709551615K", "16777216T", "１"} {
		_, err := ParseSize(text)
		require.ErrorIs(t, err, ErrSyntax, text)
	}
}

func TestParseMiB(t *testing.T) {
	for text, want := range map[string]int{"1M": 1, "1024K": 1, "1048576": 1, "2G": 2048} {
		got, err := ParseMiB(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"0", "0M", "1", "1536K", "15T15", "1048577", "4294967296M"} {
		_, err := ParseMiB(text)
		require.ErrorIs(t, err, ErrSyntax, text)
	}
	rapid.Check(t, func(t *rapid.T) {
		mib := rapid.IntRange(1, 1<<30).Draw(t, "mib")
		got, err := ParseMiB(FormatMiB(mib))
		require.NoError(t, err)
		require.Equal(t, mib, got)
	})
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "125MB/s": 125e6, "1Gbit/s": 125e6, "1.5GB/s": 1500e6, "8bit/s": 1, "1B/s": 1, "100kbit/s": 12500,
	} {
		got, err := ParseRate(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "125", "MB/s", "-1MB/s", "125MB", "125 MB/s", "1e3MB/s", "0MB/s", "1..2MB/s",
		"NaNMB/s", "99999999999999999999GB/s", "125MiB/s", "125mb/s"} {
		_, err := ParseRate(text)
		require.ErrorIs(t, err, ErrSyntax, text)
	}
}

func TestFormat(t *testing.T) {
	require.Equal(t, "512M", FormatMiB(512))
	require.Equal(t, "2G", FormatMiB(2048))
	require.Equal(t, "0 B", FormatBytes(0))
	require.Equal(t, "1.5 kB", FormatBytes(1500))
	require.Equal(t, "125 MB/s", FormatRate(125e6))
	require.Equal(t, "2.34 GB/s", FormatRate(2.3449e9))
}

func TestParsePairs(t *testing.T) {
	got, err := ParsePairs("path=/a b,readonly,id=x=y")
	require.NoError(t, err)
	require.Equal(t, []Pair{{"path", "/a b"}, {"readonly", ""}, {"id", "x=y"}}, got)
	for _, text := range []string{"", ",", "a,", "=b", "a=", "a=1,a=2", "a,a"} {
		_, err := ParsePairs(text)
		require.ErrorIs(t, err, ErrSyntax, text)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"512M", "125MB/s", "path=a,readonly", "1.5Gbit/s", "99999999999999999999T", ",,=", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if mib, err := ParseMiB(s); err == nil && mib < 1 {
			t.Fatalf("ParseMiB(%q) = %d", s, mib)
		}
		if rate, err := ParseRate(s); err == nil && rate < 0 {
			t.Fatalf("ParseRate(%q) = %d", s, rate)
		}
		if size, err := ParseSize(s); err == nil && size > 0 && s[0] == '0' && len(s) == 1 {
			t.Fatalf("ParseSize(%q) = %d", s, size)
		}
		pairs, err := ParsePairs(s)
		for _, p := range pairs {
			if err != nil || p.Key == "" {
				t.Fatalf("ParsePairs(%q) = %v, %v", s, pairs, err)
			}
		}
	})
}
