package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// ErrBadPolicy says that a policy's name or one of its options is wrong.
var ErrBadPolicy = errors.New("bad policy")

// The policies known by name.
var (
	Orders    = &Registry[Order]{kind: "order"}
	Codecs    = &Registry[Codec]{kind: "codec"}
	Throttles = &Registry[Throttle]{kind: "throttle"}
	Stops     = &Registry[Stop]{kind: "stop"}
)

// Registry finds policies of one kind by name. Register in init functions only;
// reading is then safe from any goroutine.
type Registry[P any] struct {
	kind  string
	makes map[string]func(*Options) (P, error)
}

// Register adds a policy. A name used twice is a bug and panics.
func (g *Registry[P]) Register(name string, make func(*Options) (P, error)) {
	if _, ok := g.makes[name]; ok || strings.ContainsAny(name, ",= ") || name == "" {
		panic(fmt.Sprintf("policy: %s name %q is taken or not usable", g.kind, name))
	}
	if g.makes == nil {
		g.makes = map[string]func(*Options) (P, error){}
	}
	g.makes[name] = make
}

// Names lists the names in order.
func (g *Registry[P]) Names() []string { return slices.Sorted(maps.Keys(g.makes)) }

// Parse makes a policy from NAME[,key=value..]. An empty text gives the zero P,
// which stands for the default.
func (g *Registry[P]) Parse(text string) (P, error) {
	var none P
	if text == "" {
		return none, nil
	}
	parts := strings.Split(text, ",")
	// NAME:VALUE has an option without a name.
	name, value, short := strings.Cut(parts[0], ":")
	rest := parts[1:]
	make, ok := g.makes[name]
	if !ok {
		return none, fmt.Errorf("%w: %s %q; known: %s", ErrBadPolicy, g.kind, name, strings.Join(g.Names(), ", "))
	}
	o := &Options{values: map[string]string{}}
	if short {
		o.values[""] = value
	}
	for _, p := range rest {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" || v == "" {
			return none, fmt.Errorf("%w: %s %q: option %.40q is not NAME=VALUE", ErrBadPolicy, g.kind, name, p)
		}
		if _, twice := o.values[k]; twice {
			return none, fmt.Errorf("%w: %s %q: %s given twice", ErrBadPolicy, g.kind, name, what(k))
		}
		o.values[k] = v
	}
	p, err := make(o)
	if err == nil {
		err = o.err
	}
	if err != nil {
		return none, fmt.Errorf("%w: %s %q: %w", ErrBadPolicy, g.kind, name, err)
	}
	for k := range o.values {
		if !o.used[k] {
			return none, fmt.Errorf("%w: %s %q takes no %s", ErrBadPolicy, g.kind, name, what(k))
		}
	}
	return p, nil
}

// Options are the key=value pairs behind a policy's name. The option without a
// name, as in NAME:VALUE, has the key "". What no getter asked for is refused
// by Parse, and so is the first value that a getter found wrong.
type Options struct {
	values map[string]string
	used   map[string]bool
	err    error
}

// Int is option key as a whole number from low to high, or def when absent.
func (o *Options) Int(key string, def, low, high int) int {
	text, ok := o.take(key)
	if !ok {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		o.refuse("%s must be a whole number from %d to %d, not %.40q", what(key), low, high, text)
	}
	return n
}

// Given tells whether option key stands there.
func (o *Options) Given(key string) bool {
	_, ok := o.values[key]
	return ok
}

// refuse keeps the first thing that is wrong.
func (o *Options) refuse(format string, a ...any) {
	if o.err == nil {
		o.err = fmt.Errorf(format, a...)
	}
}

// what names an option in a message; the one without a name follows a colon.
func what(key string) string {
	if key == "" {
		return "value behind ':'"
	}
	return "option " + strconv.Quote(key)
}

// String is option key, or def when absent.
func (o *Options) String(key, def string) string {
	if text, ok := o.take(key); ok {
		return text
	}
	return def
}

func (o *Options) take(key string) (string, bool) {
	if o.used == nil {
		o.used = map[string]bool{}
	}
	o.used[key] = true
	text, ok := o.values[key]
	return text, ok
}
