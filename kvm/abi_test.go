//go:build linux && amd64

package kvm

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// This test compares every struct and constant that the package takes from the
// kernel with the C headers of the machine. It finds them in the package's own
// source, so none can be left out: structs by the //kvm:mirror directive,
// constants by the header's name in their comment.

// newerThanHeader lists what the headers of Linux 6.1 do not have yet, with
// its value. A newer header is compared all the same.
var newerThanHeader = map[string]int64{
	"KVM_EXIT_MEMORY_FAULT": 39, // Linux 6.8
}

// ownConstants are exported but not the kernel's.
var ownConstants = map[string]bool{"DirtyRingEntrySize": true}

type mirror struct {
	goName, cType string
	runMember     string // the member of kvm_run's union, or empty
	since         string // the macro that tells whether the header has it
	size          int64
	fields        []mirrorField
}

type mirrorField struct {
	goName, c    string
	offset, size int64 // size -1: not compared
}

type source struct {
	pkg     *types.Package
	info    *types.Info
	files   []*ast.File
	mirrors []mirror
	consts  map[string]string // Go name to header name
}

// loadSource type-checks this package. Other imports than unsafe fail on
// purpose: layouts and constants need none.
func loadSource(t *testing.T) *source {
	t.Helper()
	s := &source{consts: map[string]string{}}
	names, err := filepath.Glob("*.go")
	require.NoError(t, err)
	fset := token.NewFileSet()
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		require.NoError(t, err)
		s.files = append(s.files, f)
	}
	s.info = &types.Info{Instances: map[*ast.Ident]types.Instance{}, Types: map[ast.Expr]types.TypeAndValue{}}
	config := types.Config{
		Importer: noImports{},
		Error:    func(error) {},
		Sizes:    types.SizesFor("gc", "amd64"),
	}
	s.pkg, _ = config.Check("godwit/kvm", fset, s.files, s.info)
	require.NotNil(t, s.pkg)
	for _, f := range s.files {
		s.collect(t, f, config.Sizes)
	}
	require.Greater(t, len(s.mirrors), 40, "the //kvm:mirror directives were not found")
	require.Greater(t, len(s.consts), 200, "the constants were not found")
	return s
}

type noImports struct{}

func (noImports) Import(path string) (*types.Package, error) {
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	return nil, errors.New("not needed here")
}

func (s *source) collect(t *testing.T, f *ast.File, sizes types.Sizes) {
	for _, decl := range f.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range g.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if words := directive(g.Doc); words != nil {
					s.mirrors = append(s.mirrors, s.mirrorOf(t, spec.Name.Name, words, sizes))
				}
			case *ast.ValueSpec:
				if g.Tok == token.CONST && spec.Comment != nil {
					word, _, _ := strings.Cut(strings.TrimSpace(spec.Comment.Text()), " ")
					if strings.HasPrefix(word, "KVM_") {
						s.consts[spec.Names[0].Name] = word
					}
				}
			}
		}
	}
}

func directive(doc *ast.CommentGroup) []string {
	if doc == nil {
		return nil
	}
	for _, c := range doc.List {
		if rest, ok := strings.CutPrefix(c.Text, "//kvm:mirror "); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}

func (s *source) mirrorOf(t *testing.T, name string, words []string, sizes types.Sizes) mirror {
	m := mirror{goName: name, cType: "struct " + words[0]}
	if owner, member, ok := strings.Cut(words[0], "."); ok {
		m.cType = fmt.Sprintf("__typeof__(((struct %s *)0)->%s)", owner, member)
		m.runMember = member
	}
	if len(words) == 3 && words[1] == "since" {
		m.since = words[2]
	}
	st, ok := s.pkg.Scope().Lookup(name).Type().Underlying().(*types.Struct)
	require.True(t, ok, "%s is not a struct", name)
	m.size = sizes.Sizeof(st)
	fields := make([]*types.Var, st.NumFields())
	for i := range fields {
		fields[i] = st.Field(i)
	}
	for i, offset := range sizes.Offsetsof(fields) {
		if fields[i].Name() == "_" {
			continue
		}
		tag := reflect.StructTag(st.Tag(i))
		f := mirrorField{goName: fields[i].Name(), c: tag.Get("c"), offset: offset, size: sizes.Sizeof(fields[i].Type())}
		if f.c == "" {
			f.c = snake(f.goName)
		}
		if tag.Get("csize") == "-" {
			f.size = -1
		}
		m.fields = append(m.fields, f)
	}
	return m
}

// snake turns GuestPhysAddr into guest_phys_addr and APICBase into apic_base.
func snake(s string) string {
	var b strings.Builder
	r := []rune(s)
	for i, c := range r {
		upper := unicode.IsUpper(c)
		if upper && i > 0 && (!unicode.IsUpper(r[i-1]) || i+1 < len(r) && unicode.IsLower(r[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}

// compileAndRun gives the program's output, lines of "key value".
func compileAndRun(t *testing.T, program string) map[string]int64 {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	require.NoError(t, err, "this test compares with the C headers: install gcc and linux-libc-dev")
	dir := t.TempDir()
	src, bin := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	require.NoError(t, os.WriteFile(src, []byte(program), 0o600))
	out, err := exec.Command(gcc, "-std=gnu11", "-o", bin, src).CombinedOutput()
	require.NoError(t, err, "gcc (are linux-libc-dev and libc6-dev installed?):\n%s", out)
	out, err = exec.Command(bin).Output()
	require.NoError(t, err)
	values := map[string]int64{}
	for line := range bytes.Lines(out) {
		key, value, ok := strings.Cut(strings.TrimSpace(string(line)), " ")
		require.True(t, ok, "%q", line)
		n, err := strconv.ParseInt(value, 10, 64)
		require.NoError(t, err)
		values[key] = n
	}
	return values
}

const cHead = `#include <stddef.h>
#include <stdio.h>
#include <linux/kvm.h>
#define P(key, value) printf("%s %lld\n", key, (long long)(value))
int main(void) {
`

func TestStructsMatchHeader(t *testing.T) {
	s := loadSource(t)
	var c strings.Builder
	c.WriteString(cHead)
	for _, m := range s.mirrors {
		if m.since != "" {
			fmt.Fprintf(&c, "#ifdef %s\n", m.since)
		}
		fmt.Fprintf(&c, "P(%q, sizeof(%s));\n", m.goName, m.cType)
		for _, f := range m.fields {
			fmt.Fprintf(&c, "P(%q, offsetof(%s, %s));\n", m.goName+"."+f.goName, m.cType, f.c)
			fmt.Fprintf(&c, "P(%q, sizeof(((%s *)0)->%s));\n", m.goName+"."+f.goName+"#", m.cType, f.c)
		}
		if m.runMember != "" {
			fmt.Fprintf(&c, "P(%q, offsetof(struct kvm_run, %s));\n", m.goName+"@", m.runMember)
		}
		if m.since != "" {
			c.WriteString("#endif\n")
		}
	}
	c.WriteString("}\n")
	values := compileAndRun(t, c.String())

	payloadOffset := values["run.Payload"]
	require.NotZero(t, payloadOffset)
	for _, m := range s.mirrors {
		t.Run(m.goName, func(t *testing.T) {
			size, ok := values[m.goName]
			if !ok {
				require.Contains(t, newerThanHeader, m.since, "the header lacks it")
				return
			}
			require.Equal(t, size, m.size, "size of %s", m.cType)
			for _, f := range m.fields {
				require.Equal(t, values[m.goName+"."+f.goName], f.offset, "offset of %s.%s", m.cType, f.c)
				if f.size >= 0 {
					require.Equal(t, values[m.goName+"."+f.goName+"#"], f.size, "size of %s.%s", m.cType, f.c)
				}
			}
			if m.runMember != "" {
				require.Equal(t, payloadOffset, values[m.goName+"@"], "place in kvm_run")
			}
		})
	}
}

// The decoders of these use places inside a union that no mirrored struct has.
func TestUnionPlacesMatchHeader(t *testing.T) {
	values := compileAndRun(t, cHead+`
P("immediate_exit", offsetof(struct kvm_run, immediate_exit));
P("request", offsetof(struct kvm_run, request_interrupt_window));
P("data", offsetof(struct kvm_run, internal.data));
P("flags", offsetof(struct kvm_run, emulation_failure.flags));
P("insn_size", offsetof(struct kvm_run, emulation_failure.insn_size));
P("insn_bytes", offsetof(struct kvm_run, emulation_failure.insn_bytes));
P("insn_room", sizeof(((struct kvm_run *)0)->emulation_failure.insn_bytes));
P("payload", offsetof(struct kvm_run, padding));
P("hw", offsetof(struct kvm_run, hw.hardware_exit_reason));
P("eoi", offsetof(struct kvm_run, eoi.vector));
P("chip", offsetof(struct kvm_irq_routing_entry, u.irqchip.irqchip) - offsetof(struct kvm_irq_routing_entry, u));
P("pin", offsetof(struct kvm_irq_routing_entry, u.irqchip.pin) - offsetof(struct kvm_irq_routing_entry, u));
P("lo", offsetof(struct kvm_irq_routing_entry, u.msi.address_lo) - offsetof(struct kvm_irq_routing_entry, u));
P("hi", offsetof(struct kvm_irq_routing_entry, u.msi.address_hi) - offsetof(struct kvm_irq_routing_entry, u));
P("msi_data", offsetof(struct kvm_irq_routing_entry, u.msi.data) - offsetof(struct kvm_irq_routing_entry, u));
P("xsave", sizeof(struct kvm_xsave));
}
`)
	require.EqualValues(t, bits.TrailingZeros(immediateExitBit)/8, values["immediate_exit"])
	require.EqualValues(t, bits.TrailingZeros(requestWindowBit)/8, values["request"])
	require.Equal(t, values["data"], values["flags"])
	require.Equal(t, values["data"]+8, values["insn_size"])
	require.Equal(t, values["data"]+9, values["insn_bytes"])
	require.EqualValues(t, 15, values["insn_room"])
	require.Equal(t, values["payload"], values["hw"])
	require.Equal(t, values["payload"], values["eoi"])
	require.EqualValues(t, []int64{0, 4}, []int64{values["chip"], values["pin"]})
	require.EqualValues(t, []int64{0, 4, 8}, []int64{values["lo"], values["hi"], values["msi_data"]})
	require.EqualValues(t, xsaveMin, values["xsave"])
}

func TestConstantsMatchHeader(t *testing.T) {
	s := loadSource(t)
	var c strings.Builder
	c.WriteString(cHead)
	for _, name := range s.consts {
		fmt.Fprintf(&c, "#ifdef %s\nP(%q, %s);\n#endif\n", name, name, name)
	}
	c.WriteString("}\n")
	values := compileAndRun(t, c.String())
	for goName, name := range s.consts {
		want, ok := values[name]
		if !ok {
			want, ok = newerThanHeader[name]
			require.True(t, ok, "%s: the header has no %s; list it in newerThanHeader if it is newer", goName, name)
		}
		got := s.value(t, goName)
		require.Equal(t, want, got, "%s should be %s", goName, name)
	}
	for name, value := range newerThanHeader {
		if inHeader, ok := values[name]; ok {
			require.Equal(t, inHeader, value, name)
		}
	}
}

func (s *source) value(t *testing.T, goName string) int64 {
	t.Helper()
	v, ok := constant.Int64Val(constant.ToInt(s.pkg.Scope().Lookup(goName).(*types.Const).Val()))
	require.True(t, ok, goName)
	return v
}

// Every exported constant and every ioctl says which header constant it is,
// and the types that can print themselves print that name.
func TestConstantsAreNamed(t *testing.T) {
	s := loadSource(t)
	for _, goName := range s.pkg.Scope().Names() {
		c, ok := s.pkg.Scope().Lookup(goName).(*types.Const)
		if !ok {
			continue
		}
		kind := strings.TrimPrefix(c.Type().String(), "godwit/kvm.")
		name, named := s.consts[goName]
		if !named {
			require.False(t, (c.Exported() && !ownConstants[goName]) || kind == "ioctl",
				"%s lacks the header's name in a comment at the end of its line", goName)
			continue
		}
		value := s.value(t, goName)
		switch kind {
		case "ioctl":
			require.Equal(t, name, ioctl(value).String())
		case "Cap":
			require.Equal(t, name, Cap(value).String())
		case "ExitReason":
			require.Equal(t, name, ExitReason(value).String())
		}
	}
	require.Equal(t, "KVM_EXIT_99", ExitReason(99).String())
	require.Equal(t, "KVM_EXIT_4294967295", ExitReason(1<<32-1).String())
	require.Equal(t, "KVM_CAP_9999", Cap(9999).String())
	require.Equal(t, "ioctl 0x7", ioctl(7).String())
}

// A struct whose address goes to the kernel must be compared with the header.
func TestEveryKernelStructIsMirrored(t *testing.T) {
	s := loadSource(t)
	mirrored := map[string]bool{}
	for _, m := range s.mirrors {
		mirrored[m.goName] = true
	}
	found := 0
	check := func(typ types.Type) {
		if p, ok := typ.(*types.Pointer); ok {
			typ = p.Elem()
		}
		named, ok := typ.(*types.Named)
		if !ok || named.Obj().Pkg() != s.pkg {
			return
		}
		if _, ok := named.Underlying().(*types.Struct); ok {
			found++
			require.True(t, mirrored[named.Obj().Name()], "%s goes to the kernel but has no //kvm:mirror directive", named.Obj().Name())
		}
	}
	for id, inst := range s.info.Instances {
		switch id.Name {
		case "get", "set", "newFlex", "payload":
			for arg := range inst.TypeArgs.Types() {
				check(arg)
			}
		}
	}
	for _, f := range s.files {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 1 {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Pointer" {
				check(s.info.Types[call.Args[0]].Type)
			}
			return true
		})
	}
	require.Greater(t, found, 30, "the calls were not found")
}
