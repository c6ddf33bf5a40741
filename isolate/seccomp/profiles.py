"""The rules of the ready policies, each a composition that could be written by hand; printing one shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .conditions import arg, arg32
from .rules import allow, deny

if TYPE_CHECKING:
    from .rules import Rule

__all__ = ["default", "strict"]

# sched.h
CLONE_THREAD = 0x10000
#: CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET. (NEWTIME's bit is part of clone's exit signal.)
CLONE_NAMESPACES = 0x7E020000

# sys/socket.h, linux/netlink.h
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_TYPE_MASK, SOCK_PACKET = 0xF, 10
NETLINK_ROUTE = 0

# asm-generic/ioctls.h
TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423
# linux/fs.h
FS_IOC_FSSETXATTR = 0x401C5820

# TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS2
HARMLESS_IOCTLS = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)

# fcntl.h
F_SETLEASE = 1024

# fcntl.h, the same on every architecture here but O_DIRECTORY and its neighbours, which do no harm
O_WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
O_TMPFILE = 0o20000000

# sys/personality.h: PER_LINUX, PER_LINUX32, each with UNAME26, and the question
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


def default() -> list[Rule]:
    """A general policy: what common programs use, without what breaks kernels and containers.

    Refused with EPERM: all that Docker's default refuses to a container without capabilities (mounts, modules, clocks,
    keyrings, bpf, perf, swap, quota, raw I/O, other namespaces, memory policies, …), and besides:

    - new namespaces of every kind by ``clone`` and ``unshare``, user namespaces among them; ``clone3`` answers ENOSYS;
    - io_uring (ENOSYS), userfaultfd, memfd_secret, modify_ldt, vmsplice, fanotify, chroot;
    - sockets but of the families unix, inet, inet6 and netlink's route protocol (EAFNOSUPPORT), so neither AF_ALG,
      AF_VSOCK and AF_PACKET nor what comes next; pairs of sockets but of the family unix;
    - ioctls that type into a terminal or change its line discipline: TIOCSTI, TIOCLINUX, TIOCSETD;
    - personalities but Linux's own.

    Refused as well, though Docker allows them, since a program that nobody vouches for needs none of them:

    - ``ptrace``, ``process_vm_readv``, ``process_vm_writev``: they reach into other processes with the same ids, such
      as one that joined the sandbox later, under another policy (``@debug``: with ``pidfd_getfd``, ``kcmp``, perf);
    - ``name_to_handle_at``: a file's handle is half of what opens any file of the file system past its directories;
    - ``file_getattr`` and ``file_setattr`` (ENOSYS, as on a kernel before 6.17) and the ioctl FS_IOC_FSSETXATTR: the
      flags and the quota's project that they set stay with files of the host;
    - leases of files (``fcntl`` with F_SETLEASE): while a program keeps one, whoever else opens the file waits, for
      45 seconds at most, be it the host or another sandbox that shows the same file;
    - limits of the sandbox's init (``prlimit64`` of process 1): a limit of CPU time ends it, and with it the sandbox;
    - ``uprobe`` and ``uretprobe``: only the kernel's own trampolines make these calls, when somebody traces a program;
      those pass every filter since Linux 6.14.

    For debuggers add them: ``Seccomp.default() + allow("@debug")``, which ``extra`` of the presets takes in the place
    of their own.

    Calls later than the tables or the running kernel answer ENOSYS. Other ABIs (i386, x32, arm) end the process.
    """
    return [
        allow(
            "@basic-io",
            "@file-system",
            "@chown",
            "@network",
            "@events",
            "@aio",
            "@ipc",
            "@process",
            "@signal",
            "@memory",
            "@sync",
            "@time",
            "@identity",
            "@credentials",
            "@scheduling",
            "@resources",
            "@arch",
            "@sandbox",
            "getrandom",
            "ioctl",
            "uname",
        ),
        deny("file_getattr", "file_setattr", errno="ENOSYS"),
        allow("personality", when=arg(0).among(*PERSONALITIES)),
        deny("clone", when=(arg(0) & CLONE_NAMESPACES) != 0),
        deny("fcntl", "fcntl64", when=arg32(1) == F_SETLEASE, errno="EACCES"),
        deny("prlimit64", when=(arg32(0) == 1) & (arg(2) != 0)),
        deny("ioctl", when=arg32(1).among(TIOCSTI, TIOCLINUX, TIOCSETD, FS_IOC_FSSETXATTR)),
        deny("socket", "socketpair", errno="EAFNOSUPPORT"),
        allow("socket", when=(arg32(0) == AF_INET) & ((arg(1) & SOCK_TYPE_MASK) != SOCK_PACKET)),
        allow("socket", when=arg32(0).among(AF_UNIX, AF_INET6)),
        allow("socket", when=(arg32(0) == AF_NETLINK) & (arg32(2) == NETLINK_ROUTE)),
        allow("socketpair", when=arg32(0) == AF_UNIX),
    ]


def strict() -> list[Rule]:
    """Pure computation: start, read files, compute (with threads), write to what is open already, end.

    No network, no new processes, no writing to or changing of files, no signals to others but by ``tgkill`` (abort()
    needs it), no ioctl but questions about terminals. ``execve`` stays allowed, because the filter is in force when the
    program itself is executed; what it could execute sees the same filter. ``otherwise`` is what the rest answers: an
    errno lets a program go on, "kill" ends it with ``Verdict.SECCOMP``.
    """
    return [
        allow(
            "@identity", "@sync", "_llseek", "_newselect", "access", "arch_prctl", "brk", "cacheflush",
            "clock_getres", "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep",
            "clock_nanosleep_time64", "close", "close_range", "dup", "dup2", "dup3", "epoll_create", "epoll_create1",
            "execve", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64", "fstat", "fstat64", "fstatat64",
            "fstatfs", "fstatfs64", "getcwd", "getdents", "getdents64", "getpgid", "getpgrp", "getpid", "getppid",
            "getrandom", "getrlimit", "getrusage", "getsid", "gettid", "gettimeofday", "lseek", "lstat", "lstat64",
            "madvise", "mincore", "mmap", "mmap2", "mprotect", "mremap", "msync", "munmap", "nanosleep",
            "newfstatat", "pause", "poll", "ppoll", "ppoll_time64", "pread64", "preadv", "preadv2", "pselect6",
            "pselect6_time64", "pwrite64", "pwritev", "pwritev2", "read", "readlink", "readlinkat", "readv",
            "restart_syscall", "riscv_flush_icache", "riscv_hwprobe", "rt_sigaction", "rt_sigpending",
            "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "sched_get_priority_max", "sched_get_priority_min",
            "sched_getaffinity", "sched_getparam", "sched_getscheduler", "select", "set_thread_area",
            "set_tid_address", "set_tls", "sigaltstack", "sigreturn", "stat", "stat64", "statfs", "statfs64",
            "statx", "sysinfo", "tgkill", "time", "times", "ugetrlimit", "umask", "uname", "write", "writev",
        ),
        # Under every policy, libc's search for a name service must fail and not kill.
        deny("socket", "socketpair", errno="EAFNOSUPPORT"),
        allow("open", when=(arg32(1) & (O_WRITING | O_TMPFILE)) == 0),
        allow("openat", when=(arg32(2) & (O_WRITING | O_TMPFILE)) == 0),
        # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
        allow("fcntl", "fcntl64", when=arg32(1).among(0, 1, 2, 3, 4, 1030)),
        allow("ioctl", when=arg32(1).among(*HARMLESS_IOCTLS)),
        allow("clone", when=(arg(0) & (CLONE_THREAD | CLONE_NAMESPACES)) == CLONE_THREAD),
        allow("prlimit64", when=arg(2) == 0),
        # PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS, PR_SET_VMA
        allow("prctl", when=arg32(0).among(3, 15, 16, 21, 23, 39, 0x53564D41)),
    ]  # fmt: skip  # many names, few lines
