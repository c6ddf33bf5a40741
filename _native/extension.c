/* The extension: what Python calls. */
#include "groups.h"
#include "interp.h"
#include "spawn.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

int64_t iso_call(int64_t number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)
{
	return iso_syscall(number, a, b, c, d, e, f);
}

int64_t iso_check(const uint8_t *tape, uint64_t size)
{
	return iso_tape_check(tape, size);
}

const char *iso_version(void)
{
	return ISOLATE_VERSION;
}

/* There is no program to start on a thread of a Python program. */
int64_t iso_engine_op(struct iso_machine *m, const struct iso_op *op, const int64_t *arg)
{
	(void)m;
	(void)op;
	(void)arg;
	return -ENOSYS;
}

/* Run one section of a tape on the calling thread. The tape is a private, 8-byte aligned copy: ops store into it. */
int64_t iso_run_here(uint8_t *tape, uint64_t size, int section, int64_t *registers, uint32_t *failed_op, uint8_t *skipped)
{
	int64_t r = iso_tape_check(tape, size);
	if (r < 0)
		return r;
	if (section < 0 || section >= ISO_SECTIONS)
		return -EINVAL;
	const uint32_t steps = ((const struct iso_header *)(void *)tape)->steps;
	struct iso_shared *shared = calloc(1, sizeof *shared + steps);
	if (!shared)
		return -ENOMEM;
	struct iso_machine m;
	iso_machine_init(&m, tape, registers, shared);
	registers[ISO_REG_SELF] = SYS0(getpid);
	r = iso_machine_run(&m, section);
	*failed_op = m.failed_op;
	memcpy(skipped, shared->skipped, steps);
	free(shared);
	return r;
}

int64_t iso_group_remove(const char *path, int32_t milliseconds)
{
	struct iso_patience patience;
	iso_be_patient(&patience, milliseconds);
	return iso_remove_groups(AT_FDCWD, path, 1, &patience);
}

int64_t iso_group_kill(const char *path)
{
	return iso_kill_groups(AT_FDCWD, path);
}

int64_t iso_group_thaw(const char *path)
{
	return iso_thaw_groups(AT_FDCWD, path);
}
