/*
 * PID 1 of godwit's test images: mounts the basics, tells the monitor that user space runs, keeps a shell on the
 * console, runs what the command line names, reaps, and ends the machine in good order. See README.md.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

/* What every program starts with; also where init itself looks for programs (execvp reads PATH of environ). */
static char *environment[] = {
	"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root", "TERM=vt102", "USER=root", NULL,
};

/* The programs that init knows by name; 0 is "not running". */
static pid_t shell_pid, run_pid, exec_pid;

void say(const char *format, ...)
{
	char line[512];
	va_list args;
	size_t n;

	/* The console may be in the middle of a prompt; a line of its own is what a reader of the log looks for. */
	n = (size_t)snprintf(line, sizeof line, "godwit init: ");
	va_start(args, format);
	vsnprintf(line + n, sizeof line - n - 1, format, args);
	va_end(args);
	n = strlen(line);
	line[n++] = '\n';
	/* Nowhere to complain to when the console itself fails. */
	if (write(STDOUT_FILENO, line, n) < 0)
		return;
}

void port_write(unsigned short port, unsigned char value)
{
	if (ioperm(port, 1, 1)) {
		say("ioperm port 0x%x: %s", port, strerror(errno));
		return;
	}
	outb(value, port);
}

/* A file system that the kernel already mounted (devtmpfs) answers EBUSY, which is as good. */
static void mount_on(const char *type, const char *dir, unsigned long flags, const char *options)
{
	mkdir(dir, 0755);
	if (mount(type, dir, type, flags, options) && errno != EBUSY)
		say("mount %s on %s: %s", type, dir, strerror(errno));
}

static void mount_basics(void)
{
	mount_on("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_on("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_on("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
	mount_on("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666");
	mount_on("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_on("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_on("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
}

/*
 * The kernel mounts root read-only by the bzImage header and writable through PVH, unless told; init makes both
 * writable unless the command line says "ro". Where root must stay read-only, the places that programs write to
 * become memory.
 */
static void settle_root(bool keep_read_only)
{
	struct statvfs s;

	if (statvfs("/", &s) || !(s.f_flag & ST_RDONLY))
		return;
	if (!keep_read_only) {
		if (!mount(NULL, "/", NULL, MS_REMOUNT, NULL))
			return;
		say("remount / writable: %s", strerror(errno));
	}
	say("root is read-only; /data and /root are in memory");
	mount_on("tmpfs", "/data", MS_NOSUID | MS_NODEV, "mode=0755");
	mount_on("tmpfs", "/root", MS_NOSUID | MS_NODEV, "mode=0700");
}

/* Programs expect 127.0.0.1 to answer. */
static void raise_loopback(void)
{
	struct ifreq r = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return; /* a kernel without network */
	if (ioctl(fd, SIOCSIFFLAGS, &r))
		say("raise lo: %s", strerror(errno));
	close(fd);
}

/*
 * Opens the terminal behind /dev/console, which itself cannot be a controlling terminal. The kernel lists active
 * consoles with the one that /dev/console means last.
 */
static int open_terminal(void)
{
	char names[128], path[160];
	int fd = open("/sys/class/tty/console/active", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, names, sizeof names - 1);

	if (fd >= 0)
		close(fd);
	names[n > 0 ? n : 0] = '\0';
	names[strcspn(names, "\n")] = '\0';
	char *last = strrchr(names, ' ');
	last = last ? last + 1 : names;
	if (*last) {
		snprintf(path, sizeof path, "/dev/%s", last);
		fd = open(path, O_RDWR | O_NOCTTY);
		if (fd >= 0)
			return fd;
	}
	return open("/dev/console", O_RDWR | O_NOCTTY);
}

/* A program that died in raw mode must not spoil the next shell. */
static void make_terminal_sane(int fd)
{
	struct termios t;

	if (tcgetattr(fd, &t))
		return;
	t.c_iflag = ICRNL | IXON;
	t.c_oflag = OPOST | ONLCR;
	t.c_lflag = ISIG | ICANON | ECHO | ECHOE | ECHOK | IEXTEN;
	t.c_cflag |= CREAD | CLOCAL | HUPCL;
	tcsetattr(fd, TCSANOW, &t);
}

/*
 * Starts a program in a session of its own. With a terminal it gets the console as controlling terminal (^C and job
 * control work); without, it keeps /dev/console for output: those descriptors survive the hang-up that the end of a
 * shell causes on the terminal.
 */
static pid_t spawn(const char *path, char *const argv[], bool terminal)
{
	pid_t pid = fork();

	if (pid < 0)
		say("start %s: fork: %s", path, strerror(errno));
	if (pid)
		return pid > 0 ? pid : 0;

	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	int fd = terminal ? open_terminal() : open("/dev/null", O_RDWR);
	if (fd >= 0) {
		dup2(fd, STDIN_FILENO);
		if (terminal) {
			make_terminal_sane(fd);
			ioctl(fd, TIOCSCTTY, 1);
			dup2(fd, STDOUT_FILENO);
			dup2(fd, STDERR_FILENO);
		}
		if (fd > STDERR_FILENO)
			close(fd);
	}
	if (chdir("/root") && chdir("/"))
		say("chdir /: %s", strerror(errno));
	execvp(path, argv);
	say("run %s: %s", path, strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

static void start_shell(void)
{
	char *argv[] = { "-sh", NULL };

	shell_pid = spawn("/bin/sh", argv, true);
}

static void start_exec(char *command)
{
	char *argv[] = { "sh", "-c", command, NULL };

	exec_pid = spawn("/bin/sh", argv, true);
	if (!exec_pid)
		end_machine(END_POWER_OFF, 126);
}

/* The status as a shell would give it: 128 and the signal for a program that a signal ended. */
static int shell_status(int wait_status)
{
	return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

/* Reaps whoever ended; returns true when the shell is among them. */
static bool reap(void)
{
	bool shell_ended = false;
	int status;

	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0; ) {
		if (pid == shell_pid) {
			shell_pid = 0;
			shell_ended = true;
		} else if (pid == run_pid) {
			run_pid = 0;
			say("run: ended with %d", shell_status(status));
		} else if (pid == exec_pid) {
			say("exec: ended with %d", shell_status(status));
			end_machine(END_POWER_OFF, (unsigned char)shell_status(status));
		}
	}
	return shell_ended;
}

/* Serves signals for ever. busybox's halt, poweroff and reboot send SIGUSR1, SIGUSR2 and SIGTERM to PID 1. */
static void serve(const sigset_t *set, bool want_shell)
{
	/* A shell that cannot live is started once a second, not in a spin. */
	const struct timespec second = { 1, 0 };
	time_t started = time(NULL);

	for (;;) {
		bool retry = want_shell && !shell_pid;
		int sig = retry ? sigtimedwait(set, NULL, &second) : sigwaitinfo(set, NULL);

		switch (sig) {
		case SIGUSR1:
			end_machine(END_HALT, 0);
		case SIGUSR2:
		case SIGPWR:
			end_machine(END_POWER_OFF, 0);
		case SIGTERM:
		case SIGINT:
			end_machine(END_REBOOT, 0);
		}
		bool ended = reap();
		if (want_shell && !shell_pid && (!ended || time(NULL) - started >= 2)) {
			started = time(NULL);
			start_shell();
		}
	}
}

/* Reads the command line; the text stays, since the request points into it. */
static void read_request(struct request *r)
{
	static char text[16384];
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
	parse_request(text, r);
}

int main(void)
{
	struct request request;
	sigset_t set;

	if (getpid() != 1) {
		fprintf(stderr, "godwit init: runs as process 1 only\n");
		return 2;
	}
	port_write(BOOT_TIMER_PORT, BOOT_TIMER_INIT);

	/* Blocked signals are never lost, and one loop takes them all. */
	sigemptyset(&set);
	for (const int *s = (const int[]){ SIGCHLD, SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGPWR, 0 }; *s; s++)
		sigaddset(&set, *s);
	sigprocmask(SIG_BLOCK, &set, NULL);
	reboot(RB_DISABLE_CAD); /* ctrl-alt-del becomes SIGINT to us */

	environ = environment;
	umask(022);
	mount_basics();
	read_request(&request);
	settle_root(request.read_only);
	if (sethostname("godwit", 6))
		say("set host name: %s", strerror(errno));
	raise_loopback();
	say("reached");

	if (request.run)
		run_pid = spawn(request.run[0], request.run, false);
	if (request.exec)
		start_exec(request.exec);
	else if (request.shell)
		start_shell();
	serve(&set, request.shell && !request.exec);
}
