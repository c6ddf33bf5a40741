"""``explain()``: a plan in words, with the kernel calls behind each step."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from isolate.engine.plan import (
    CONTROL,
    CWD,
    FLAGS,
    Address,
    Argument,
    Buffer,
    Call,
    Cover,
    Engine,
    Fail,
    Jump,
    Label,
    Line,
    Load,
    MapOfIds,
    Op,
    Phase,
    Plan,
    Register,
    RemoveTree,
    RunHost,
    Section,
    Slot,
    Store,
    Target,
    Test,
    Thaw,
)
from isolate.errors import printable
from isolate.kernel.constants import Constant

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECTIONS = {
    Section.OUTER: "supervisor (outside the sandbox, before the child exists)",
    Section.SUPERVISOR: "supervisor (outside, while the child waits)",
    Section.INIT: "init (inside the new namespaces)",
    Section.PAYLOAD: "payload (the process that becomes the program)",
    Section.AFTER: "init (once the program runs)",
    Section.REPORT: "supervisor (once all inside are dead but init)",
    Section.CLEANUP: "supervisor (once everything inside is dead)",
    Section.ASIDE: "a second process of init's (meanwhile)",
    Section.THAW: "supervisor (before every kill)",
    Section.AHEAD: "supervisor (before there is a start)",
    Section.STILL: "supervisor (what was made ahead)",
}

_ENGINE = {
    "sync": "read(pipe from the supervisor)",
    "session": "setsid()",
    "find": "statx(), faccessat() along PATH",
    "fds": "close_range(0, ~0, CLOSE_RANGE_CLOEXEC); dup3(those wanted)",
    "exec": "execve(program)",
    "aside": "clone3(CLONE_VM|CLONE_FILES)",
    "meet": "wait4(it)",
}


def show(data: bytes) -> str:
    """Bytes as C would write them, shortened."""
    text = data.rstrip(b"\0")
    if text and any(b < 32 or b > 126 for b in text) and len(text) > 8:
        return f"<{len(data)} bytes>"
    shown = text[:60].decode("ascii", "backslashreplace")
    return f'"{shown}{"…" if len(text) > 60 else ""}"'


def argument(value: Argument) -> str:
    """An argument as ``explain()`` prints it."""
    if isinstance(value, Constant):
        return value.name
    if isinstance(value, int):
        return str(value) if -4096 < value < 65536 else hex(value)
    if isinstance(value, bytes):
        return show(value)
    if isinstance(value, Register):
        return f"<{value.name}>"
    if isinstance(value, Buffer):
        return f"&{value.name}"
    if isinstance(value, Address):
        return f"&{value.buffer.name}+{value.offset}" if value.offset else f"&{value.buffer.name}"
    if isinstance(value, Load):
        return f"{value.buffer.name}[{value.offset}]"
    if value is CONTROL:
        return "<socket to the caller>"
    if isinstance(value, Slot):
        return f"<caller's descriptor {value.fd}>" if value.fd >= 0 else "<lent descriptor>"
    return "cwd" if value is CWD else "<flags>" if value is FLAGS else "0…"


def op(o: Op) -> str | None:
    """An op in a line; None for what is only bookkeeping."""
    if isinstance(o, Call):
        text = f"{o.name}({', '.join(argument(a) for a in o.args)})"
        if o.out is not None:
            text += f" = <{o.out.name}>"
        if o.repeat > 1:
            text += f"  for 0 … {o.repeat - 1}"
        return text
    if isinstance(o, Target):
        make = f", make {o.make}" if o.make else ""
        links = "" if o.symlinks else "|RESOLVE_NO_SYMLINKS"
        how = f"RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS{links}{make}"
        return f"openat2({argument(o.root)}, {show(o.path)}, {how}) = <{o.out.name}>"
    if isinstance(o, RemoveTree):
        return f"unlinkat({argument(o.directory)}, {argument(o.name)}, AT_REMOVEDIR), deepest first; killed if busy"
    if isinstance(o, Thaw):
        return f'write("THAWED") to freezer.state of {argument(o.directory)} {argument(o.name)} and below'
    if isinstance(o, Cover):
        first = ", in a copy of the namespace that was joined" if o.apart else ""
        return f"mount_setattr(<each cgroup file system in mountinfo>, MOUNT_ATTR_RDONLY){first}"
    if isinstance(o, RunHost):
        return (
            "execve("
            + ", ".join(a.decode("utf-8", "replace") if isinstance(a, bytes) else a.name for a in o.args)
            + ")"
        )
    if isinstance(o, MapOfIds):
        return f"clone(CLONE_NEWUSER), uid_map {show(o.uids)}, gid_map {show(o.gids)} = <{o.out.name}>"
    if isinstance(o, Engine):
        return _ENGINE[o.name]
    if isinstance(o, Test):
        relation = "==" if o.negate else "!="
        mask = f" & {o.mask & (2**64 - 1):#x}" if o.mask != -1 else ""
        outcome = "go on further below" if o.label else "stop with an error"
        outcome = "not in force here" if o.skip else outcome
        return f"if {argument(o.value)}{mask} {relation} {argument(o.wanted)}: {outcome}"
    if isinstance(o, Jump):
        return "not in force here" if o.skip else "go on further below"
    if isinstance(o, Fail):
        return f"stop with {errno.errorcode.get(o.error, o.error)}"
    if isinstance(o, Line):
        return f"if {argument(o.buffer)} has no line {show(o.line)}: stop with an error"
    if isinstance(o, (Store, Label)):
        return None
    raise TypeError(f"not an op: {o!r}")


def _lines(plan: Plan) -> Iterator[str]:
    section: Section | None = None
    count = 0
    for step, part in zip(plan.steps, plan.owners, strict=True):
        if step.phase is Phase.CLONE:
            continue
        if step.phase.section is not section:
            if section is Section.OUTER or (section is None and step.phase.section is not Section.OUTER):
                yield from _clone(plan)
            section = step.phase.section
            yield f"{_SECTIONS[section]}"
        count += 1
        optional = "" if getattr(part, "required", True) else "  (not required)"
        yield f"  {count:3}. {step.text}  [{type(part).__name__}]{optional}"
        for o in step.ops:
            line = op(o)
            if line is not None:
                yield f"         {line}"


def _clone(plan: Plan) -> Iterator[str]:
    born = "|CLONE_INTO_CGROUP" if plan.cgroup is not None else ""
    names = plan.clone_flags.name if plan.clone_flags else "0"
    yield f"clone3({names}{born}|CLONE_PIDFD) makes init"
    for step, part in zip(plan.steps, plan.owners, strict=True):
        if step.phase is Phase.CLONE:
            yield f"       {step.text}  [{type(part).__name__}]"


def explain(plan: Plan) -> str:
    """The steps of a plan, in the order in which they run, with the kernel calls behind them."""
    return "\n".join(map(printable, _lines(plan))) + "\n"
