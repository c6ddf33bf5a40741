"""A sandbox in the words of bwrap(1), version 0.8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isolate import mounts, namespaces
from isolate.attributes.credentials import Credentials
from isolate.attributes.privileges import NoNewPrivs, SessionKeyring, SetIdFiles
from isolate.capabilities.part import Capabilities
from isolate.kernel import checks
from isolate.sandbox.defaults import DEFAULT_PATH, no_nested_user_namespaces
from isolate.sandbox.surroundings import Surroundings
from isolate.seccomp import Seccomp
from isolate.tools.near.command import plain

if TYPE_CHECKING:
    from isolate.tools.near.command import Near

__all__ = ["bubblewrap"]

_FLAGS = {
    namespaces.PidNamespace: "--unshare-pid",
    namespaces.NetNamespace: "--unshare-net",
    namespaces.IpcNamespace: "--unshare-ipc",
    namespaces.UtsNamespace: "--unshare-uts",
    namespaces.CgroupNamespace: "--unshare-cgroup",
}
#: Entries that no option makes as they are, and what serves instead.
_ELSEWHERE: dict[type[object], str] = {
    mounts.File: "--ro-bind-data FD DEST takes the content from a descriptor",
    mounts.Overlay: "bubblewrap 0.11: --overlay-src LOWER --tmp-overlay DEST",
}
_OTHERS = {
    "Limits": "the group of the caller: systemd-run --scope -p MemoryMax=… -p TasksMax=… before it",
    "Rlimits": "those of the caller: prlimit --core=0 --nofile=… before it",
    "Scheduling": "that of the caller: nice, ionice, taskset, chrt, choom before it",
    "TimeNamespace": "unshare --time before it",
    "Domains": "a proxy at a socket that is bound in, as flatpak and sandbox-runtime have it",
    "Userspace": "pasta or slirp4netns, attached to the process from outside",
}


def bubblewrap(near: Near) -> None:
    """Translate."""
    near.add("bwrap")
    _user(near)
    for kind, flag in _FLAGS.items():
        part: Any = near.find(kind)
        if part is not None and not near.joined(part, "no option"):
            near.add(flag)
    uts = near.find(namespaces.UtsNamespace)
    if uts is not None and uts.hostname:
        near.add("--hostname", uts.hostname)
    near.add("--new-session", "--die-with-parent", "--clearenv", "--setenv", "PATH", DEFAULT_PATH)
    root = near.find(mounts.Root)
    if root is None:
        near.add("--dev-bind", "/", "/")
    else:
        near.rest(root, "entries", "read_only")
        for entry in root.entries:
            _entry(near, entry)
        if root.read_only:
            near.add("--remount-ro", "/")
    given = near.find(Surroundings)
    if given is not None:
        for name, value in given.env or ():
            near.add("--setenv", name, value)
        if given.cwd:
            near.add("--chdir", given.cwd)
    capabilities = near.find(Capabilities)
    if capabilities is not None:
        near.add("--cap-drop", "ALL")
        for cap in sorted(capabilities.permitted):
            near.add("--cap-add", f"CAP_{cap.name}")
    _filter(near)
    keyring = near.find(SessionKeyring)
    if keyring is not None and keyring.enabled:
        near.lack("SessionKeyring", "the caller's session keyring stays: keyctl session - COMMAND")
    near.others(
        namespaces.UserNamespace,
        namespaces.MountNamespace,
        *_FLAGS,
        mounts.Root,
        Surroundings,
        Capabilities,
        Seccomp,
        NoNewPrivs,  # always
        SessionKeyring,
        SetIdFiles,
        Credentials,
        why=_OTHERS,
    )
    near.add("--", *(given.entrypoint if given is not None else ()), *near.program)


def _user(near: Near) -> None:
    user = near.find(namespaces.UserNamespace)
    ids = near.find(Credentials)
    if user is None:
        if ids is not None and (ids.uid is not None or ids.gid is not None):
            near.lack("Credentials", "setpriv --reuid --regid --clear-groups changes ids without a user namespace")
        return
    if near.joined(user, "--userns FD takes a descriptor of it"):
        return
    near.add("--unshare-user", "--uid", user.uid, "--gid", user.gid)
    if user.map is not None and (len(user.map.uids), user.map.uids[0].count) != (1, 1):
        near.lack("UserNamespace.map", "one id is mapped, to the caller's own")
    elif user.map is not None:
        import os

        outside = (user.map.uids[0].outside, user.map.gids[0].outside)
        if outside != (os.geteuid(), os.getegid()):
            near.lack(
                "UserNamespace.map", f"the id is the caller's outside, not {outside[0]}: setpriv --reuid before it"
            )
    if not user.nested:
        near.add("--disable-userns")
    near.rest(user, "uid", "gid", "map", "nested", "setgroups")


def _filter(near: Near) -> None:
    for policy in (part for part in near.parts if isinstance(part, Seccomp)):
        if policy.restricts and policy != no_nested_user_namespaces():
            near.lack("Seccomp", "--seccomp FD takes a compiled filter from a descriptor; there is none by default")


def _entry(near: Near, entry: Any) -> None:
    target = plain(getattr(entry, "target", ""))
    if isinstance(entry, mounts.Bind):
        if isinstance(entry.source, int):
            near.entry(entry, "the source is a descriptor: /proc/self/fd/N")
            return
        flag = "--dev-bind" if entry.dev else "--ro-bind" if entry.read_only else "--bind"
        near.add(f"{flag}-try" if entry.optional else flag, plain(entry.source), target)
        near.rest(entry, "source", "target", "read_only", "optional", "dev", "symlinks", "beneath")
        if entry.beneath is not None:
            near.lack(f"Bind({target!r}).beneath", "the source is opened by its path, and links in it are followed")
    elif isinstance(entry, mounts.Tmpfs):
        near.add("--perms", f"{entry.mode:04o}", "--size", checks.size("size", entry.size), "--tmpfs", target)
        near.lack("Tmpfs.inodes", "the number of files is not bounded")
        if not entry.exec:
            near.lack("Tmpfs.exec", "a tmpfs is never noexec")
        if entry.read_only:
            near.add("--remount-ro", target)
    elif isinstance(entry, mounts.Proc):
        near.add("--proc", target)
        near.lack("Proc.masked", "nothing is masked; /proc/sys and few others are covered where root runs it")
        near.rest(entry, "target", "masked", "read_only")
    elif isinstance(entry, mounts.Dev):
        near.add("--dev", target)
        near.lack("Dev.shm", "/dev and /dev/shm are bounded by the memory of the host")
    elif isinstance(entry, mounts.Symlink):
        near.add("--symlink", plain(entry.to), target)
    elif isinstance(entry, mounts.Dir):
        near.add("--perms", f"{entry.mode:04o}", "--dir", target)
    elif isinstance(entry, mounts.Mqueue):
        near.add("--mqueue", target)
    elif isinstance(entry, mounts.ReadOnly):
        near.add("--remount-ro", target)
    elif isinstance(entry, mounts.Mask):
        near.add("--ro-bind-try", "/dev/null", target)
        near.lack("Mask", "a directory is hidden by --tmpfs, which is writable, a file by /dev/null")
    elif isinstance(entry, mounts.Etc):
        near.lack("Etc", "passwd, group, hosts and nsswitch.conf are given one by one: --ro-bind-data FD DEST")
    else:
        near.entry(entry, _ELSEWHERE.get(type(entry), "no option"))
