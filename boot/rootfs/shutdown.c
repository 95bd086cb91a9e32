/* How the machine ends: processes first, then disks, then the machine itself. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <mntent.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define MAX_MOUNTS 128

/* Seconds that processes get to end by themselves, and then to vanish after SIGKILL. */
#define GRACE_SECONDS 3

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000L + t.tv_nsec / 1000000;
}

/* Reaps who has ended (orphans become ours too); says whether nobody is left. */
static bool nobody_left(void)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
		;
	return pid < 0 && errno == ECHILD;
}

/* Says whether a process runs and does not ignore SIGTERM, from /proc/PID/status. Kernel threads ignore all signals. */
static bool heeds_term(const char *pid)
{
	char path[64], text[128];
	unsigned long long ignored = ~0ull;
	bool zombie = false;

	snprintf(path, sizeof path, "/proc/%.16s/status", pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return false; /* it has ended */
	while (fgets(text, sizeof text, f)) {
		if (!strncmp(text, "State:\tZ", 8))
			zombie = true;
		sscanf(text, "SigIgn: %llx", &ignored);
	}
	fclose(f);
	return !zombie && !(ignored >> (SIGTERM - 1) & 1);
}

/* Says whether only those are left that ignore SIGTERM. */
static bool only_deaf_left(void)
{
	bool deaf = true;
	const struct dirent *e;

	if (nobody_left())
		return true;
	DIR *proc = opendir("/proc");
	while (proc && deaf && (e = readdir(proc)))
		if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && strcmp(e->d_name, "1"))
			deaf = !heeds_term(e->d_name);
	if (proc)
		closedir(proc);
	return deaf;
}

/* Waits until it is over, or late. SIGCHLD, blocked by the caller, comes for our own children only: so it looks often. */
static bool wait_until(bool (*over)(void), long late)
{
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	while (!over()) {
		if (now_ms() >= late)
			return false;
		sigtimedwait(&child, NULL, &(struct timespec){ .tv_nsec = 20 * 1000000 });
	}
	return true;
}

static void end_processes(void)
{
	long late = now_ms() + GRACE_SECONDS * 1000L;

	/*
	 * An interactive shell ignores SIGTERM but obeys SIGHUP; a stopped job sees neither before SIGCONT. The shell comes
	 * last: when it ends, Linux hangs up its terminal and drops what others have just written there.
	 */
	kill(-1, SIGTERM);
	kill(-1, SIGCONT);
	wait_until(only_deaf_left, late);
	kill(-1, SIGHUP);
	kill(-1, SIGCONT);
	if (wait_until(nobody_left, late))
		return;
	kill(-1, SIGKILL);
	if (!wait_until(nobody_left, now_ms() + GRACE_SECONDS * 1000L))
		say("some process does not end; going on without it");
}

/* Unmounts what lives on a disk, last mounted first. Kernel file systems stay: /sys is needed yet. */
static void unmount_disks(void)
{
	static char *dirs[MAX_MOUNTS];
	int n = 0;
	FILE *mounts = setmntent("/proc/mounts", "r");

	if (!mounts)
		return;
	for (struct mntent *m; n < MAX_MOUNTS && (m = getmntent(mounts)); )
		if (m->mnt_fsname[0] == '/' && strcmp(m->mnt_dir, "/"))
			dirs[n++] = strdup(m->mnt_dir);
	endmntent(mounts);
	while (n-- > 0) {
		if (dirs[n] && umount2(dirs[n], 0) &&
		    mount(NULL, dirs[n], NULL, MS_REMOUNT | MS_RDONLY, NULL))
			say("unmount %s: %s", dirs[n], strerror(errno));
	}
}

/* Root cannot be unmounted under PID 1, but once read-only it is clean on disk. */
static void rest_root(void)
{
	struct statfs s;

	if (!statfs("/", &s) && (s.f_type == RAMFS_MAGIC || s.f_type == TMPFS_MAGIC))
		return; /* an initramfs: nothing to bring to rest */
	if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL))
		say("remount / read-only: %s; the disk may need a check", strerror(errno));
}

/*
 * Makes the coming reboot a reset through the keyboard controller (i8042, port 0x64). Kernels of test machines run
 * with reboot=t panic=-1, so that a panic ends in a triple fault; the monitor tells the two apart by that: an i8042
 * reset is an orderly reboot, a triple fault is a guest that died.
 */
static void reset_by_keyboard_controller(void)
{
	int fd = open("/sys/kernel/reboot/type", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "kbd", 3) != 3)
		say("choose the i8042 reset in /sys/kernel/reboot/type: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

void end_machine(enum ending how, unsigned char status)
{
	static const char *const names[] = {
		[END_POWER_OFF] = "power off", [END_REBOOT] = "reboot", [END_HALT] = "halt",
	};
	sigset_t all;

	/* A second "poweroff" must not start this again. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	if (chdir("/"))
		say("chdir /: %s", strerror(errno));
	end_processes();
	sync();
	unmount_disks();
	rest_root();
	sync();
	say("%s", names[how]);
	tcdrain(STDOUT_FILENO); /* the ports below end the machine at once, with bytes still on their way out */

	switch (how) {
	case END_REBOOT:
		reset_by_keyboard_controller();
		reboot(RB_AUTOBOOT);
		break;
	case END_HALT:
		reboot(RB_HALT_SYSTEM);
		break;
	case END_POWER_OFF:
		port_write(DEBUG_EXIT_PORT, status);
		/* Still here: another monitor, without that port. */
		reboot(RB_POWER_OFF);
		break;
	}
	for (;;)
		pause();
}
