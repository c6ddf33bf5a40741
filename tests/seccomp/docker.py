"""Docker's default policy for a container without capabilities, as of its support of Linux 5.16, written as what it
leaves out; and as a profile in Docker's JSON form."""

from __future__ import annotations

from typing import Any

from isolate.kernel import syscalls

#: Calls that the tables have, older than Linux 5.17, and that Docker's default refuses to such a container.
REFUSED = frozenset(
    """
    _sysctl acct add_key afs_syscall bdflush bpf break chroot clock_settime clock_settime64 clone3 create_module
    delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick ftime get_kernel_syms get_mempolicy getpmsg
    get_tls gtty idle init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lock lookup_dcookie mbind
    migrate_pages mount mount_setattr move_mount move_pages mpx nfsservctl nice oldfstat oldlstat oldolduname oldstat
    olduname open_by_handle_at open_tree pciconfig_iobase pciconfig_read pciconfig_write perf_event_open pidfd_getfd
    pivot_root process_madvise prof profil putpmsg query_module quotactl quotactl_fd readdir reboot request_key security
    set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday sgetmask sigaction signal
    sigpending sigsuspend ssetmask stime stty swapoff swapon sysfs syslog tuxcall ulimit umount umount2 unshare uselib
    userfaultfd ustat usr26 usr32 vhangup vm86 vm86old vserver
    """.split()  # noqa: SIM905
)
#: Allowed with conditions.
CONDITIONAL = ("clone", "personality", "socket")
NAMESPACES = 0x7E020000


def _compare(index: int, op: str, value: int) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": 0}


def profile() -> dict[str, Any]:
    """The profile, with its conditions by capability, architecture and kernel."""
    known = set().union(*(syscalls.names(arch) for arch in syscalls.ARCHITECTURES))
    plain = sorted(
        name
        for name in known - REFUSED - set(CONDITIONAL)
        if (syscalls.since(name) or (9, 0)) < (5, 17) and name not in ("arch_prctl", "modify_ldt", "ptrace")
    )

    def allowed(*names: str, **more: Any) -> dict[str, Any]:
        return {"names": list(names), "action": "SCMP_ACT_ALLOW", **more}

    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
        ],
        "syscalls": [
            allowed(*plain),
            allowed("ptrace", includes={"minKernel": "4.8"}),
            allowed("socket", args=[_compare(0, "NE", 40)]),
            *(allowed("personality", args=[_compare(0, "EQ", v)]) for v in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)),
            allowed("arch_prctl", "modify_ldt", includes={"arches": ["amd64", "x32"]}),
            allowed("clone", "clone3", "mount", "setns", "umount2", "unshare", includes={"caps": ["CAP_SYS_ADMIN"]}),
            allowed("clone", args=[_compare(0, "MASKED_EQ", NAMESPACES)], excludes={"caps": ["CAP_SYS_ADMIN"]}),
            {
                "names": ["clone3"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 38,
                "excludes": {"caps": ["CAP_SYS_ADMIN"]},
            },
            allowed("chroot", includes={"caps": ["CAP_SYS_CHROOT"]}),
            allowed("reboot", includes={"caps": ["CAP_SYS_BOOT"]}),
        ],
    }
