"""``Limits`` as steps: the launcher makes the group before the child, reads its counters after it, and removes it.

The group is the launcher's and not this program's, so that a SIGKILL of this program leaves none.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from isolate.cgroups import devices, naming, refused
from isolate.cgroups.counting import RunGroup, report_steps
from isolate.cgroups.cover import cover_steps
from isolate.cgroups.hierarchy import discover
from isolate.cgroups.placement import place, removal_order
from isolate.cgroups.scope import FUTURE, Standing, guide_to
from isolate.cgroups.settings import home_of, settings
from isolate.engine.finding import Finding
from isolate.engine.keeper import watched
from isolate.engine.plan import (
    CONTROL,
    LAUNCHER,
    Buffer,
    Label,
    Line,
    Load,
    Phase,
    Register,
    Split,
    Step,
    Store,
    Test,
    Thaw,
    call,
)
from isolate.engine.plan import RemoveTree as RemoveTreeOp
from isolate.engine.resources import Moved
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_PATH, O_RDONLY, O_RDWR, O_WRONLY, Constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from isolate.cgroups.placement import Place, Placement
    from isolate.cgroups.settings import Setting
    from isolate.cgroups.values import LimitValues
    from isolate.engine.plan import Argument, Context, Guide, Op

O_DIRECTORY: Final = Constant(os.O_DIRECTORY, "O_DIRECTORY")
MSG_DONTWAIT = Constant(0x40, "MSG_DONTWAIT")
BPF_PROG_LOAD = Constant(devices.BPF_PROG_LOAD, "BPF_PROG_LOAD")
BPF_PROG_ATTACH = Constant(devices.BPF_PROG_ATTACH, "BPF_PROG_ATTACH")
_DIGITS: Final = 21
_PAGE: Final = 4096
_NOT_THERE: Final = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)
#: How deep and how many groups may be made below that of a run (cgroup-v2.rst, "Core Interface Files").
BOUNDS: Final = (("cgroup.max.depth", b"32"), ("cgroup.max.descendants", b"1000"))
#: cpu.rt_period_us of a fresh group; what is given of it where no limit says how much, and the most that can be given.
_REAL_TIME_PERIOD: Final = 1_000_000
_REAL_TIME: Final = 50_000
_REAL_TIME_MOST: Final = 900_000


def limits_steps(limits: LimitValues, context: Context) -> Iterator[Step]:
    """The steps of ``Limits``."""
    host = discover()
    placement = place(limits, host)

    def parent_of(controller: str) -> str:
        found = placement.of(home_of(host, controller))
        return found.parent if found else ""

    wanted = settings(limits, host, parent_of)
    group = RunGroup()
    context.group = group
    registers: dict[str, Register] = {}
    made: dict[Place, Buffer] = {}
    prefix = naming.prefix()
    # A group that somebody else has named can be removed at any time, so nothing waits in it.
    ahead = limits.parent is None
    yield from scope_steps(placement, context)
    for spot in placement.places:
        key = spot.hierarchy.key
        path = os.path.join(spot.parent, prefix)
        group.paths[key] = (spot.hierarchy, path)
        registers[key] = Register(f"group in {key}")
        buffer = Buffer(os.fsencode(path) + bytes(_DIGITS), f"{path}<launcher>")
        yield _make(spot, buffer, len(os.fsencode(path)), registers[key], ahead=ahead)
        yield from report_steps(spot, registers[key], group)
        yield from thaw_steps(key, AT_FDCWD, buffer)
        made[spot] = buffer
        if any(getattr(part, "real_time", False) for part in context.parts):
            yield from _real_time(spot, registers[key], limits)
    for spot in removal_order(made):
        yield _remove(spot, made[spot], len(os.fsencode(group.paths[spot.hierarchy.key][1])))
    for setting in wanted.files:
        home = home_of(host, setting.controller)
        if home is not None:
            yield _write(setting, registers[home.key], parent_of(setting.controller), ahead=ahead)
    if wanted.program is not None and host.v2 is not None:
        yield _attach(wanted.program, registers["v2"])
    for key, register in registers.items():
        if key != "v2":
            yield from enter_steps(register, f"the group of {key}")
    if "v2" in registers:
        yield Step(Phase.CLONE, "born in the group", cgroup=registers["v2"])
    if limits.parent is not None and not isinstance(limits.parent, str):
        for key, directory in getattr(limits.parent, "directories", {}).items():
            yield from thaw_steps(key, AT_FDCWD, os.fsencode(directory))
    yield from cover_steps(context)


def thaw_steps(key: str, directory: Argument, name: bytes | Buffer) -> Iterator[Step]:
    """Before anything in a group of v1's freezer can be killed: a frozen task takes its signals when it is thawed."""
    if "freezer" in key.split(","):
        thawing = Thaw(directory, name, errors=_NOT_THERE)
        yield Step(Phase.THAW, f"thaw the group of {key}, and those below it", (thawing,))


def scope_steps(placement: Placement, context: Context) -> Iterator[Step]:
    """The requests of a place in the scope of this program, before anything is made there."""
    for spot in placement.places:
        if spot.scope:
            context.ground = Standing("" if spot.parent == FUTURE else spot.parent)
        if spot.parent == FUTURE:
            text = (
                "systemd is asked over D-Bus for a scope with Delegate=yes, once for this program and when something "
                "starts; a process of ours stays in it, this one is not moved"
            )
            yield Step(Phase.CGROUP, text)
        elif spot.hierarchy.version == 2:
            yield from guided_steps(spot.parent, context)


def guided_steps(directory: str, context: Context) -> Iterator[Step]:
    """Wait until systemd has moved the launcher into our scope, where it could not clone into that group otherwise."""
    guide = guide_to(directory)
    if guide is None:
        return
    yield guided_step(guide, context)


def guided_step(guide: Guide, context: Context) -> Step:
    """Have each launcher moved by the guide. The step waits: for a byte on its socket, or for this program's end."""
    context.resource(Moved(guide), 0)
    ops = (
        call("ppoll", watched(), 2, 0, 0, 8),
        call("recvfrom", CONTROL, Buffer(8, "a byte"), 1, MSG_DONTWAIT, 0, 0, expect=1),
    )
    text = "wait until systemd has moved this launcher into the scope's leaf (AttachProcessesToUnit)"
    return Step(Phase.CGROUP, text, ops, hints={errno.EAGAIN: "the program that started this has ended"})


def joined_steps(directories: Mapping[str, str], context: Context, *, covered: bool = True) -> Iterator[Step]:
    """Be born in groups that exist already, by hierarchy; nothing is made or removed. ``covered``: the files of groups
    are not to be written inside."""
    if "v2" in directories:
        yield from guided_steps(directories["v2"], context)
    for key, directory in directories.items():
        register = Register(f"group in {key}")
        opening = call("openat", AT_FDCWD, os.fsencode(directory), O_PATH | O_DIRECTORY | O_CLOEXEC, 0, out=register)
        path = os.fsencode(directory)
        yield Step(Phase.CGROUP, f"open the group {directory}", (opening,), path=path)
        yield from _not_frozen(key, register, directory)
        yield from thaw_steps(key, AT_FDCWD, path)
        if key == "v2":
            yield Step(Phase.CLONE, "born in the group", cgroup=register)
        else:
            yield from enter_steps(register, directory)
    if covered:
        yield from cover_steps(context)


def _make(spot: Place, path: Buffer, length: int, register: Register, *, ahead: bool) -> Step:
    ops: list[Op] = []
    if spot.enable:
        control = Register("subtree_control")
        data = " ".join(f"+{c}" for c in spot.enable).encode()
        file = os.fsencode(os.path.join(spot.parent, "cgroup.subtree_control"))
        ops += [
            call("openat", AT_FDCWD, file, O_WRONLY | O_CLOEXEC, 0, out=control),
            call("write", control, data, len(data), expect=len(data)),
            call("close", control),
        ]
    opening = call("openat", AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, out=register)
    ops += [Store(path, length, LAUNCHER, 0), call("mkdirat", AT_FDCWD, path, 0o755), opening]
    if spot.hierarchy.version == 2:
        ops += _bounded(register)
    enabling = f", {' '.join(spot.enable)} enabled" if spot.enable else ""
    text = f"make a group in {spot.parent}{enabling}"
    template = Split(again=(opening,), ahead=ops) if ahead else None
    hints = refused.making(spot.parent)
    return Step(Phase.CGROUP, text, tuple(ops), path=os.fsencode(spot.parent), hints=hints, template=template)


def _bounded(register: Register) -> Iterator[Op]:
    """Limit the number and depth of groups that a program makes below this one, because they must be removed."""
    for file, most in BOUNDS:
        fd = Register(file)
        yield call("openat", register, file.encode(), O_WRONLY | O_CLOEXEC, 0, out=fd)
        yield call("write", fd, most, len(most), expect=len(most))
        yield call("close", fd)


def _write(setting: Setting, register: Register, parent: str, *, ahead: bool) -> Step:
    fd = Register(setting.file)
    end = Label()
    readback = setting.readback or setting.file
    separate = readback != setting.file or setting.expect is None
    flags = (O_WRONLY if separate else O_RDWR) | O_CLOEXEC
    name = setting.file.encode()
    opening = (
        call("openat", register, name, flags, 0, out=fd)
        if setting.needed
        else call("openat", register, name, flags, 0, out=fd, errors=(errno.ENOENT,), policy="jump", label=end)
    )
    ops: list[Op] = [opening, call("write", fd, setting.data, len(setting.data), expect=len(setting.data))]
    if setting.expect is not None:
        if separate:
            ops += [
                call("close", fd),
                call("openat", register, readback.encode(), O_RDONLY | O_CLOEXEC, 0, out=fd),
            ]
        ops += _one_of_the_lines(fd, setting.expect, readback) if setting.among else _all(fd, setting.expect, readback)
    ops += [call("close", fd), end]
    text = f"limit {setting.field}: {setting.file} = {setting.data.decode()}"
    hints = refused.writing(setting.file, setting.data, parent)
    template = Split(ahead=ops) if ahead else None
    return Step(Phase.CGROUP, text, tuple(ops), path=name, hints=hints, template=template)


def _all(fd: Register, expect: bytes, file: str) -> list[Op]:
    """Read a file and compare the whole of it."""
    # One byte more than wanted: a longer answer is another answer.
    answer = Buffer(len(expect) + 8 - len(expect) % 8, f"{file}, read back")
    ops: list[Op] = [call("pread64", fd, answer, len(expect) + 1, 0, expect=len(expect))]
    for at in range(0, len(expect), 8):
        word = expect[at : at + 8].ljust(8, b"\0")
        wanted = int.from_bytes(word, "little")
        wanted -= (wanted >> 63) << 64
        ops.append(Test(Load(answer, at), wanted, error=errno.ERANGE))
    return ops


def _one_of_the_lines(fd: Register, line: bytes, file: str) -> list[Op]:
    """Read a file with a line for each of many things, in the kernel's order, and look for ours."""
    answer = Buffer(_PAGE, f"{file}, read back")
    return [call("pread64", fd, answer, _PAGE - 1, 0), Line(answer, line, errno.ERANGE)]


def _attach(program: bytes, register: Register) -> Step:
    code = Buffer(program, "device program")
    licence = Buffer(devices.LICENSE, "licence")
    load = Buffer(devices.load_attributes(len(program) // 8), "bpf_attr")
    attach = Buffer(devices.attach_attributes(), "bpf_attr")
    fd = Register("program")
    ops = (
        Store(load, 8, code, 8),
        Store(load, 16, licence, 8),
        call("bpf", BPF_PROG_LOAD, load, len(load.data), out=fd),
        Store(attach, 0, register, 4),
        Store(attach, 4, fd, 4),
        call("bpf", BPF_PROG_ATTACH, attach, len(attach.data)),
        call("close", fd),
    )
    without = "use another kernel, or leave devices out"
    hints: dict[int, str | Finding] = {
        errno.EPERM: "a device program needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, in the first user namespace; "
        "without them leave devices out: nodes on a nodev mount cannot be opened anyway",
        errno.ENOSYS: Finding("the kernel was built without BPF", without, True),
        errno.EINVAL: Finding(
            "the kernel was built without CONFIG_CGROUP_BPF", "use another kernel, or leave devices out", True
        ),
    }
    return Step(Phase.CGROUP, "limit devices: a program that answers by the rules", ops, hints=hints)


def enter_steps(register: Register, what: str) -> Iterator[Step]:
    """Into a v1 group, by the child itself and as the first thing that it does.

    A thread that moves itself ("0" into ``tasks``) is moved at once. For anybody else the kernel stops all forks and
    exits of the host first, and waits for an RCU grace period, some 10 ms (cgroup_procs_write_start(), Linux 5.18).
    The supervisor opens the file: the right to write it is that of who opened it.
    """
    fd = Register("tasks")
    opening = call("openat", register, b"tasks", O_WRONLY | O_CLOEXEC, 0, out=fd)
    yield Step(Phase.CGROUP, f"open the door to {what}", (opening,))
    yield Step(Phase.ENTER, f"go into {what}", (call("write", fd, b"0", 1, expect=1),))


def _real_time(spot: Place, group: Register, limits: LimitValues) -> Iterator[Step]:
    """A fresh v1 group has no time for real-time programs, and the kernel refuses them in it (sched-rt-group.rst).

    What it gets is taken from the group above, for each processor. A quota (``Limits(cpu=)``) does not hold real-time
    programs, so it is said here once more.
    """
    if spot.hierarchy.version != 1 or "cpu" not in spot.hierarchy.controllers:
        return
    fd, end = Register("cpu.rt_runtime_us"), Label()
    wanted = _REAL_TIME if limits.cpu is None else round(limits.cpu * _REAL_TIME_PERIOD / (os.cpu_count() or 1))
    data = b"%d" % max(1, min(wanted, _REAL_TIME_MOST))
    ops = (
        call(
            "openat",
            group,
            b"cpu.rt_runtime_us",
            O_WRONLY | O_CLOEXEC,
            0,
            out=fd,
            errors=(errno.ENOENT,),
            policy="jump",
            label=end,
        ),
        call("write", fd, data, len(data), expect=len(data)),
        call("close", fd),
        end,
    )
    hints = {
        errno.EINVAL: f"the group above ({spot.parent}) has not so much real-time left to give (cpu.rt_runtime_us)",
    }
    text = f"time for real-time programs: cpu.rt_runtime_us = {data.decode()} of a second, for each processor"
    yield Step(Phase.CGROUP, text, ops, path=b"cpu.rt_runtime_us", hints=hints)


def _not_frozen(key: str, group: Register, directory: str) -> Iterator[Step]:
    """Refuse a frozen group: a process born there would stand still before it has become the program."""
    if key != "v2" and "freezer" not in key.split(","):
        return
    name, line = (b"cgroup.events", b"frozen 0") if key == "v2" else (b"freezer.state", b"THAWED")
    fd, end, text = Register(name.decode()), Label(), Buffer(_PAGE, name.decode())
    ops = (
        call("openat", group, name, O_RDONLY | O_CLOEXEC, 0, out=fd, errors=(errno.ENOENT,), policy="jump", label=end),
        call("pread64", fd, text, _PAGE - 1, 0),
        call("close", fd),
        Line(text, line, errno.EBUSY),
        end,
    )
    hints = {errno.EBUSY: Finding("the group is frozen", "thaw() it first")}
    yield Step(Phase.CGROUP, f"{directory} is not frozen", ops, path=os.fsencode(directory), hints=hints)


def _remove(spot: Place, path: Buffer, length: int) -> Step:
    # Another launcher than the one that made the group removes it, if that one was killed while it waited for a start.
    naming_it = Store(path, length, LAUNCHER, 0)
    # Processes that were moved in from outside the sandbox go, too, if the group itself can kill (cgroup.kill).
    removal = RemoveTreeOp(AT_FDCWD, path, errors=(errno.ENOENT,))
    hints = {errno.EBUSY: "processes are left in the group"}
    return Step(Phase.CLEANUP, f"remove the group of {spot.hierarchy.key}", (naming_it, removal), hints=hints)
