"""Policies put in force: the steps that install filters in a program's process, just before it is executed.

Handlers in Python need two filters, since one cannot do it: the first asks only about the calls that have handlers, and
its listener is sent over a socket by a ``sendmsg`` that it lets pass; the second is the policy, which allows what the
first asks about. Of two filters' answers the kernel takes the stricter, and "ask" is stricter than "allow".
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, TypeVar

from isolate.engine.finding import Finding
from isolate.engine.plan import CONTROL, Buffer, Phase, Register, Step, Store, call
from isolate.kernel import syscalls
from isolate.kernel.constants import Constant

from .actions import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from isolate.engine.plan import Argument, Context, Op

    from .compiler import Decision
    from .supervisor import Supervisor
    from .value import Policy

__all__ = ["in_order", "steps_of", "tell_pid"]

P = TypeVar("P", bound="Policy")

SET_MODE_FILTER = Constant(1, "SECCOMP_SET_MODE_FILTER")
NEW_LISTENER = Constant(8, "SECCOMP_FILTER_FLAG_NEW_LISTENER")
F_DUPFD_CLOEXEC = Constant(1030, "F_DUPFD_CLOEXEC")
MSG_NOSIGNAL = Constant(0x4000, "MSG_NOSIGNAL")
SOL_SOCKET, SCM_RIGHTS = 1, 1

#: Of the sendmsg that takes the listener out: MSG_NOSIGNAL, and MSG_CONFIRM and MSG_EOR, which mean nothing there.
SENDMSG_FLAGS = 0x4000 | 0x800 | 0x80

#: ISO_RECORD_PROGRAM; a test compares.
RECORD_PROGRAM = 4

#: The socket's copy goes where nobody passes descriptors to the program, before those are put in their places.
_OUT_OF_THE_WAY = 100

_HINTS: dict[int, str | Finding] = {
    errno.EACCES: "a filter needs no_new_privs, or CAP_SYS_ADMIN until it is installed: leave NoNewPrivs on, add"
    " UserNamespace(), or do without a filter (Seccomp.none())",
    errno.EBUSY: Finding("a process has one set of handlers", "put them all into one policy (notify=)"),
    errno.EINVAL: "the kernel refused the program or its flags (CONFIG_SECCOMP_FILTER, Linux 4.17 for spec_allow)",
    errno.ENOTSOCK: Finding(
        f"a descriptor is passed to the program as number {_OUT_OF_THE_WAY}", "choose another for it"
    ),
}


def in_order(policies: Iterable[P], *, executes: bool) -> list[P]:
    """The policies in an order in which all can be installed. ValueError if none exists or nothing can be executed."""
    found = list(policies)
    for policy in found:
        if executes and not any(_may_allow(policy, name) for name in ("execve", "execveat")):
            raise ValueError(
                "the policy refuses execve and execveat, so the program itself could not be executed under it; "
                'allow("execve")'
            )
    last = [policy for policy in found if not _may_allow(policy, "seccomp")]
    if len(last) > 1:
        raise ValueError(
            f"{len(last)} policies refuse the call seccomp, and after one of them no other can be installed; "
            'allow("seccomp") in all but one, or add the policies up'
        )
    asking = [policy for policy in found if policy.notify]
    if len(asking) > 1:
        raise ValueError("two policies have handlers (notify=), and the kernel takes one set: put them into one")
    return (
        asking
        + [policy for policy in found if not policy.notify and policy not in last]
        + [policy for policy in last if not policy.notify]
    )


def _may_allow(policy: Policy, name: str) -> bool:
    if any(name in rule.calls and rule.when is not None for rule in policy.rules):
        return True
    action = policy.simulate(name)
    return action.makes_call or action.kind in ("notify", "trace")


def steps_of(policy: Policy, context: Context) -> Iterator[Step]:
    """The steps of one policy."""
    program = policy.program()
    if policy.notify:
        slot = context.descriptor(supervisor_of(policy).inside.fileno())
        names = ", ".join(name for name, _ in policy.notify[:5]) + (", …" if len(policy.notify) > 5 else "")
        out = Register("socket")
        yield Step(
            Phase.VERIFY,
            "keep a way to Python open",
            (call("fcntl", slot, F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY, out=out),),
        )
        yield Step(Phase.SECCOMP, f"hand {names} to Python", _listener_ops(asks_only(policy), out), hints=_HINTS)
        program = without_notify(policy)
    count = len(program) // 8
    code, header = Buffer(program, "filter"), Buffer(struct.pack("=HxxxxxxQ", count, 0), "sock_fprog")
    yield Step(
        Phase.SECCOMP,
        f"install a system call filter of {count} instructions",
        (Store(header, 8, code.at(0)), call("seccomp", SET_MODE_FILTER, policy.flags, header)),
        hints=_HINTS,
    )


def tell_pid(policies: Iterable[Policy]) -> Iterator[Step]:
    """The step without which a kill in the audit log could not be told from another process's.

    The kernel puts the sender's pid, as the receiver sees it, beside every message on the control socket: a program in
    a pid namespace of its own does not know that pid. Only where a filter may kill, and the log may be read.
    """
    if not any(policy.may_kill for policy in policies):
        return
    from . import audit  # loaded late: the filter that a sandbox has by default kills nobody

    if audit.readable():
        record = Buffer(struct.pack("=I", RECORD_PROGRAM), "record")
        yield Step(
            Phase.VERIFY,
            "let the caller know the program's pid, by which the audit log names it",
            (call("sendto", CONTROL, record, len(record.data), MSG_NOSIGNAL, 0, 0),),
        )


def supervisor_of(policy: Policy) -> Supervisor:
    """The policy's supervisor, made at its first use."""
    from .supervisor import Supervisor

    found = policy.__dict__.get("_supervisor")
    if found is None:
        found = Supervisor(dict(policy.notify), policy.notify_timeout)
        object.__setattr__(policy, "_supervisor", found)
    assert isinstance(found, Supervisor)
    return found


def _listener_ops(program: bytes, out: Argument) -> tuple[Op, ...]:
    listener = Register("listener")
    code = Buffer(program, "filter")
    header = Buffer(struct.pack("=HxxxxxxQ", len(program) // 8, 0), "sock_fprog")
    byte, vector = Buffer(b"L", "byte"), Buffer(struct.pack("=QQ", 0, 1), "iovec")
    control = Buffer(struct.pack("=QiiiI", 20, SOL_SOCKET, SCM_RIGHTS, 0, 0), "cmsghdr")
    # struct msghdr: name, its length, iovec, count, control, its length, flags
    message = Buffer(struct.pack("=QIIQQQQiI", 0, 0, 0, 0, 1, 0, 24, 0, 0), "msghdr")
    return (
        Store(header, 8, code.at(0)),
        Store(vector, 0, byte.at(0)),
        Store(message, 16, vector.at(0)),
        Store(message, 32, control.at(0)),
        call("seccomp", SET_MODE_FILTER, NEW_LISTENER, header, out=listener),
        Store(control, 16, listener, 4),
        call("sendmsg", out, message, SENDMSG_FLAGS),
    )


def asks_only(policy: Policy) -> bytes:
    """The policy's filter with "ask" where it asks, and "allow" everywhere else."""
    return _mapped(policy, lambda value: value if value == Action.NOTIFY.value else Action.ALLOW.value)


def without_notify(policy: Policy) -> bytes:
    """The policy's filter with "allow" where it asks."""
    return _mapped(policy, lambda value: Action.ALLOW.value if value == Action.NOTIFY.value else value)


def _mapped(policy: Policy, change: Callable[[int], int]) -> bytes:
    from . import compiler, decide  # loaded late: few policies have handlers

    found = []
    for abi in decide.decisions(policy, syscalls.native_arch(), decide.running_kernel()):
        table = {number: _changed(decision, change) for number, decision in abi.decisions.items()}
        otherwise = tuple((start, _changed(decision, change)) for start, decision in abi.otherwise)
        found.append(compiler.Abi(abi.audit_arch, table, otherwise))
    return compiler.build(found, change(policy.foreign.value))


def _changed(decision: Decision, change: Callable[[int], int]) -> Decision:
    tests, value = decision
    return tuple((test, change(result)) for test, result in tests), change(value)
