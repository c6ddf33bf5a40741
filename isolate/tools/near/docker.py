"""A sandbox in the words of docker-run(1); podman-run(1) has the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isolate import mounts, namespaces, network
from isolate.attributes.credentials import Credentials
from isolate.attributes.privileges import NoNewPrivs, SessionKeyring, SetIdFiles
from isolate.attributes.rlimits import UNLIMITED, Rlimits
from isolate.attributes.scheduling import Scheduling
from isolate.capabilities.part import Capabilities
from isolate.cgroups import Limits
from isolate.kernel import checks
from isolate.namespaces.sysctl import Sysctl
from isolate.sandbox.defaults import no_nested_user_namespaces
from isolate.sandbox.surroundings import Surroundings
from isolate.seccomp import Seccomp
from isolate.tools.near.command import plain

if TYPE_CHECKING:
    from isolate.tools.near.command import Near

__all__ = ["docker"]

_HOSTS = {
    namespaces.PidNamespace: "--pid",
    namespaces.IpcNamespace: "--ipc",
    namespaces.UtsNamespace: "--uts",
    namespaces.CgroupNamespace: "--cgroupns",
}
_LIMITS = {
    "memory": "--memory",
    "memory_low": "--memory-reservation",
    "pids": "--pids-limit",
    "cpu": "--cpus",
    "cpus": "--cpuset-cpus",
    "mems": "--cpuset-mems",
}
_IO = {
    "rbps": "--device-read-bps",
    "wbps": "--device-write-bps",
    "riops": "--device-read-iops",
    "wiops": "--device-write-iops",
}
_MADE = "in the image; docker makes /etc/hosts, /etc/hostname and /etc/resolv.conf"
#: Entries that no option makes, and where they are instead.
_ELSEWHERE: dict[type[object], str] = {
    mounts.Symlink: "the image has it or not",
    mounts.Etc: _MADE,
    mounts.File: _MADE,
    mounts.Dir: _MADE,
}
_ULIMITS = {
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
}


def docker(near: Near) -> None:
    """Translate."""
    near.add("docker", "run", "--rm", "--init")
    _namespaces(near)
    _network(near)
    image = _root(near)
    _limits(near)
    _privileges(near)
    given = near.find(Surroundings)
    if given is not None:
        for name, value in given.env or ():
            near.add("--env", f"{name}={value}")
        if given.cwd:
            near.add("--workdir", given.cwd)
        if given.entrypoint:
            near.add("--entrypoint", given.entrypoint[0])
            near.program = [*given.entrypoint[1:], *near.program]
    near.lack("Sandbox.env", "a program has the variables of the image")
    near.others(
        namespaces.UserNamespace,
        namespaces.MountNamespace,
        namespaces.NetNamespace,
        *_HOSTS,
        network.Interface,
        mounts.Root,
        Surroundings,
        Capabilities,
        Limits,
        Rlimits,
        Scheduling,
        Seccomp,
        NoNewPrivs,
        SessionKeyring,  # always a new one
        SetIdFiles,
        Credentials,
        Sysctl,
        why={
            "Landlock": "no option",
            "HostProgram": "a hook of the OCI runtime, which docker has no option for",
            "Domains": "--network of a bridge whose only way out is a proxy's container",
            "Userspace": "rootless docker has its way out by such a program",
        },
    )
    near.add(image, *near.program)


def _namespaces(near: Near) -> None:
    user = near.find(namespaces.UserNamespace)
    ids = near.find(Credentials)
    if user is not None:
        near.lack("UserNamespace", "one map for all containers of the daemon: dockerd --userns-remap; podman: --userns")
        near.add("--user", f"{user.uid}:{user.gid}")
    elif ids is not None and ids.uid is not None:
        near.add("--user", f"{ids.uid}:{ids.uid if ids.gid is None else ids.gid}")
    for kind, option in _HOSTS.items():
        part: Any = near.find(kind)
        if part is None:
            near.add(option, "host")
        elif part.joined:
            near.joined(part, f"{option} container:NAME joins that of a container")
    uts = near.find(namespaces.UtsNamespace)
    if uts is not None and uts.hostname:
        near.add("--hostname", uts.hostname)
    if uts is not None and uts.domainname:
        near.add("--domainname", uts.domainname)
    settings = near.find(Sysctl)
    for name, value in settings.settings if settings is not None else ():
        near.add("--sysctl", f"{name}={value}")


def _network(near: Near) -> None:
    interfaces = [part for part in near.parts if isinstance(part, network.Interface)]
    for part in interfaces:
        name = getattr(part.network, "name", None)
        near.add("--network", name or "NETWORK")
        for option, value in (("--ip", part.address), ("--ip6", part.address6), ("--mac-address", part.mac)):
            if value is not None:
                near.add(option, value)
        for alias in filter(None, (part.name, *part.aliases)):
            near.add("--network-alias", alias)
        for port in part.publish:
            near.add("--publish", f"{port.address}:{port.host}:{port.port}/{port.protocol}")
        near.rest(part, "network", "name", "aliases", "address", "address6", "mac", "publish")
    net = near.find(namespaces.NetNamespace)
    if net is not None and net.joined:
        near.joined(net, "--network container:NAME joins that of a container")
    elif not interfaces:
        near.add("--network", "none" if net is not None else "host")


def _root(near: Near) -> str:
    """The entries; the image."""
    root = near.find(mounts.Root)
    image = "IMAGE"
    if root is None:
        near.lack("Root", "a container has the files of an image: the host's are at --volume /:/host")
        return image
    near.rest(root, "entries", "read_only", "mode")
    top = [entry for entry in root.entries if plain(getattr(entry, "target", "")) == "/"]
    if not any(getattr(entry, "read_only", None) is False for entry in top):
        near.add("--read-only")
    for entry in root.entries:
        if entry in top:
            image = _image(near, entry)
        else:
            _entry(near, entry)
    return image


def _image(near: Near, entry: Any) -> str:
    from isolate.images.root import ImageRoot  # loaded late: most sandboxes have no image

    if isinstance(entry, ImageRoot):
        digest: str = entry.image.digest
        return f"IMAGE@{digest}"
    near.entry(entry, "a directory is no image: tar -C DIRECTORY -c . | docker import - IMAGE")
    return "IMAGE"


def _is_volume(entry: Any) -> bool:
    from isolate.images.root import ImageRoot  # loaded late: most sandboxes have no image

    return isinstance(entry, ImageRoot) and plain(entry.directory) == plain(entry.target) and not entry.read_only


def _entry(near: Near, entry: Any) -> None:
    target = plain(getattr(entry, "target", ""))
    if near.parted(entry, ',"\n' if isinstance(entry, mounts.Bind) else ',:"\n'):
        return
    if _is_volume(entry):
        near.add("--volume", target)  # without a name: it begins with what the image has there
        near.rest(entry, "image", "target", "store", "directory", "size")
    elif isinstance(entry, mounts.Bind) and not isinstance(entry.source, int):
        recursive = "" if entry.recursive else ",bind-recursive=disabled"
        read_only = ",readonly" if entry.read_only else ""
        near.add("--mount", f"type=bind,source={plain(entry.source)},target={target}{read_only}{recursive}")
        near.rest(entry, "source", "target", "read_only", "recursive", "symlinks")
    elif isinstance(entry, mounts.Tmpfs):
        flags = f"size={checks.size('size', entry.size)},mode={entry.mode:o}"
        flags += f",nr_inodes={entry.inodes}" if entry.inodes is not None else ""
        near.add("--tmpfs", f"{target}:{'ro,' if entry.read_only else ''}{'exec,' if entry.exec else ''}{flags}")
    elif isinstance(entry, mounts.Dev):
        if entry.shm is not None:
            near.add("--shm-size", checks.size("size", entry.shm))
    elif isinstance(entry, (mounts.Proc, mounts.Sys, mounts.Mqueue, mounts.CgroupFs)):
        near.rest(entry, "target", "masked", "read_only")  # they are there, with the same masks
    elif isinstance(entry, mounts.Device):
        near.add("--device", target)
    elif isinstance(entry, mounts.Mask):
        near.add("--security-opt", f"mask={target}")
        near.lack("Mask", "podman alone has --security-opt mask=PATH")
    else:
        near.entry(entry, _ELSEWHERE.get(type(entry), "no option"))


def _limits(near: Near) -> None:
    limits = near.find(Limits)
    if limits is not None:
        for option, value in near.limits(_LIMITS, "-1"):
            near.add(option, value)
        if limits.swap is not None or limits.memory is not None:
            total = checks.limit("memory", limits.memory or "max")
            swap = checks.limit("swap", limits.swap or 0)
            if total is not None:
                near.add("--memory-swap", "-1" if swap is None else total + swap)
        for device, name, value in near.throttled():
            near.add(_IO[name], f"{device}:{value}")
        near.rest(limits, *_LIMITS, "swap", "io", "cpu_period")
    for name, (soft, hard) in (near.find(Rlimits) or Rlimits()).values().items():
        if name in _ULIMITS:
            near.add("--ulimit", f"{name}={_unlimited(soft)}:{_unlimited(hard)}")
        else:
            near.lack(f"Rlimits.{name}", "no --ulimit of that name")
    scheduling = near.find(Scheduling)
    if scheduling is not None:
        if isinstance(scheduling.oom_score_adj, int):
            near.add("--oom-score-adj", scheduling.oom_score_adj)
        if scheduling.affinity is not None:
            near.add("--cpuset-cpus", ",".join(map(str, sorted(scheduling.affinity))))
        for name in ("nice", "policy", "ioprio"):
            if name == "nice" and scheduling.nice is not None:
                near.lack("Scheduling.nice", f"{scheduling.nice}: nice in the command")


def _unlimited(value: int) -> int:
    return -1 if value == UNLIMITED else value


def _privileges(near: Near) -> None:
    gains = near.find(NoNewPrivs)
    if gains is None or gains.enabled:
        near.add("--security-opt", "no-new-privileges")
    capabilities = near.find(Capabilities)
    if capabilities is not None:
        near.add("--cap-drop", "ALL")
        for cap in sorted(capabilities.bounding | capabilities.permitted):
            near.add("--cap-add", cap.name)
        if capabilities.ambient:
            near.lack("Capabilities.ambient", "a user that is not root has none of them: file capabilities alone")
    policies = [part for part in near.parts if isinstance(part, Seccomp) and part != no_nested_user_namespaces()]
    if any(policy.restricts for policy in policies):
        if any(policy.restricts and policy != Seccomp.default() for policy in policies):
            near.add("--security-opt", "seccomp=PROFILE.json")
            near.lack("Seccomp", "a profile of docker's own form in a file")
    else:
        near.add("--security-opt", "seccomp=unconfined")
