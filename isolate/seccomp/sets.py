"""Named sets of system calls, by purpose.

A set has every variant of a call on every architecture (``open``, ``openat``, ``openat2``; ``mmap``, ``mmap2``;
``*_time64``), because the C library picks one by machine, version and size of ``time_t``, and goes from a newer one
to an older only when the newer fails with ENOSYS.
"""

from __future__ import annotations

__all__ = ["DESCRIPTIONS", "SETS", "members"]

_SETS: dict[str, tuple[str, str]] = {
    "@basic-io": (
        "Read, write and close what is open already",
        "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek "
        "_llseek dup dup2 dup3 fcntl fcntl64 fsync fdatasync",
    ),
    "@file-system": (
        "Open, make, name, read, change and remove files and directories, and their attributes; no change of owner",
        "access faccessat faccessat2 chdir chmod close close_range copy_file_range creat fadvise64 "
        "fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fcntl fcntl64 fdatasync fgetxattr "
        "file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs "
        "fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat "
        "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lgetxattr link linkat listxattr "
        "listxattrat llistxattr lremovexattr lseek _llseek lsetxattr lstat lstat64 mkdir mkdirat mknod "
        "mknodat mmap mmap2 munmap newfstatat open openat openat2 readahead readlink readlinkat removexattr "
        "removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat "
        "stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range arm_sync_file_range "
        "sync_file_range2 arm_fadvise64_64 syncfs tee truncate truncate64 umask unlink unlinkat utime "
        "utimensat utimensat_time64 utimes cachestat",
    ),
    "@chown": ("Change the owner of files", "chown chown32 fchown fchown32 fchownat lchown lchown32"),
    "@network": (
        "Sockets of every family",
        "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg "
        "recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socket socketcall "
        "socketpair",
    ),
    "@events": (
        "Wait for descriptors, timers and signals by descriptor",
        "_newselect epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 "
        "poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create "
        "timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
    ),
    "@aio": (
        "Asynchronous I/O as it was before io_uring",
        "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    ),
    "@io-uring": (
        "io_uring, whose operations no filter sees",
        "io_uring_enter io_uring_register io_uring_setup",
    ),
    "@ipc": (
        "Pipes, shared memory, message queues and semaphores",
        "ipc memfd_create mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend "
        "mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 semctl semget semop semtimedop "
        "semtimedop_time64 shmat shmctl shmdt shmget",
    ),
    "@process": (
        "Start, end and await processes and threads, and signal them",
        "arch_prctl clone clone3 execve execveat exit exit_group fork get_robust_list get_thread_area getpgid "
        "getpgrp getpid getppid getrusage getsid gettid kill pidfd_open pidfd_send_signal prctl "
        "process_mrelease rseq rt_sigqueueinfo rt_tgsigqueueinfo sched_yield set_robust_list set_thread_area "
        "set_tid_address set_tls get_tls setpgid setsid tgkill times tkill vfork wait4 waitid waitpid",
    ),
    "@signal": (
        "Handle signals",
        "pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend "
        "rt_sigtimedwait rt_sigtimedwait_time64 sgetmask sigaction sigaltstack signal signalfd signalfd4 "
        "sigpending sigprocmask sigreturn sigsuspend ssetmask",
    ),
    "@memory": (
        "Get, protect, lock and give back memory",
        "brk madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap "
        "mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages",
    ),
    "@sync": (
        "Locks between threads",
        "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list membarrier rseq "
        "sched_yield set_robust_list",
    ),
    "@time": (
        "Read clocks, sleep, set timers",
        "alarm clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep "
        "clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete "
        "timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create "
        "timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times",
    ),
    "@clock": (
        "Set or steer the system's clocks",
        "adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime",
    ),
    "@identity": (
        "Ask for ids and capabilities",
        "capget getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid "
        "getresgid32 getresuid getresuid32 getuid getuid32",
    ),
    "@credentials": (
        "Change ids, groups and capabilities",
        "capset setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid "
        "setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    ),
    "@scheduling": (
        "Priorities, affinity and policies",
        "getcpu getpriority ioprio_get ioprio_set nice sched_get_priority_max sched_get_priority_min "
        "sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval "
        "sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler "
        "sched_yield setpriority",
    ),
    "@resources": ("Limits and usage", "getrlimit getrusage prlimit64 setrlimit sysinfo ugetrlimit"),
    "@system-info": (
        "Ask about the machine, and for random numbers",
        "getcpu getrandom oldolduname olduname sysinfo uname ustat sysfs",
    ),
    "@sandbox": (
        "Restrict oneself further",
        "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    ),
    "@arch": (
        "What one architecture needs of its own",
        "arch_prctl breakpoint cacheflush get_thread_area get_tls riscv_flush_icache riscv_hwprobe "
        "set_thread_area set_tls",
    ),
    "@debug": (
        "Look into other processes, and measure",
        "kcmp lookup_dcookie perf_event_open pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace "
        "uprobe uretprobe",
    ),
    "@mount": (
        "Mount, and change the root",
        "chroot fsconfig fsmount fsopen fspick listmount mount mount_setattr move_mount open_tree "
        "open_tree_attr pivot_root statmount umount umount2",
    ),
    "@namespaces": ("Make and enter namespaces (clone makes them too)", "setns unshare"),
    "@keyring": ("The kernel's keyrings", "add_key keyctl request_key"),
    "@module": (
        "Kernel modules",
        "create_module delete_module finit_module get_kernel_syms init_module query_module",
    ),
    "@numa": (
        "Place memory on nodes",
        "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    ),
    "@raw-io": ("Ports and PCI", "ioperm iopl pciconfig_iobase pciconfig_read pciconfig_write"),
    "@reboot": ("Another kernel, or none", "kexec_file_load kexec_load reboot"),
    "@swap": ("Swap areas", "swapoff swapon"),
    "@administration": (
        "Accounting, quota, the kernel's log, host names, handles, watching whole file systems",
        "acct fanotify_init fanotify_mark name_to_handle_at open_by_handle_at quotactl quotactl_fd "
        "setdomainname sethostname syslog vhangup",
    ),
    "@lsm": ("Attributes of security modules", "lsm_get_self_attr lsm_list_modules lsm_set_self_attr"),
    "@obsolete": (
        "What nothing needs any more",
        "_sysctl afs_syscall bdflush break create_module epoll_ctl_old epoll_wait_old ftime get_kernel_syms "
        "getpmsg gtty idle lock modify_ldt mpx nfsservctl oldfstat oldlstat oldstat prof profil putpmsg "
        "query_module readdir security stty sysfs tuxcall ulimit uselib ustat vm86 vm86old vserver",
    ),
}

SETS = tuple(_SETS)
DESCRIPTIONS = {name: text for name, (text, _) in _SETS.items()}

_members: dict[str, frozenset[str]] = {}


def members(name: str) -> frozenset[str]:
    """The calls of a set: ``members("@clock")``. A frozenset, so sets add and subtract; ValueError if there is none."""
    found = _members.get(name)
    if found is None:
        try:
            words = _SETS[name][1]
        except KeyError:
            import difflib

            near = difflib.get_close_matches(name, SETS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no set of system calls is named {name!r}{hint}") from None
        found = _members[name] = frozenset(words.split())
    return found
