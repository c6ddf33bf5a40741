/* Starting the launcher from a Python program. */
#ifndef ISOLATE_SPAWN_H
#define ISOLATE_SPAWN_H

#include <stdint.h>

struct iso_spawn {
	int32_t program;      /* descriptor of the launcher to execute, or -1: `path` */
	const char *path;
	const int32_t *fds;   /* descriptor i of the new process is fds[i]; everything else is closed */
	int32_t fd_count;
	int32_t direct;       /* 1: a child of ours, to be reaped by us; 0: an orphan, invisible to wait() and SIGCHLD. Out: 1
			       * also where the children of this thread get another pid namespace */
	int32_t pid;          /* out */
	int32_t pidfd;        /* out, close-on-exec */
	int32_t stage;        /* out, where it failed */
};

enum {
	ISO_SPAWN_CLONE = 1,
	ISO_SPAWN_FILES,
	ISO_SPAWN_EXEC,
	ISO_START_STREAMS,
	ISO_START_CONTROL,
	ISO_START_TAPE,
	ISO_START_OWNER,
	ISO_SPAWN_SIGNALS
};

/* 0 or -errno. */
int64_t iso_spawn(struct iso_spawn *request);

#define ISO_PIPE (-1) /* as in subprocess */
#define ISO_STDOUT (-2)
#define ISO_DEVNULL (-3)

/* All that a start opens, opened in one call and kept in one place: a KeyboardInterrupt between two lines of Python
 * finds either nothing or what its owner will close. */
struct iso_start {
	int32_t ours[3];      /* our ends of the pipes, -1 where there is none */
	int32_t control;
	int32_t later;        /* where the run goes that iso_start left open, else -1 */
	int32_t payload;      /* out of iso_receive: pidfd of the payload */
	int32_t terminal;     /* out of iso_receive: our end of a terminal of the sandbox's own */
	int32_t sender;       /* out of iso_receive: pid of the payload, where it told (ISO_RECORD_PROGRAM); else 0 */
	int32_t pid;          /* of the launcher */
	int32_t pidfd;        /* of the launcher */
	int32_t stage;
	int32_t direct;       /* the launcher is a child of ours */
	uint64_t owner;       /* iso_owner() of the process that started it; a forked child may not take it down */
	uint64_t began;       /* when the program was asked for, CLOCK_MONOTONIC in ns: the launcher counts from there, too */
	uint64_t rests[2];    /* launcher and payload: which process it is, where its pidfd has been closed for now; else 0 */
};

/* The launcher in a sealed memfd, made once: its descriptor, or -ENOENT when it has to be made (again: a program may have
 * closed it behind our back). */
int64_t iso_launcher_fd(void);
/* Make it from its bytes: its descriptor, or -EACCES where the kernel forbids executable memfds. */
int64_t iso_make_launcher(const uint8_t *image, uint64_t size);

/* A number that this process alone has: a forked child gets another, also one with the same process id. 0 where the kernel
 * cannot say (no memory): then everybody is somebody else. */
uint64_t iso_owner(void);
/* Move a descriptor of ours off the numbers of the standard streams, which a program may have closed: what stands there is
 * handed on as a stream. The new number, or -errno; the old one is closed in either case. An error is passed through. */
int64_t iso_lift(int64_t fd);
/* Nothing is open yet. */
void iso_begin(struct iso_start *start);
/* 0 or -errno; on an error everything opened is closed again. `slots` are the descriptors behind the fixed ones; `in`,
 * `out` and `err` a descriptor, ISO_PIPE, ISO_DEVNULL, or for stderr ISO_STDOUT; `nonblocking` makes our ends of the pipes
 * so; the launcher is `program`, or where that is -1 the file `path`; `direct` as in iso_spawn.
 * With `later` everything is set up but the program: `run` says so, and iso_run_later tells what it is to be. */
int64_t iso_start(struct iso_start *start, const uint8_t *tape, uint64_t tape_size, const uint8_t *run, uint64_t run_size,
		  const int32_t *slots, int32_t slot_count, int32_t in, int32_t out, int32_t err, int32_t nonblocking,
		  int32_t program, const char *path, int32_t direct, int32_t later);
struct iso_compared;
/* The same by the launcher `parked`, whose socket for this is `starts`; the tape's own slots must be the fixed ones. -ESTALE: it is
 * not there any more, or what it would give is not what a start by this thread finds (iso_fits), and nothing has been started;
 * -ETIMEDOUT: it does not answer. The comparison is made while the launcher wakes up: it begins with nothing before it is told. */
int64_t iso_start_parked(struct iso_start *start, struct iso_start *parked, int32_t starts, struct iso_compared *compared,
			 const uint8_t *run, uint64_t run_size, const int32_t *passed, int32_t count, int32_t in, int32_t out,
			 int32_t err, int32_t nonblocking, int32_t later);
/* Describe what a process that this thread starts inherits of it, as far as that can be asked for cheaply, in ISO_STATE bytes:
 * equal bytes mean equal inheritance. 0, or -errno where something cannot be told. */
#define ISO_STATE 8192
/* `fresh` are flags of the namespaces that are new with each start, so that the thread's own do not matter; `executes`: a file
 * is executed outside of the sandbox. */
/* To be called once, before there are threads if that can be: how many filters there are. */
void iso_ask_filters(void);
int64_t iso_state(uint8_t *state, uint64_t fresh, int32_t executes);
int32_t iso_in_state(const uint8_t *state, uint64_t fresh, int32_t executes);
/* 0 where this thread may look at a process as ptrace(2) lets it, else -errno. */
int64_t iso_sees(int32_t pid);
/* Whether a thread like this one can be given a Landlock domain that no state tells of: 0: no; 1: yes, and both iso_sees and the
 * launcher with that pid tell of one; -1: yes, and nothing tells. */
int32_t iso_watches(int32_t pid);

#define MOUNT_NUMBER 0x5000 /* STATX_MNT_ID, and STATX_MNT_ID_UNIQUE of Linux 6.8 */

/* Whether each path still leads to the file that it led to: `count` rows of a path's offset in `paths`, a device and an inode
 * number, and the number of a mount. And whether the mount table behind the descriptor of a mountinfo has not changed since it was asked last. */
struct iso_pinned {
	uint32_t path;
	uint32_t major, minor;
	uint64_t inode, mount;
};
/* Note in each row in which mount its path ends now. */
void iso_mounts(struct iso_pinned *pinned, uint32_t count, const char *paths);
int64_t iso_same(const struct iso_pinned *pinned, uint32_t count, const char *paths, int32_t mountinfo);
/* All that is compared for a launcher that is parked. Zeroed, then `fresh` and `executes` set, iso_note fills in what this thread
 * hands on; the rest is the caller's to set. */
struct iso_compared {
	uint8_t state[ISO_STATE];
	uint64_t fresh;
	int32_t executes;
	int32_t watched;  /* iso_watches */
	int32_t launcher; /* its pid */
	int32_t mountinfo;
	const struct iso_pinned *pinned;
	const char *paths;
	uint32_t count;
	uint32_t killable; /* ISO_RUN_KILLABLE, or 0 */
	int32_t stale;     /* the mount table has changed: the kernel tells once, and one thread hears of it */
	int32_t looking;   /* a thread asks for that just now */
};
int64_t iso_note(struct iso_compared *compared);
/* Whether a start by the launcher finds what one by this thread does. */
int32_t iso_fits(struct iso_compared *compared);
/* Hand over the run block, its streams and the `count` descriptors behind the tape's own. 0 or -errno: -EPIPE or -ECONNRESET
 * if it is gone; nothing is open then that was not before. */
int64_t iso_run_later(struct iso_start *start, const uint8_t *run, uint64_t run_size, const int32_t *passed, int32_t count,
		      int32_t in, int32_t out, int32_t err, int32_t nonblocking);
/* One record from the control socket, without waiting: its size, 0 at the end of file, or -errno. A descriptor that comes
 * along with the first becomes `payload`; any other is closed. */
int64_t iso_receive(struct iso_start *start, uint8_t *buffer, uint64_t size);
/* Tell the launcher to take everything down. A shutdown, not a close: a forked child may hold the socket too. */
void iso_let_go(struct iso_start *start);
/* A terminal of its own: ends[0] ours, ends[1] the program's, which belongs to `uid` of the host unless that is -1. 0 or -errno. */
int64_t iso_open_pty(int32_t *ends, int64_t uid);
void iso_close_pty(int32_t *ends);
/* Put our end of the program's own terminal, where it has handed one over, in the place of these; whether there was one. */
int32_t iso_take_terminal(struct iso_start *s, int32_t *ends);
/* Close the pidfds of launcher and payload for now, where the kernel numbers processes so that one can be told again (pidfs,
 * Linux 6.9). Before anybody else knows of them: later nothing closes them but iso_release. */
void iso_rest(struct iso_start *start);
/* The pidfd of the launcher, or with `payload` the payload's; opened again if it rests. Where that process has gone it is one of
 * another that has gone, which tells the same. -1: there is none, or none any more; else -errno. */
int64_t iso_pidfd(struct iso_start *start, int32_t payload);
/* Send a signal by that pidfd, which goes on to rest. 0, -ESRCH: it has gone; -EBADF: there is none; or another error. */
int64_t iso_send(struct iso_start *start, int32_t payload, int32_t signal);
/* Wait for so many milliseconds, without end where they are negative: bits 0 to 2 for our ends of the streams, bit 3, where
 * `records` are waited for, for the control socket or the launcher's end. 0: nothing has come; or -errno, EINTR too. An output
 * that is empty and has no writer left is closed, and not told. */
int64_t iso_wait(struct iso_start *start, int32_t records, int64_t milliseconds);
/* Wait so long for the launcher's end, and reap it where it is ours: 0; -ECHILD: it has ended and is not; -EAGAIN: not yet;
 * -EBADF: there is none; or another error. */
int64_t iso_gone(struct iso_start *start, int64_t milliseconds);
/* Reap the launcher where it has ended and is a child of ours: 0, or -ECHILD where it is nobody's; -EBADF: there is none. */
int64_t iso_reap(struct iso_start *start);
/* The device of the file system that a path leads to, or -errno. */
int64_t iso_device(const char *path);
/* Close one and mark it so, in one call. */
void iso_close(int32_t *fd);
/* Let go, as iso_let_go does, and close what is open. */
void iso_release(struct iso_start *start);

#endif
