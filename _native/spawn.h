/* Starting the launcher from a Python program. */
#ifndef ISOLATE_SPAWN_H
#define ISOLATE_SPAWN_H

#include <stdint.h>

struct iso_spawn {
	int32_t program;      /* descriptor of the launcher to execute, or -1: `path` */
	const char *path;
	const int32_t *fds;   /* descriptor i of the new process is fds[i]; everything else is closed */
	int32_t fd_count;
	int32_t direct;       /* 1: a child of ours, to be reaped by us; 0: an orphan, invisible to wait() and SIGCHLD */
	int32_t pid;          /* out */
	int32_t pidfd;        /* out, close-on-exec */
	int32_t stage;        /* out, where it failed */
};

enum { ISO_SPAWN_CLONE = 1, ISO_SPAWN_FILES, ISO_SPAWN_EXEC };

/* 0 or -errno. */
int64_t iso_spawn(struct iso_spawn *request);

#endif
