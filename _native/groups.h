/* Cgroups that end: thawed, killed and removed with whatever was made below them. */
#ifndef ISOLATE_GROUPS_H
#define ISOLATE_GROUPS_H

#include <stdint.h>

/* How long removal may take: until a moment (CLOCK_MONOTONIC, ns), of which so many pauses of 1 ms for what is busy. */
struct iso_patience {
	uint64_t until;
	int32_t pauses;
};

void iso_be_patient(struct iso_patience *p, int32_t milliseconds);

/* Let everything in the group and below it go on: a frozen task of v1 does not die of a signal. */
int64_t iso_thaw_groups(int64_t dir, const char *name);
/* SIGKILL to every process in the group and below it that this pid namespace sees; how many were signalled. */
int64_t iso_kill_groups(int64_t dir, const char *name);
/* Remove a directory with the directories below it. Where they are cgroups, what is inside is thawed and killed first; with
 * v1's, which have no cgroup.kill, only if `everybody` is set: else who was moved in by others keeps the group. */
int64_t iso_remove_groups(int64_t dir, const char *name, int everybody, struct iso_patience *p);

#endif
