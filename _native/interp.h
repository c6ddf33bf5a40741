/* The interpreter of tapes: one source, compiled into the launcher and into the extension. */
#ifndef ISOLATE_INTERP_H
#define ISOLATE_INTERP_H

#include "groups.h"
#include "tape.h"

/* Memory that supervisor, init and payload share (a MAP_SHARED mapping, gone at exec): how set-up went. */
struct iso_shared {
	int32_t failed;
	int32_t error;
	uint32_t op;
	uint32_t stage;
	int32_t complete; /* ISO_COMPLETE_*: how far the payload got */
	int32_t status;
	uint32_t head_size;
	uint32_t executing; /* the payload has come as far as execve */
	uint64_t own_ns[2]; /* CPU time, user and system, that set-up itself took in init and its second process */
	uint32_t ending;    /* 1: init is to kill and reap everything, and to end; 2: it has killed, and reaps */
	uint32_t reaped;    /* init has reaped all of its children and ends */
	uint32_t parked;    /* a template's tree is built */
	uint32_t suspect;   /* a program that SIGSYS ended, not reaped yet, by init's count; futex: 0 when it has been looked at */
	uint32_t born;      /* the child of clone runs; futex of who waits for that */
	uint32_t untold; /* the Python program does not know yet who is to be waited for: nothing is sent before */
	uint64_t began_ns;  /* when a run that came later came; 0: with the clone of init */
	uint64_t ended_ns;  /* when init reaped the program, by init's clock; 0: it did not */
	uint64_t program_ns; /* CPU time of the program's own process */
	uint8_t head[ISO_HEAD];
	uint8_t skipped[]; /* a byte for each step, not a bit: the section ASIDE runs at the same time as init's */
};

struct iso_machine {
	struct iso_header *header;
	struct iso_op *ops;
	uint8_t *data;
	int64_t *reg;
	const struct iso_run *run; /* NULL on the calling thread of a Python program */
	struct iso_shared *shared; /* never NULL */
	const char *program;       /* what FIND found */
	int32_t sync_fd;
	int32_t exec_fd; /* without init: closed by a successful exec; else by init, when the program has ended */
	uint32_t failed_op;
	struct iso_patience patience; /* for what this process removes */
	uint32_t aside_op; /* the op that failed in the section ASIDE */
};

/* 0, or -errno of what is wrong with the tape in `size` bytes at `base` (8-byte aligned). */
int64_t iso_tape_check(const uint8_t *base, uint64_t size);
/* The same for the run block. */
int64_t iso_run_check(const uint8_t *base, uint64_t size, uint32_t tape_slots);
/* The header has been checked; fill in a machine's pointers. */
void iso_machine_init(struct iso_machine *m, uint8_t *base, int64_t *registers, struct iso_shared *shared);
/* 0, or -errno with m->failed_op set. */
int64_t iso_machine_run(struct iso_machine *m, int section);
/* The same for cleaning up: each step is run, whatever became of those before it, and a few times if it fails. The first
 * error that stayed. */
int64_t iso_machine_clean(struct iso_machine *m, int section);
uint64_t iso_tape_checksum(const uint8_t *base, uint32_t size);

/* Ops that only a launcher knows (sessions, programs): defined by whoever links the interpreter. */
int64_t iso_engine_op(struct iso_machine *m, const struct iso_op *op, const int64_t *arg);

#endif
