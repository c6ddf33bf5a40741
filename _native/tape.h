/* The tape: what Python compiles and the interpreter runs. One header for the extension, the launcher
 * and (through cffi) for Python: op codes, argument kinds, sections and struct layouts stand only here.
 *
 * A tape is one flat buffer: header, ops, data. It is relocatable: every reference is an offset. The
 * interpreter checks the whole tape (checksum, bounds, kinds) before it executes the first op, so a
 * damaged tape is refused and never executed in part. Jumps only go forward: every tape ends. */
#ifndef ISOLATE_TAPE_H
#define ISOLATE_TAPE_H

#include <stdint.h>

#define ISO_TAPE_MAGIC 0x31455041544f5349ull /* "ISOTAPE1" */
#define ISO_TAPE_ABI 7
#define ISO_MAX_OPS (1u << 20)
#define ISO_MAX_REGISTERS (1u << 16)
#define ISO_MAX_STEPS 100000 /* the last record has a byte for each, and is one message on a socket */
#define ISO_MAX_SLOTS 1024
#define ISO_MAX_TAPE (256u << 20)

/* Sections: which process runs the ops, and when. */
enum {
	ISO_OUTER,      /* supervisor, before clone */
	ISO_SUPERVISOR, /* supervisor, after clone, before the child is let go */
	ISO_INIT,       /* the child of clone (PID 1 of a new pid namespace) */
	ISO_PAYLOAD,    /* the child of init, before exec */
	ISO_AFTER,      /* init, once the payload runs */
	ISO_REPORT,     /* supervisor, once everything inside is dead but an init that has reaped it all */
	ISO_CLEANUP,    /* supervisor, once everything inside is dead */
	ISO_ASIDE,      /* a second process of init's, while init goes on: from OP_ASIDE to OP_MEET */
	ISO_THAW,       /* supervisor, before every kill: a process frozen by a v1 freezer does not die (any number of times) */
	ISO_AHEAD,      /* supervisor, before ISO_OUTER, and before there is a start where it waits for one: see serve() */
	ISO_STILL,      /* supervisor, before ISO_OUTER: take what ISO_AHEAD made before there was a start; it may have gone since */
	ISO_SECTIONS
};

/* Op codes. */
enum {
	ISO_OP_CALL = 1, /* a system call */
	ISO_OP_STORE,    /* write a value into the data: fixups, decimal numbers in paths */
	ISO_OP_TEST,     /* compare a value; error or forward jump when it differs */
	ISO_OP_TARGET,   /* resolve (and create) a path beneath a root by descriptor */
	ISO_OP_SYNC,     /* init: wait until the supervisor has written the id maps */
	ISO_OP_SESSION,  /* payload: new session, controlling terminal when asked for */
	ISO_OP_FIND,     /* payload: look the program up inside, keep its head for diagnosis */
	ISO_OP_FDS,      /* payload: put descriptors where they are wanted, everything else close-on-exec */
	ISO_OP_EXEC,     /* payload: execve; returns only on failure */
	ISO_OP_RMTREE,   /* supervisor: remove a directory tree; what is in cgroups is thawed and killed, retrying while busy */
	ISO_OP_RUN,      /* supervisor: run a host program (newuidmap) and wait; a status other than 0 is ECHILD */
	ISO_OP_LINE,     /* look for a line in a text; error when it is not among them */
	ISO_OP_ASIDE,    /* init: begin the section ASIDE in a second process */
	ISO_OP_MEET,     /* init: wait until that has ended; its error is that of the op there */
	ISO_OP_THAW,     /* supervisor: let a cgroup of v1, and those below it, go on */
	ISO_OP_COVER,    /* init: make every cgroup file system that is seen read-only */
	ISO_OP_MAP,      /* supervisor: a user namespace with an id map, in which nothing runs: its descriptor */
	ISO_OP_MAX
};

/* Kinds of an argument. */
enum {
	ISO_IMM,     /* the value itself */
	ISO_DATA,    /* address of data at this offset */
	ISO_REG,     /* value of a register */
	ISO_SLOT,    /* descriptor given by the caller, by its slot */
	ISO_CWD,     /* address of the run's working directory */
	ISO_COUNTER, /* the loop counter of a repeated call */
	ISO_LOAD4,   /* 32 bits of data at this offset, zero-extended */
	ISO_LOAD8,   /* 64 bits of data at this offset */
	ISO_FLAGS,   /* flags of the run: what the caller knows when it starts */
	ISO_KINDS
};

/* Flags of an op. */
#define ISO_TOLERATE 1  /* an error listed in errnos counts as success (the result register gets -errno) */
#define ISO_JUMP 2      /* an error listed in errnos (TEST: a mismatch) continues at `jump` */
#define ISO_OPTIONAL 4  /* any other error marks the step as skipped and continues at `jump` */
#define ISO_RETRY 8     /* an error listed in errnos is retried for up to 2 s, 1 ms apart */
#define ISO_EXACT 16    /* CALL: the result must equal `expect`, else EIO (short writes and reads) */
#define ISO_NOT 32      /* TEST: matches when the value differs */
#define ISO_SKIPS 64    /* with JUMP: the step counts as skipped */

/* ISO_OP_TARGET: arg0 root descriptor, arg1 path, arg2 flags, arg3 mode of what is created, arg4 expected f_type or 0. */
#define ISO_TARGET_DIR 1         /* make a directory where missing */
#define ISO_TARGET_FILE 2        /* make an empty file where missing */
#define ISO_TARGET_NO_SYMLINKS 4 /* no symbolic link in any component */
#define ISO_TARGET_MUST_NEW 8    /* the last component must not exist yet */
#define ISO_TARGET_PARENT 16     /* the result is the parent (made where missing); the last component is left alone */
#define ISO_TARGET_WRITE 32      /* open a file for writing, not O_PATH */
#define ISO_TARGET_READ 64       /* open for reading, not O_PATH */

/* ISO_OP_STORE: arg0 data offset (kind DATA), arg1 value, arg2 width in bytes 1, 2, 4, 8, or 0: decimal digits and NUL (21 bytes). */
/* ISO_OP_TEST: arg0 value, arg1 mask, arg2 wanted, arg3 errno of a mismatch. */
/* ISO_OP_RMTREE, ISO_OP_THAW: arg0 directory descriptor, arg1 name; RMTREE: arg2 whether everybody in groups of v1 is killed. */
/* ISO_OP_COVER: arg0 descriptor of the caller's /proc, arg1 of the supervisor's mount namespace, arg2: 1: the mount namespace
 * is another's, leave it first if need be. */
/* ISO_OP_LINE: arg0 the text, arg1 the line without its end, arg2 errno when it is not there. */
/* ISO_OP_MAP: arg0 the contents of uid_map, arg1 those of gid_map. */
/* ISO_OP_RUN: arg0 path, arg1 table of argc + 1 pointers (filled in from offsets by STORE), arg2 its length. */

struct iso_op {
	uint8_t code;
	uint8_t flags;
	uint8_t kind[6];
	uint32_t step;     /* index of the step this op belongs to: for errors */
	uint32_t out;      /* register for the result, ISO_NONE none */
	uint16_t errnos[4];/* errors that the flags speak of; 0 ends the list */
	uint16_t count;    /* CALL: repeat with the counter from 0 to count - 1, or to the first tolerated error; 0 and 1: once */
	uint16_t number;   /* CALL: system call number */
	uint32_t jump;     /* op to continue at, always further on */
	int64_t expect;    /* with EXACT */
	int64_t arg[6];
};

struct iso_range {
	uint32_t first;
	uint32_t count;
};

#define ISO_NONE 0xffffffffu

/* Flags of a tape. */
#define ISO_TAPE_INIT 1    /* an init stays between supervisor and payload */
#define ISO_TAPE_PIDNS 2   /* the child of clone is PID 1 of a new pid namespace */
#define ISO_TAPE_SHARE 4   /* the payload may share init's memory until exec (vfork); not with a new time namespace */
#define ISO_TAPE_STRANGERS 8 /* the child is born into a pid namespace that holds processes which are not ours */
#define ISO_TAPE_OWNED 16  /* a new user namespace belongs to the caller's uid, also where that is root */
#define ISO_TAPE_FILTERED 64 /* a filter may kill the program: before it is reaped it is looked at whether one has */
#define ISO_TAPE_AHEAD 128 /* all but the program can be made before a start is asked for */
#define ISO_TAPE_PARKED 32 /* this tape builds a tree, and the launcher then starts sandboxes from it: see ISO_SLOT_STARTS */

struct iso_header {
	uint64_t magic;
	uint64_t checksum; /* of everything behind this field */
	uint32_t size;
	uint32_t abi;
	uint32_t ops_offset;
	uint32_t op_count;
	uint32_t data_offset;
	uint32_t data_size;
	uint32_t registers;
	uint32_t steps;
	uint32_t slots; /* slots that the tape's ops name */
	uint32_t flags;
	uint64_t clone_flags;
	uint32_t cgroup_register; /* register with the cgroup to be born in, or ISO_NONE */
	uint32_t report_offset;   /* data that travels back in the final record */
	uint32_t report_size;
	uint32_t reserved;
	struct iso_range section[ISO_SECTIONS];
};

/* The part that differs from run to run, behind the tape in the same memfd (8-byte aligned). Strings are offsets from its start. */
#define ISO_RUN_MAGIC 0x4e5552u
#define ISO_RUN_STARTED 1 /* tell when the program runs, with a pidfd */
#define ISO_RUN_PTY 8     /* streams become a terminal of the sandbox's own devpts, if it has one: bits 8 to 10 say which */
#define ISO_RUN_PTY_SHIFT 8
#define ISO_RUN_TTY 2     /* descriptor 0 becomes the controlling terminal */
#define ISO_RUN_ALONE 4   /* no program: init stays, reaps, and is what is told as started */
#define ISO_RUN_EARLY 32  /* the end is told before the clean-up, and of that a record of its own tells */
#define ISO_RUN_KILLABLE 16 /* set by the extension: the caller's oom_score_adj is not below 0 */
#define ISO_RUN_AHEAD 64  /* set by a launcher that is parked: its fork hands the run on that is asked for, control socket first */

struct iso_fd {
	uint32_t slot;
	uint32_t target;
};

struct iso_run {
	uint32_t magic;
	uint32_t size;
	uint32_t flags;
	uint32_t argc;
	uint32_t argv; /* offset of argc + 1 uint64_t: offsets of strings, made pointers in place */
	uint32_t envc;
	uint32_t envp;
	uint32_t program;
	uint32_t path; /* the PATH to search */
	uint32_t cwd;
	uint32_t fdc;
	uint32_t fds; /* offset of fdc struct iso_fd, targets ascending */
	uint32_t slots; /* descriptors handed to the launcher: 0 .. slots-1 */
	uint32_t later; /* slot of a socket by which init gets the run block that holds, with its descriptors; 0: this is it */
	uint64_t timeout_ns; /* the supervisor kills everything so long after the start; 0: no limit */
	uint64_t cpu_ns;     /* and when the whole tree has used so much CPU time; 0: no limit */
	uint32_t tty_uid;    /* the owner of a terminal of the sandbox's own, as the user namespace has it; ISO_NONE: as it is */
	uint32_t reserved;
	uint64_t began_ns;   /* set by the extension: when the caller asked for the start, CLOCK_MONOTONIC; limits count from there */
};

/* Stands in front of the run block in a message to a launcher that is parked. */
struct iso_begin {
	int32_t thread; /* whose Landlock domain has to be ours; 0: nobody can have put one on it */
	int32_t reserved;
};

/* The limits of a run that comes later, sent to the supervisor on the control socket. */
struct iso_limits {
	uint64_t timeout_ns;
	uint64_t cpu_ns;
	uint64_t began_ns;
};

/* That message: the run block, and the descriptors of the slots 0, 1, 2 and of the last ones, those behind the tape's own.
 * A block that is too long for it comes in a memfd, which is then the first descriptor, and the message is its header. */
#define ISO_MAX_PASSED 248 /* the kernel takes 253 at a time */
#define ISO_MAX_BESIDE 5   /* of them beside what is passed: a socket, three streams, a long block */

/* Slots that are always there. Slot n is descriptor n in the launcher. */
#define ISO_SLOT_CONTROL 3
#define ISO_SLOT_TAPE 4
#define ISO_SLOT_OWNER 5
#define ISO_SLOT_FREE 6

/* A launcher that is parked (ISO_TAPE_PARKED) has these two behind the fixed ones: a socket by which each start comes, and a
 * memfd with the tape that each start runs. A start is one message: the run block (or, where that is too long, its header),
 * with the descriptors: control socket, slots 0, 1, 2, those behind the tape's own slots, and the block's memfd if it is long. */
#define ISO_SLOT_STARTS 6
#define ISO_SLOT_START_TAPE 7

/* Registers that the engine fills. */
#define ISO_REG_CHILD 0 /* supervisor: pid of the child */
#define ISO_REG_SELF 1  /* pid of the process that runs the section, as it sees itself */
#define ISO_REG_LAUNCHER 2 /* pid of the launcher */
#define ISO_REG_FREE 3

/* Records from the launcher (and, for STARTED, from init) to Python; one per message. */
#define ISO_RECORD_STARTED 1
#define ISO_RECORD_FAILED 2
#define ISO_RECORD_ENDED 3
#define ISO_RECORD_PARKED 5   /* the tree is built, with what the tape reports; starts can come */
#define ISO_RECORD_LAUNCHER 6 /* `pid` is the supervisor of a start from a template, its pidfd comes along */
#define ISO_RECORD_PROGRAM 4 /* its kind alone: the kernel tells the payload's pid beside it (SCM_CREDENTIALS) */
#define ISO_RECORD_TERMINAL 5 /* its kind alone, from the payload, and beside it our end of its terminal (ISO_RUN_PTY) */
#define ISO_RECORD_CLEANED 7 /* behind ENDED, where that is told early: `error` and `op` of the clean-up */
#define ISO_HEAD 128

struct iso_record {
	uint32_t kind;
	int32_t error;       /* FAILED: errno; ENDED: errno of a failed clean-up, 0 */
	uint32_t op;         /* FAILED: index of the op; ISO_OP_NONE: the engine itself, see stage */
	uint32_t stage;
	int32_t status;      /* ENDED: wait status of the payload; STARTED: its pid, where nothing else has told it, or 0 */
	int32_t init_status; /* ENDED: wait status of init */
	int32_t complete;    /* ENDED: ISO_COMPLETE_STARTED, ISO_COMPLETE_STATUS */
	uint32_t head_size;  /* FAILED at exec: the program's start, an ELF's loader from byte 64; at FIND with EACCES: st_mode, f_flags, path */
	uint64_t user_ns;    /* CPU time of the whole tree */
	uint64_t system_ns;
	uint64_t max_rss;    /* bytes */
	uint64_t wall_ns;    /* from clone to the end of the program, or of the tree where it was killed */
	uint64_t program_ns; /* CPU time of the program's own process, which is what RLIMIT_CPU counts */
	uint32_t skipped_size;
	uint32_t report_size;
	uint8_t head[ISO_HEAD];
	/* then skipped_size bytes (1: this step was skipped) and report_size bytes */
};

#define ISO_OP_NONE 0xffffffffu

#define ISO_COMPLETE_STARTED 1 /* the program was executed */
#define ISO_COMPLETE_STATUS 2  /* it was reaped: `status` holds; else everything was killed first */
#define ISO_COMPLETE_TIMEOUT 4  /* the supervisor killed everything at the limit of the wall clock */
#define ISO_COMPLETE_CPU_TIME 8 /* or at that of CPU time */
#define ISO_COMPLETE_FILTERED 16 /* a filter killed it: the kernel marks a thread that it ends so (Linux 5.17), here the first */

/* Stages of the engine itself, for failures outside any op. */
enum {
	ISO_STAGE_OPS,
	ISO_STAGE_TAPE,   /* the tape or run block was refused */
	ISO_STAGE_MEMORY, /* mmap */
	ISO_STAGE_PIPE,
	ISO_STAGE_CLONE_INIT,
	ISO_STAGE_CLONE_PAYLOAD,
	ISO_STAGE_DEATH,  /* init or payload was killed during set-up */
	ISO_STAGE_OWNER,
	ISO_STAGE_POLL,
	ISO_STAGE_SIGNALS, /* signal actions or mask */
	ISO_STAGE_LATER,   /* the run that came later could not be taken */
	ISO_STAGE_TEMPLATE, /* the tree of a template: its namespaces could not be had, or entered */
	ISO_STAGE_PROC,    /* no /proc of the supervisor's own pid namespace, and no pid namespace to do without it */
	ISO_STAGES
};

#endif
