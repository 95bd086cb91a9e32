package lab

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// moduleIndex finds modules and their dependencies in an unpacked package.
// The package has no modules.dep (depmod makes it on installation), so the
// dependencies are read from the modules themselves.
type moduleIndex struct {
	files   map[string]string // name with underscores -> host path
	builtin map[string]bool
}

func moduleName(s string) string {
	base, _, _ := strings.Cut(filepath.Base(s), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

func indexModules(k Kernel) (*moduleIndex, error) {
	ix := &moduleIndex{files: map[string]string{}, builtin: map[string]bool{}}
	for _, lib := range []string{"lib", "usr/lib"} {
		root := filepath.Join(k.Dir, lib, "modules", k.Release)
		if _, err := os.Stat(root); err != nil {
			continue
		}
		list, _ := os.ReadFile(filepath.Join(root, "modules.builtin"))
		for _, line := range strings.Fields(string(list)) {
			ix.builtin[moduleName(line)] = true
		}
		err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.HasSuffix(p, ".ko") {
				ix.files[moduleName(p)] = p
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%w: kernel modules: %w", ErrHost, err)
		}
	}
	return ix, nil
}

// closure gives the files of the named modules and of all they depend on, in
// an order in which they can be loaded.
func (ix *moduleIndex) closure(names []string) ([]string, error) {
	var order []string
	done := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if done[name] || ix.builtin[name] {
			return nil
		}
		done[name] = true // before the descent, so that a cycle ends
		file, ok := ix.files[name]
		if !ok {
			return fmt.Errorf("%w: the outer kernel has no module %q", ErrConfig, name)
		}
		deps, err := moduleDepends(file)
		if err != nil {
			return fmt.Errorf("%w: module %q: %w", ErrHost, name, err)
		}
		for _, d := range deps {
			if err := visit(moduleName(d)); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, n := range names {
		if err := visit(moduleName(n)); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads "depends=a,b" from a module's .modinfo section.
func moduleDepends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s: no .modinfo section", file)
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range bytes.Split(data, []byte{0}) {
		if v, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(v) > 0 {
			return strings.Split(string(v), ","), nil
		}
	}
	return nil, nil
}

// checkStatic refuses a program that needs a dynamic linker: there is none
// inside.
func checkStatic(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%w: program %q for the lab: %w", ErrConfig, file, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("%w: program %q is for %v, and the machine is x86-64", ErrConfig, file, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%w: program %q is dynamically linked and cannot run inside; build it with CGO_ENABLED=0 (and without -race)",
				ErrConfig, file)
		}
	}
	return nil
}
