package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel is an outer kernel in the cache.
type Kernel struct {
	Dir     string // the unpacked package
	Image   string // what QEMU loads: vmlinux, or the package's bzImage
	Release string // as uname -r prints it
}

const (
	metaPackage = "linux-image-cloud-amd64"
	cachePrefix = "linux-image-" // of the package, which the folder is named after
	installHint = "apt-get install qemu-system-x86 busybox-static"
)

// Prepare gives the outer kernel from the cache, or downloads Debian's cloud
// kernel package with apt and unpacks it there. It needs no root rights while
// apt's package lists are present; without lists and as root it runs apt-get
// update first. Notes about a download go to progress (nil discards). Several
// processes may call it on one cache at a time.
func Prepare(ctx context.Context, cacheDir string, progress io.Writer) (Kernel, error) {
	if progress == nil {
		progress = io.Discard
	}
	abs, err := filepath.Abs(cacheDir)
	if err != nil {
		return Kernel{}, fmt.Errorf("%w: cache folder: %w", ErrHost, err)
	}
	root := filepath.Join(abs, "lab")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return Kernel{}, fmt.Errorf("%w: cache folder: %w", ErrHost, err)
	}
	if k, ok := cachedKernel(root); ok {
		return k, nil
	}
	unlock, err := lockCache(root)
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	if k, ok := cachedKernel(root); ok { // another process was faster
		return k, nil
	}
	if err := fetchKernel(ctx, root, progress); err != nil {
		return Kernel{}, err
	}
	if k, ok := cachedKernel(root); ok {
		return k, nil
	}
	return Kernel{}, fmt.Errorf("%w: the kernel package unpacked into %q holds no kernel", ErrHost, root)
}

// Check tells whether Run can work on this host, and what to install if not.
// It fetches nothing. All problems are joined in one error.
func Check(cacheDir string) error {
	_, err := findQEMU()
	errs := []error{err}
	if runtime.GOARCH != "amd64" {
		errs = append(errs, fmt.Errorf("%w: the machine is x86-64 and this program is %s", ErrHost, runtime.GOARCH))
	}
	if _, ok := cachedKernel(filepath.Join(cacheDir, "lab")); !ok {
		for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
			if _, err := exec.LookPath(tool); err != nil {
				errs = append(errs, fmt.Errorf("%w: no outer kernel in %q and no %s to get one: only Debian is known; unpack its %s kernel package there by hand",
					ErrHost, cacheDir, tool, metaPackage))
				break
			}
		}
	}
	return errors.Join(errs...)
}

func findQEMU() (string, error) {
	p, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return "", fmt.Errorf("%w: qemu-system-x86_64 not found: %s", ErrHost, installHint)
	}
	return p, nil
}

// cachedKernel finds the newest complete package. A folder gets its name by
// rename, so it is complete when it exists.
func cachedKernel(root string) (Kernel, bool) {
	dirs, _ := filepath.Glob(filepath.Join(root, cachePrefix+"*"))
	sort.Slice(dirs, func(i, j int) bool { return modTime(dirs[i]) > modTime(dirs[j]) })
	for _, dir := range dirs {
		images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
		if len(images) != 1 {
			continue
		}
		k := Kernel{Dir: dir, Image: images[0], Release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
		if plain := filepath.Join(dir, "vmlinux"); isRegular(plain) {
			k.Image = plain
		}
		return k, true
	}
	return Kernel{}, false
}

func modTime(p string) int64 {
	st, err := os.Stat(p)
	if err != nil {
		return 0
	}
	return st.ModTime().UnixNano()
}

func isRegular(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular()
}

func lockCache(root string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%w: lock the cache: %w", ErrHost, err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: lock the cache: %w", ErrHost, err)
	}
	return func() { f.Close() }, nil
}

func fetchKernel(ctx context.Context, root string, progress io.Writer) error {
	pkg, err := kernelPackage(ctx, progress)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(root, "fetch-")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHost, err)
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(progress, "lab: fetching %s (about 27 MB, once)\n", pkg)
	if out, err := runTool(ctx, tmp, "apt-get", "download", pkg); err != nil {
		return fmt.Errorf("%w: download the outer kernel %s: %w\n%s\nIs there a network, and are the package lists fresh (apt-get update)?",
			ErrHost, pkg, err, lastLines(out, 10))
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("%w: apt-get download %s left %d packages, expected 1", ErrHost, pkg, len(debs))
	}
	dir := filepath.Join(tmp, "unpacked")
	if out, err := runTool(ctx, tmp, "dpkg-deb", "-x", debs[0], dir); err != nil {
		return fmt.Errorf("%w: unpack %s: %w\n%s", ErrHost, filepath.Base(debs[0]), err, lastLines(out, 10))
	}
	if err := unpackModules(ctx, dir); err != nil {
		return err
	}
	if images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*")); len(images) == 1 {
		// Only a faster start hangs on this: the bzImage boots as well.
		if err := extractVmlinux(ctx, images[0], filepath.Join(dir, "vmlinux")); err != nil {
			fmt.Fprintf(progress, "lab: the kernel stays compressed, so the machine starts slower: %v\n", err)
		}
	}
	final := filepath.Join(root, strings.TrimSuffix(filepath.Base(debs[0]), ".deb"))
	if err := os.Rename(dir, final); err != nil {
		return fmt.Errorf("%w: %w", ErrHost, err)
	}
	return nil
}

var kernelDepends = regexp.MustCompile(`(?m)^Depends:.*?\b(linux-image-[0-9][a-z0-9.+~-]*)`)

// kernelPackage asks apt which package the meta package stands for.
func kernelPackage(ctx context.Context, progress io.Writer) (string, error) {
	show := func() (string, error) {
		out, err := runTool(ctx, "", "apt-cache", "show", "--no-all-versions", metaPackage)
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%w: no apt here, and only Debian's cloud kernel is known to serve as the outer kernel", ErrHost)
		}
		if m := kernelDepends.FindStringSubmatch(out); err == nil && m != nil {
			return m[1], nil
		}
		return "", nil
	}
	if pkg, err := show(); pkg != "" || err != nil {
		return pkg, err
	}
	if os.Geteuid() == 0 {
		fmt.Fprintln(progress, "lab: apt does not know "+metaPackage+": running apt-get update")
		if out, err := runTool(ctx, "", "apt-get", "update"); err != nil {
			return "", fmt.Errorf("%w: apt-get update: %w\n%s", ErrHost, err, lastLines(out, 10))
		}
		if pkg, err := show(); pkg != "" || err != nil {
			return pkg, err
		}
	}
	return "", fmt.Errorf("%w: apt does not know %s: run apt-get update as root on Debian, then try again", ErrHost, metaPackage)
}

func runTool(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// unpackModules undoes the compression that newer packages have, once, so
// that nothing is decompressed under emulation.
func unpackModules(ctx context.Context, dir string) error {
	tools := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
	return filepath.WalkDir(filepath.Join(dir, "lib"), func(p string, d os.DirEntry, err error) error {
		tool := tools[filepath.Ext(p)]
		if err != nil || tool == "" || !strings.Contains(filepath.Base(p), ".ko.") {
			return err
		}
		if err := decompressFile(ctx, tool, p, strings.TrimSuffix(p, filepath.Ext(p))); err != nil {
			return fmt.Errorf("%w: unpack kernel module: %w", ErrHost, err)
		}
		return os.Remove(p)
	})
}

func decompressFile(ctx context.Context, tool, from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return decompress(ctx, tool, in, to)
}

func decompress(ctx context.Context, tool string, in io.Reader, to string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(out, 1<<20)
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, "-dc")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, w, &stderr
	err = cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s -dc: %w: %s", tool, err, lastLines(stderr.String(), 3))
	}
	if err = errors.Join(err, w.Flush(), out.Close()); err != nil {
		os.Remove(to)
	}
	return err
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
