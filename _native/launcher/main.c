/* The launcher: a freestanding static program that stands between the Python program and a sandbox.
 *
 *   supervisor  this process: outside the sandbox. Makes the child, writes its id maps, watches for the end of
 *               the Python program, takes the whole tree down, cleans up, tells how it ended.
 *   init        child of clone: PID 1 of a new pid namespace. Runs the tape's INIT section, starts the payload,
 *               forwards signals, reaps. Its death is the death of everything in the namespace.
 *   payload     runs the PAYLOAD section and executes the program.
 *
 * No libc, no malloc, no signal handler. All signals stay blocked in supervisor and init; every descriptor of
 * ours is close-on-exec. */
#include "launcher.h"

#include <linux/errno.h>
#include <linux/prctl.h>
#include <linux/stat.h>

#ifndef ISOLATE_VERSION
#error "ISOLATE_VERSION comes from the builder"
#endif

/* Python checks at import that launcher and extension were built together. */
__attribute__((used)) static const char build_mark[] = "isolate-launcher " ISOLATE_VERSION;

/* Map the content of a descriptor as memory of ours, and close it. 0, or -errno; `stage` says where. Populated, since all of
 * it will be read at once. */
int64_t map_block(int32_t fd, int64_t protection, uint8_t **block, uint64_t *size, uint32_t *stage)
{
	struct statx st;
	*stage = ISO_STAGE_TAPE;
	int64_t r = SYS5(statx, fd, PTR(""), 0x1000 /* AT_EMPTY_PATH */, STATX_SIZE | STATX_TYPE, PTR(&st));
	if (r < 0)
		return r;
	/* A pipe that holds all of it already, where a file may not be so long (RLIMIT_FSIZE). */
	const int piped = (st.stx_mode & S_IFMT) == S_IFIFO;
	int32_t available = 0;
	if (piped && (r = SYS3(ioctl, fd, 0x541b /* FIONREAD */, PTR(&available))) < 0)
		return r;
	*size = piped ? (uint64_t)available : st.stx_size;
	if (!*size || *size > 2ull * ISO_MAX_TAPE)
		return -EBADMSG;
	const int64_t base = piped ? map_near(*size, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1)
				   : map_near(*size, protection, MAP_PRIVATE | MAP_POPULATE, fd);
	if (!mapped(base)) {
		*stage = ISO_STAGE_MEMORY;
		return base;
	}
	*block = (uint8_t *)base;
	for (uint64_t at = 0; piped && at < *size; at += (uint64_t)r) {
		r = SYS3(read, fd, PTR(*block + at), *size - at);
		if (r == -EINTR)
			r = 0;
		else if (r <= 0)
			return r ? r : -EBADMSG;
	}
	/* Nobody needs it any more, and no process of the sandbox's has a way to it. */
	SYS1(close, fd);
	return 0;
}

/* A tape, with or without a run block behind it. */
uint8_t *map_tape(int32_t fd, uint64_t *size)
{
	uint8_t *tape;
	uint32_t stage;
	/* Not writable yet: the kernel would copy every page of it at once, and few are written. */
	int64_t r = map_block(fd, PROT_READ, &tape, size, &stage);
	if (r < 0)
		refuse(stage, r);
	r = *size < sizeof(struct iso_header) ? -EBADMSG : iso_tape_check(tape, *size);
	if (r < 0)
		refuse(ISO_STAGE_TAPE, r);
	return tape;
}

/* Memory for what a tape of ours fills. */
void equip(struct supervisor *s, uint8_t *tape)
{
	const struct iso_header *h = (const void *)tape;
	const uint64_t needed = h->registers * sizeof(int64_t);
	int64_t base = PTR(s->working);
	s->working_size = needed > sizeof s->working ? needed : 0;
	if (s->working_size) {
		base = map_near(needed, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		if (!mapped(base))
			refuse(ISO_STAGE_MEMORY, base);
	} else {
		memset(s->working, 0, needed);
	}
	s->shared_size = (uint32_t)(sizeof(struct iso_shared) + h->steps);
	int64_t shared = map_near(s->shared_size, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1);
	if (!mapped(shared))
		refuse(ISO_STAGE_MEMORY, shared);
	iso_machine_init(&s->machine, tape, (int64_t *)base, (struct iso_shared *)shared);
}

static void load(struct supervisor *s)
{
	uint64_t size;
	uint8_t *tape = map_tape(ISO_SLOT_TAPE, &size);
	const struct iso_header *h = (const void *)tape;
	int64_t r = iso_run_check(tape + h->size, size - h->size, h->slots);
	if (r == 0 && ((const struct iso_run *)(const void *)(tape + h->size))->later && !(h->flags & ISO_TAPE_INIT))
		r = -EBADMSG; /* only an init can wait for what the program is to be */
	if (r < 0)
		refuse(ISO_STAGE_TAPE, r);
	/* Registers' values and addresses are stored into the data, and into the tables of the run block behind it. */
	r = SYS3(mprotect, PTR(tape), size, PROT_RW);
	if (r < 0)
		refuse(ISO_STAGE_MEMORY, r);
	s->tape_size = size;
	equip(s, tape);
	s->machine.run = (const void *)(tape + h->size);
}

__attribute__((used)) void iso_main(const uint64_t *old_stack);
void iso_main(const uint64_t *old_stack)
{
	struct supervisor s;
	memset(&s, 0, sizeof s);
	s.within = s.above = -1;
	s.tree = (struct template_tree){-1, -1, -1, -1, -1, -1, -1};
	/* First of all not dumpable, and so are the children from their birth on. The signals: the extension has blocked them
	 * before vfork; without it no SIGCHLD would ever wake init. */
	int64_t r = SYS2(prctl, PR_SET_DUMPABLE, 0);
	if (r >= 0)
		r = set_mask(~0ull);
	if (r >= 0)
		r = default_signals();
	if (r < 0)
		refuse(ISO_STAGE_SIGNALS, r);
	SYS2(prctl, PR_SET_NAME, PTR(build_mark));
	at_home = old_stack[0] < 2;
	leave_stack(old_stack);
	load(&s);
	r = get_capabilities(s.capabilities);
	if (r < 0)
		refuse(ISO_STAGE_OWNER, r);
	s.root = SYS0(geteuid) == 0;
	begin_supervisor(&s, 0);
	if (s.machine.header->flags & ISO_TAPE_PARKED)
		park(&s);
	to_the_end(&s);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tlea main_stack+65472(%rip), %rsp\n\tcall iso_main\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tmov x0, sp\n\tadrp x1, main_stack+65472\n"
	"\tadd x1, x1, :lo12:main_stack+65472\n\tmov sp, x1\n\tbl iso_main\n\tbrk #1\n");
#endif
