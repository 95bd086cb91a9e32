package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"godwit/boot/metronome"
)

// console is the serial port of one end, read as it comes.
type console struct {
	watch
	partial []byte
	lines   []line
}

// line is one line of the guest, whole, with the time at which its end came.
type line struct {
	at   time.Time
	text string
}

// maxPartial is far above the guest's longest line.
const maxPartial = 64 << 10

// Write takes what the guest printed, and wakes who waits once a line is whole: it
// comes byte by byte. It implements io.Writer.
func (c *console) Write(p []byte) (int, error) {
	now, whole := time.Now(), bytes.IndexByte(p, '\n') >= 0
	c.mu.Lock()
	c.partial = append(c.partial, p...)
	for {
		i := bytes.IndexByte(c.partial, '\n')
		if i < 0 {
			break
		}
		c.lines = append(c.lines, line{now, strings.TrimRight(string(c.partial[:i]), "\r")})
		c.partial = c.partial[i+1:]
	}
	if len(c.partial) > maxPartial {
		c.partial = nil
	}
	c.mu.Unlock()
	if whole {
		c.changed()
	}
	return len(p), nil
}

// story is what the guest said up to now, at both ends.
type story struct {
	filled        bool
	source, there []beatAt // beats whose line began at the source, at the destination
}

// beatAt is a beat and when its line had come.
type beatAt struct {
	metronome.Beat
	at time.Time
}

// read makes a story of what the consoles hold; there may be nil. A line that was
// cut by the move began at the source: its pieces are joined. What the guest finds
// wrong is an error.
func read(source, there *console) (story, error) {
	var s story
	lines, cut := source.text()
	err := s.add(lines, &s.source)
	if there == nil || err != nil {
		return s, err
	}
	lines, _ = there.text()
	if len(lines) > 0 && metronome.Kind(lines[0].text) == metronome.LineOther {
		joined := line{lines[0].at, cut + lines[0].text}
		lines = lines[1:]
		if err := s.add([]line{joined}, &s.source); err != nil {
			return s, err
		}
	}
	return s, s.add(lines, &s.there)
}

func (c *console) text() (lines []line, cut string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines[:len(c.lines):len(c.lines)], string(c.partial)
}

// add sorts lines into the story. A line that was mangled on its way is left out;
// the beats' cadence shows it.
func (s *story) add(lines []line, to *[]beatAt) error {
	for _, l := range lines {
		switch metronome.Kind(l.text) {
		case metronome.LineFilled:
			s.filled = true
		case metronome.LineBeat:
			b, err := metronome.ParseBeat(l.text)
			if err != nil {
				continue
			}
			*to = append(*to, beatAt{b, l.at})
			if b.Bad > 0 {
				return fmt.Errorf("the guest found %d bad pages by its beat at %d ms", b.Bad, b.TMs)
			}
		case metronome.LineBad, metronome.LineFault, metronome.LineError:
			return fmt.Errorf("the guest says: %s", l.text)
		}
	}
	return nil
}

// steady says whether the last n beats came one after the other, none lost, at
// the rate that was asked for (0: any).
func steady(beats []beatAt, n int, every time.Duration, rate uint64) bool {
	if len(beats) < n {
		return false
	}
	beats = beats[len(beats)-n:]
	for i := 1; i < n; i++ {
		step := time.Duration(beats[i].TMs-beats[i-1].TMs) * time.Millisecond
		if step < every/2 || step > every*3/2 {
			return false
		}
	}
	if rate == 0 {
		return true
	}
	got := perSecond(beats)
	return got > 0.9*float64(rate) && got < 1.1*float64(rate)
}

// work is what a guest has done up to a beat: pages written, and pages read and
// verified.
func work(b beatAt) uint64 { return b.Writes + b.Reads }

// perSecond is the work done, by the guest's own clock, from the first beat to
// the last.
func perSecond(beats []beatAt) float64 {
	if len(beats) < 2 {
		return 0
	}
	first, last := beats[0], beats[len(beats)-1]
	if last.TMs <= first.TMs || work(last) < work(first) {
		return 0
	}
	return float64(work(last)-work(first)) / (float64(last.TMs-first.TMs) / 1000)
}

// longestGap is in milliseconds.
func longestGap(beats []beatAt) float64 {
	var us uint64
	for _, b := range beats {
		us = max(us, b.GapUs)
	}
	return float64(us) / 1000
}

// between are the beats that came from one time to another.
func between(beats []beatAt, from, to time.Time) []beatAt {
	var in []beatAt
	for _, b := range beats {
		if !b.at.Before(from) && !b.at.After(to) {
			in = append(in, b)
		}
	}
	return in
}

// leastBin is the shortest time, in ms, that stands as a second of its own at the
// end of bySecond.
const leastBin = 400

// bySecond is the rate of work in each second of the beats, the last one being
// what is left.
func bySecond(beats []beatAt) []float64 {
	var rates []float64
	from := 0
	for i := range beats {
		if beats[i].TMs-beats[from].TMs >= 1000 {
			rates = append(rates, perSecond(beats[from:i+1]))
			from = i
		}
	}
	if n := len(beats); n > 0 && (beats[n-1].TMs-beats[from].TMs >= leastBin || len(rates) == 0 && from < n-1) {
		rates = append(rates, perSecond(beats[from:]))
	}
	return rates
}
