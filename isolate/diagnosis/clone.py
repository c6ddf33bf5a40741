"""Why clone made no sandbox: user namespaces and their enemies, missing privileges, limits."""

from __future__ import annotations

import errno

from isolate.diagnosis.host import Finding, Host
from isolate.kernel import namespaces
from isolate.kernel.constants import CLONE_NEWUSER

NEWUSER = int(CLONE_NEWUSER)

_CALLS = "clone, clone3, unshare, setns, mount, umount2, pivot_root and the new mount calls"
_FILTER_REMEDY = {
    "Docker": f"docker run --security-opt seccomp=unconfined (or a profile that also allows {_CALLS})",
    "Podman": f"podman run --security-opt seccomp=unconfined (or a profile that also allows {_CALLS})",
    "Kubernetes": "securityContext.seccompProfile: {type: Unconfined} for this pod, or type: Localhost with a profile "
    f"that also allows {_CALLS}",
}
_FILTER_REMEDY_ELSEWHERE = (
    "find who installed it (systemd: RestrictNamespaces=, SystemCallFilter=; Docker and Kubernetes: the seccomp "
    f"profile; isolate itself: UserNamespace(nested=True) and an own Seccomp outside) and let it allow {_CALLS}"
)


_NO_CHROOT = (
    "enter the directory by pivot_root in place of chroot, as root: bwrap --bind DIRECTORY "
    "/ --dev-bind /dev /dev --dev-bind /proc /proc PROGRAM; or run this program outside"
)


def kinds(flags: int) -> list[str]:
    """The kinds of namespaces in clone's flags."""
    return [kind.file for kind in namespaces.within(flags)]


def clone(host: Host, error: int, flags: int, *, into_cgroup: bool) -> Finding | None:
    """Why clone with these flags failed."""
    if error == errno.EPERM:
        if flags & NEWUSER:
            return user_namespace(host)
        return _privileges(host, flags) if flags else None
    if error in (errno.ENOSPC, errno.EUSERS):
        return _limit(host, flags)
    if error == errno.EAGAIN:
        return processes(host)
    if error == errno.ENOMEM:
        return Finding(
            "the kernel has no memory for another process: a cgroup's limit, or the machine's "
            "(or a pid namespace was joined whose init has ended)",
            "run fewer at once or raise the limit: memory.max, kernel memory on cgroup v1",
        )
    if error == errno.EINVAL:
        return _missing(host, flags)
    if error == errno.EACCES:
        label = host.label()
        if into_cgroup:
            return Finding(
                "the caller may not move processes into the cgroup: clone needs write access to its cgroup.procs and "
                "to "
                "that of the nearest common ancestor",
                "delegate the subtree to this user (systemd: Delegate=yes), cgroups(7)",
            )
        if label:
            return Finding(
                f"a security module confines this program ({label})", "allow it user namespaces in its policy", True
            )
        return user_namespace(host) if flags & NEWUSER else None
    if error == errno.ENOSYS:
        if into_cgroup:
            return Finding(
                "being born into a cgroup needs clone3, which a seccomp filter on this program answers with ENOSYS"
                if host.filtered()
                else "being born into a cgroup needs clone3 (Linux 5.7)",
                _filter_remedy(host) if host.filtered() else "upgrade the kernel",
                True,
            )
        return seccomp(host, "clone")
    if into_cgroup and error == errno.EBUSY:
        return Finding(
            "the cgroup hands controllers to its children, and so may hold no process itself (cgroups(7), 'no "
            "internal processes')",
            "name a leaf",
        )
    if into_cgroup and error == errno.EOPNOTSUPP:
        return Finding(
            "the cgroup is of the type 'domain invalid' or threaded", "write 'threaded' or use another group"
        )
    return None


def no_pid_one(host: Host) -> Finding | None:
    """Why this thread can start nothing, and what it has started is killed: the PID 1 of its children has ended."""
    if not host.children_elsewhere():
        return None
    return Finding(
        "this thread has given its children another pid namespace (unshare or setns with CLONE_NEWPID, or a block"
        " with PidNamespace()), and the first process there, its PID 1, has ended: with it the kernel kills all others"
        " in it, and starts none any more (pid_namespaces(7))",
        "add PidNamespace() to the sandbox in place of unshare, which gives each start its own; start it on another"
        " thread, or let this one go back: os.setns(os.open('/proc/thread-self/ns/pid', os.O_RDONLY)) (Python 3.12)",
    )


def silenced(host: Host) -> Finding | None:
    """Why a launcher ends without a word, where a filter is in force: it kills, or refuses the call that tells."""
    found = seccomp(host, "what the launcher needs to tell of it, or kills it for a call (sendmsg, socket calls)")
    if found is None:
        return None
    return found._replace(
        cause=f"{found.cause}; or else the launcher was killed from outside (the OOM killer, an administrator)",
        unsupported=False,
    )


def user_namespace(host: Host) -> Finding | None:
    """Why a user namespace is refused, or one that was made has no rights."""
    if host.number("/proc/sys/kernel/unprivileged_userns_clone") == 0 and not host.capable():
        return Finding(
            "unprivileged user namespaces are switched off on this host (kernel.unprivileged_userns_clone = 0)",
            "as root: sysctl -w kernel.unprivileged_userns_clone=1 (to keep: a file in /etc/sysctl.d); "
            "or run this program as root",
            True,
        )
    if host.apparmor_restricts():
        return apparmor()
    if host.number("/proc/sys/user/max_user_namespaces") == 0:
        return _limit(host, NEWUSER)
    if host.chrooted():
        return Finding(
            "this program runs in a chroot, where the kernel makes no user namespace (user_namespaces(7), EPERM)",
            _NO_CHROOT,
            True,
        )
    if host.unmapped():
        return Finding(
            f"the caller's uid {host.euid} has no place in its own user namespace's map, and such a caller may make "
            "no other",
            "map it, or become an id that is mapped",
        )
    return (
        seccomp(host, "user namespaces")
        or _confined(host)
        or Finding(
            "nothing that refuses user namespaces can be seen from here: most likely this program runs in a chroot "
            "whose directory is a mount point, where the kernel makes none (user_namespaces(7), EPERM)",
            _NO_CHROOT,
            True,
        )
    )


def apparmor() -> Finding:
    """Ubuntu's restriction."""
    return Finding(
        "AppArmor restricts unprivileged user namespaces on this host (kernel.apparmor_restrict_unprivileged_userns "
        "= 1, "
        "the default since Ubuntu 23.10)",
        "give the program that runs this an AppArmor profile with the rule 'userns,' (as /etc/apparmor.d has for "
        "browsers); "
        "or as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0; or run it as root",
        True,
    )


def seccomp(host: Host, what: str) -> Finding | None:
    """A filter on this program, if there is one: the kernel does not tell what it refuses, so it is only likely."""
    if not host.filtered():
        return None
    container = host.container()
    usual = {"Docker": "as Docker's default profile does", "Kubernetes": "as RuntimeDefault does"}.get(container or "")
    return Finding(
        f"a seccomp filter is in force on this program and most likely refuses {what}"
        + (f", {usual}" if usual else ""),
        _filter_remedy(host),
        True,
    )


def _filter_remedy(host: Host) -> str:
    return _FILTER_REMEDY.get(host.container() or "", _FILTER_REMEDY_ELSEWHERE)


def _confined(host: Host) -> Finding | None:
    label = host.label()
    if label is None:
        return None
    return Finding(f"a security module confines this program ({label})", "allow it user namespaces in its policy", True)


def unshare(host: Host, error: int, own: int, flags: int) -> Finding | None:
    """Why unshare with these flags failed, in a sandbox whose clone had ``flags``."""
    if error == errno.EPERM and flags & NEWUSER:  # so the rights to it were there
        return seccomp(host, f"new namespaces ({', '.join(kinds(own))})") or _confined(host)
    if error in (errno.EPERM, errno.ENOSPC, errno.EUSERS, errno.EINVAL):
        return clone(host, error, own, into_cgroup=False)
    return None


def _privileges(host: Host, flags: int) -> Finding | None:
    names = ", ".join(kinds(flags))
    if not host.capable():
        return Finding(
            f"new namespaces ({names}) need CAP_SYS_ADMIN, which this program does not have",
            privileged(host),
        )
    return seccomp(host, f"new namespaces ({names})") or _confined(host)


def privileged(host: Host) -> str:
    """The remedy that gives this program CAP_SYS_ADMIN, or makes it unnecessary."""
    if host.euid == 0:
        return "keep CAP_SYS_ADMIN for this program (Docker, Podman: --cap-add; systemd: CapabilityBoundingSet=)"
    return "add UserNamespace() to the sandbox, or run this program as root"


def _limit(host: Host, flags: int) -> Finding:
    """ENOSPC: per-user counts of namespaces, or the depth."""
    wanted = kinds(flags)
    for kind in wanted:
        if host.number(f"/proc/sys/user/max_{kind}_namespaces") == 0:
            if host.in_user_namespace():
                return Finding(
                    f"this program runs in a sandbox that allows no {kind} namespaces inside of it"
                    f" (user.max_{kind}_namespaces = 0 in its user namespace)",
                    "whoever made that sandbox has to allow them: with isolate UserNamespace(nested=True) and a filter"
                    " of its own, with bubblewrap no --disable-userns; where that was not a sandbox, as root in the"
                    f" user namespace that says so: sysctl -w user.max_{kind}_namespaces=10000",
                    True,
                )
            return Finding(
                f"{kind} namespaces are switched off here (user.max_{kind}_namespaces = 0)",
                f"as root, in the user namespace that says so: sysctl -w user.max_{kind}_namespaces=10000",
                True,
            )
    limits = ", ".join(f"{kind} {host.number(f'/proc/sys/user/max_{kind}_namespaces')}" for kind in wanted)
    return Finding(
        f"a limit of namespaces is reached (here {limits}; an outer user namespace may have a lower one), "
        "or user or pid namespaces are nested 32 deep",
        "end what is not needed, raise user.max_*_namespaces (namespaces(7)), or nest less",
    )


def _missing(host: Host, flags: int) -> Finding | None:
    for kind in namespaces.within(flags):
        if host.exists("/proc/self/ns") and not host.exists(f"/proc/self/ns/{kind.file}"):
            return Finding(
                f"this kernel has no {kind.file} namespaces (CONFIG_{kind.option})", "use a kernel that has them", True
            )
    return None


def processes(host: Host) -> Finding:
    """EAGAIN of clone: limits of processes."""
    return host.limit_reached() or Finding(
        "a limit of processes is reached: a cgroup's pids.max, RLIMIT_NPROC, kernel.pid_max or kernel.threads-max",
        "run fewer at once, or raise it",
    )
