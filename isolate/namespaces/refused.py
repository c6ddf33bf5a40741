"""Why an id map was refused: by the kernel, or by newuidmap and newgidmap. Loaded when an error is being made."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.ops import RunHost
from isolate.namespaces.ranges import free_range, held_by_others

if TYPE_CHECKING:
    from isolate.diagnosis.host import Failure, Host

__all__ = ["helper", "map_refused"]


def map_refused(failure: Failure) -> Finding | None:
    """Root whose capabilities are gone may write no id map but where its own id is not 0."""
    host = failure.host
    if host.euid != 0:
        return None
    named = {6: "CAP_SETGID", 7: "CAP_SETUID", 31: "CAP_SETFCAP"}
    missing = [name for number, name in named.items() if not host.capable(number)]
    if not missing:
        return None
    return Finding(
        f"this program is root without {', '.join(missing)}: the kernel lets it map neither its own id, which is 0, nor"
        " others (user_namespaces(7))",
        "keep the capability, or run as an ordinary user, who maps the own id without any",
    )


def helper(failure: Failure) -> Finding | None:
    """newuidmap and newgidmap: not installed, not set-user-id, or no entry for what is asked."""
    host, error, op = failure.host, failure.error, failure.op
    assert isinstance(op, RunHost)
    program = os.path.basename(os.fsdecode(op.path))
    path = os.fsdecode(op.path)
    if not host.exists(path):
        return Finding(
            f"{program} is not installed", "install it (Debian, Ubuntu: apt install uidmap; Fedora: shadow-utils)"
        )
    if error != errno.ECHILD:
        return None
    full = os.path.join(host.root, path.lstrip("/"))
    try:
        capability = bool(os.getxattr(full, "security.capability"))
    except OSError:
        capability = False
    if not os.stat(full).st_mode & 0o4000 and not capability:
        return Finding(
            f"{path} is neither set-user-ID nor has it file capabilities, so it can grant nothing",
            f"as root: chmod u+s {path}",
        )
    if host.status("NoNewPrivs") == "1":
        return Finding(
            f"no_new_privs is set on this program, so {path} gets no rights and can grant nothing",
            "start it without (systemd: NoNewPrivileges=no; Docker: no --security-opt no-new-privileges), or map the"
            " own id alone: UserNamespace()",
        )
    return _subordinate(host, program, [a for a in op.args if isinstance(a, bytes)])


def _subordinate(host: Host, program: str, args: list[bytes]) -> Finding:
    """Which of the ranges asked for is in no entry of the caller's."""
    import pwd

    kind = program[3:6]
    file = f"/etc/sub{kind}"
    own = os.geteuid() if kind == "uid" else os.getegid()
    try:
        user = pwd.getpwuid(host.euid).pw_name
    except KeyError:
        user = str(host.euid)
    granted = [(own, 1)]
    entries = 0
    for line in host.lines(file):
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in (user, str(host.euid)) and fields[1].isdigit() and fields[2].isdigit():
            entries += 1
            granted.append((int(fields[1]), int(fields[2])))
    numbers = [int(a) for a in args if a.isdigit()]
    for outside, count in zip(numbers[1::3], numbers[2::3], strict=False):
        if any(first <= outside and outside + count <= first + size for first, size in granted):
            continue
        held = held_by_others(host.lines(file), (user, str(host.euid)))
        if any(outside < first + size and first < outside + count for first, size in held):
            free = free_range(host.lines(file), count)
            return Finding(
                f"{outside}-{outside + count - 1} is asked for, and {file} gives it, or some of it, to another user",
                f"as root: usermod --add-sub{kind}s {free}-{free + count - 1} {user}; and map these",
            )
        remedy = f"as root: usermod --add-sub{kind}s {outside}-{outside + count - 1} {user}"
        if not host.exists(file):
            return Finding(f"{file} does not exist, so {program} grants no ids", remedy)
        if not entries:
            return Finding(f"{file} has no entry for {user}, so {program} grants no ids", remedy)
        shown = ", ".join(f"{first}-{first + size - 1}" for first, size in granted[1:])
        return Finding(f"{file} gives {user} {shown}, and {outside}-{outside + count - 1} is asked for", remedy)
    return Finding(f"{program} refused the map, though {file} has the ranges", "run it by hand to see what it says")
