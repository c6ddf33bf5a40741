"""A sandbox in the words of systemd-run(1): properties of systemd.exec(5) and systemd.resource-control(5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isolate import mounts, namespaces
from isolate.attributes.credentials import Credentials
from isolate.attributes.privileges import NoNewPrivs, SessionKeyring, SetIdFiles
from isolate.attributes.rlimits import UNLIMITED, Rlimits
from isolate.attributes.scheduling import Scheduling
from isolate.capabilities.part import Capabilities
from isolate.cgroups import Limits
from isolate.kernel import checks
from isolate.sandbox.defaults import DEFAULT_PATH, no_nested_user_namespaces
from isolate.sandbox.surroundings import Surroundings
from isolate.seccomp import Seccomp
from isolate.tools.near.command import plain

if TYPE_CHECKING:
    from isolate.tools.near.command import Near

__all__ = ["NEW", "systemd_run"]

_LIMITS = {
    "memory": "MemoryMax",
    "memory_high": "MemoryHigh",
    "memory_low": "MemoryLow",
    "memory_min": "MemoryMin",
    "pids": "TasksMax",
    "cpu_weight": "CPUWeight",
    "cpus": "AllowedCPUs",
    "mems": "AllowedMemoryNodes",
    "io_weight": "IOWeight",
}
_IO = {
    "rbps": "IOReadBandwidthMax",
    "wbps": "IOWriteBandwidthMax",
    "riops": "IOReadIOPSMax",
    "wiops": "IOWriteIOPSMax",
}
_MADE = "nothing is made in the root: bind a file or directory of the host's"
#: Entries that no property makes, and what serves instead.
_ELSEWHERE: dict[type[object], str] = {
    mounts.Sys: "MountAPIVFS= has them with /proc",
    mounts.CgroupFs: "MountAPIVFS= has them with /proc",
    mounts.Symlink: _MADE,
    mounts.Dir: _MADE,
    mounts.File: _MADE,
    mounts.Etc: _MADE,
    mounts.Overlay: "ExtensionDirectories= lays /usr and /opt over the root's, read-only",
}
#: Properties that are younger than systemd 252, and the version that has them.
NEW = {"PrivatePIDs": 257}


def systemd_run(near: Near) -> None:
    """Translate."""
    near.add("systemd-run", "--pipe", "--wait", "--collect", "--quiet")
    _namespaces(near)
    _root(near)
    _limits(near)
    _privileges(near)
    given = near.find(Surroundings)
    near.add(f"--setenv=PATH={DEFAULT_PATH}")
    if given is not None:
        for name, value in given.env or ():
            near.add(f"--setenv={name}={value}")
        if given.cwd:
            near.add(f"--working-directory={given.cwd}")
        near.program = [*given.entrypoint, *near.program]
    near.lack("Sandbox.env", "systemd adds variables of its own, such as INVOCATION_ID")
    near.others(
        namespaces.UserNamespace,
        namespaces.MountNamespace,
        namespaces.PidNamespace,
        namespaces.NetNamespace,
        namespaces.IpcNamespace,
        namespaces.UtsNamespace,
        namespaces.CgroupNamespace,
        mounts.Root,
        Surroundings,
        Capabilities,
        Limits,
        Rlimits,
        Scheduling,
        Seccomp,
        NoNewPrivs,
        SessionKeyring,
        SetIdFiles,
        Credentials,
        why={
            "HostProgram": "ExecStartPre=+ of a unit",
            "Domains": "IPAddressAllow= takes addresses, not names",
            "Sysctl": "no property: ExecStartPre=+sysctl -w of a unit",
        },
    )
    # The manager puts variables in the place of their names (systemd.service(5), "Command lines").
    near.add("--", *near.program[:1], *(word.replace("$", "$$") for word in near.program[1:]))


def _set(near: Near, name: str, value: object) -> None:
    near.add("-p", f"{name}={'yes' if value is True else 'no' if value is False else value}")


def _namespaces(near: Near) -> None:
    user = near.find(namespaces.UserNamespace)
    ids = near.find(Credentials)
    if user is not None and not near.joined(user):
        _set(near, "PrivateUsers", True)
        near.lack("UserNamespace.map", "PrivateUsers= maps root and the user of the unit to themselves")
        near.rest(user, "map", "uid", "gid", "nested", "setgroups")
        if user.uid:
            _set(near, "User", user.uid)
            _set(near, "Group", user.gid)
    elif ids is not None and ids.uid is not None:
        _set(near, "User", ids.uid)
        _set(near, "Group", ids.uid if ids.gid is None else ids.gid)
    if ids is not None:
        _set(near, "UMask", f"{ids.umask:04o}")
    for kind, name in (
        (namespaces.PidNamespace, "PrivatePIDs"),
        (namespaces.NetNamespace, "PrivateNetwork"),
        (namespaces.IpcNamespace, "PrivateIPC"),
    ):
        part: Any = near.find(kind)
        if part is None:
            continue
        if part.joined:
            option = {"PrivateNetwork": "NetworkNamespacePath=", "PrivateIPC": "IPCNamespacePath="}.get(name)
            near.joined(part, f"{option} takes a path" if option else "no option")
        else:
            _set(near, name, True)
            if name in NEW:
                near.lack(kind.__name__, f"{name}= is there from systemd {NEW[name]} on")
    uts = near.find(namespaces.UtsNamespace)
    if uts is not None:
        _set(near, "ProtectHostname", True)
        if uts.hostname:
            near.lack("UtsNamespace.hostname", "ProtectHostname=private:NAME from systemd 258 on")
    if near.find(namespaces.CgroupNamespace) is not None:
        _set(near, "ProtectControlGroups", True)
        near.lack("CgroupNamespace", "ProtectControlGroups=private from systemd 257 on")


def _root(near: Near) -> None:
    root = near.find(mounts.Root)
    if root is None:
        return
    entries = list(root.entries)
    top = next((entry for entry in entries if plain(getattr(entry, "target", "")) == "/"), None)
    if isinstance(top, mounts.Bind) and not isinstance(top.source, int):
        _set(near, "RootDirectory", plain(top.source))
        if top.read_only:
            _set(near, "ReadOnlyPaths", "/")
    elif top is not None:
        near.entry(top, "RootDirectory= and RootImage= take a directory and a disk image")
    else:
        _set(near, "TemporaryFileSystem", f"/:{'ro,' if root.read_only else ''}size={checks.size('size', root.size)}")
    for entry in entries:
        if entry is not top:
            _entry(near, entry)


def _entry(near: Near, entry: Any) -> None:
    target = plain(getattr(entry, "target", ""))
    if near.parted(entry, " \t\n:\"'\\"):
        return
    if isinstance(entry, mounts.Bind) and not isinstance(entry.source, int):
        name = "BindReadOnlyPaths" if entry.read_only else "BindPaths"
        optional, plainly = "-" if entry.optional else "", "" if entry.recursive else ":norbind"
        _set(near, name, f"{optional}{plain(entry.source)}:{target}{plainly}")
        near.rest(entry, "source", "target", "read_only", "recursive", "optional", "symlinks", "suid", "dev")
        if not entry.exec:
            _set(near, "NoExecPaths", target)
    elif isinstance(entry, mounts.Tmpfs):
        flags = [f"size={checks.size('size', entry.size)}", f"mode={entry.mode:o}"]
        flags += [f"nr_inodes={entry.inodes}"] if entry.inodes is not None else []
        flags += ["ro"] if entry.read_only else []
        flags += [] if entry.exec else ["noexec"]
        _set(near, "TemporaryFileSystem", f"{target}:{','.join(flags)}")
    elif isinstance(entry, mounts.Proc):
        _set(near, "MountAPIVFS", True)
        _set(near, "ProtectKernelTunables", True)
        if entry.hidepid is not None:
            _set(near, "ProtectProc", "invisible" if entry.hidepid in ("invisible", "ptraceable") else "noaccess")
        if entry.subset is not None:
            _set(near, "ProcSubset", entry.subset)
    elif isinstance(entry, mounts.Dev):
        _set(near, "PrivateDevices", True)
        near.lack("Dev.shm", "/dev/shm is the host's but for PrivateTmp= or TemporaryFileSystem=/dev/shm")
    elif isinstance(entry, mounts.Mask):
        _set(near, "InaccessiblePaths", f"{'-' if entry.optional else ''}{target}")
    elif isinstance(entry, mounts.ReadOnly):
        _set(near, "ReadOnlyPaths", f"{'-' if entry.optional else ''}{target}")
    elif isinstance(entry, mounts.Device):
        _set(near, "BindPaths", target)
        _set(near, "DeviceAllow", f"{target} rw")
    else:
        near.entry(entry, _ELSEWHERE.get(type(entry), "no option"))


def _limits(near: Near) -> None:
    limits = near.find(Limits)
    if limits is not None:
        for option, value in near.limits(_LIMITS, "infinity"):
            _set(near, option, value)
        if limits.swap is not None or limits.memory is not None:
            swap = limits.swap or 0
            _set(near, "MemorySwapMax", "infinity" if swap == "max" else swap)
        if limits.cpu is not None:
            _set(near, "CPUQuota", f"{limits.cpu * 100:g}%")
            _set(near, "CPUQuotaPeriodSec", f"{limits.cpu_period * 1000:g}ms")
        if limits.oom_group:
            _set(near, "OOMPolicy", "kill")
        for device, name, value in near.throttled():
            _set(near, _IO[name], f"/dev/block/{device} {value}")
        if limits.devices is not None:
            _set(near, "DevicePolicy", "strict")
            near.lack("Limits.devices", "DeviceAllow= takes paths and names of groups of devices")
        near.rest(limits, *_LIMITS, "swap", "cpu", "cpu_period", "oom_group", "io", "devices")
    for name, (soft, hard) in (near.find(Rlimits) or Rlimits()).values().items():
        _set(near, f"Limit{name.rstrip('_').upper()}", f"{_infinity(soft)}:{_infinity(hard)}")
    scheduling = near.find(Scheduling)
    if scheduling is not None:
        if scheduling.nice is not None:
            _set(near, "Nice", scheduling.nice)
        if scheduling.policy is not None:
            _set(near, "CPUSchedulingPolicy", scheduling.policy)
        if scheduling.priority is not None:
            _set(near, "CPUSchedulingPriority", scheduling.priority)
        if scheduling.affinity is not None:
            _set(near, "CPUAffinity", " ".join(map(str, sorted(scheduling.affinity))))
        if isinstance(scheduling.oom_score_adj, int):
            _set(near, "OOMScoreAdjust", scheduling.oom_score_adj)
        if isinstance(scheduling.ioprio, tuple):
            _set(near, "IOSchedulingClass", scheduling.ioprio[0])
            _set(near, "IOSchedulingPriority", scheduling.ioprio[1])
        elif scheduling.ioprio is not None:
            _set(near, "IOSchedulingClass", scheduling.ioprio)


def _infinity(value: int) -> object:
    return "infinity" if value == UNLIMITED else value


def _privileges(near: Near) -> None:
    gains = near.find(NoNewPrivs)
    if gains is None or gains.enabled:
        _set(near, "NoNewPrivileges", True)
    capabilities = near.find(Capabilities)
    if capabilities is not None:
        for name, held in (
            ("CapabilityBoundingSet", capabilities.bounding | capabilities.permitted),
            ("AmbientCapabilities", capabilities.ambient),
        ):
            _set(near, name, " ".join(f"CAP_{cap.name}" for cap in sorted(held)))
    keyring = near.find(SessionKeyring)
    if keyring is None or keyring.enabled:
        _set(near, "KeyringMode", "private")
    if near.find(SetIdFiles) is None:
        _set(near, "RestrictSUIDSGID", True)
    for policy in (part for part in near.parts if isinstance(part, Seccomp)):
        if policy == no_nested_user_namespaces():
            _set(near, "RestrictNamespaces", "~user")
        elif policy.restricts:
            _set(near, "SystemCallFilter", "@system-service")
            _set(near, "SystemCallErrorNumber", "EPERM")
            _set(near, "SystemCallArchitectures", "native")
            near.lack("Seccomp", "@system-service is the nearest group of calls: systemd-analyze syscall-filter")
