"""The steps that put :class:`~isolate.Landlock` in force, for a kernel with a given version of the ABI."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any, Protocol

from isolate.engine.beneath import Names, Writable, led_astray, open_beneath, place_of, writable_targets
from isolate.engine.finding import Finding
from isolate.engine.plan import Buffer, Jump, Label, Op, Phase, Register, Step, Store, call
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_PATH, Constant
from isolate.landlock.rights import CHANGE, FILE, FsAccess, LandlockScope, PathRule, rights_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.engine.plan import Context

_PATH_BENEATH = Constant(1, "LANDLOCK_RULE_PATH_BENEATH")
_NET_PORT = Constant(2, "LANDLOCK_RULE_NET_PORT")
_NET = {"bind_tcp": 1, "connect_tcp": 2}
_LOG = {
    "default": Constant(0, "0"),
    "off": Constant(1 | 4, "LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF|LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF"),
    "all": Constant(2, "LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON"),
}


class Wanted(Protocol):
    """The rights that are denied, and the exceptions: :class:`~isolate.Landlock` is one."""

    @property
    def rules(self) -> tuple[PathRule, ...]: ...
    @property
    def handled(self) -> FsAccess: ...
    @property
    def scopes(self) -> LandlockScope: ...
    @property
    def log(self) -> str: ...


def steps(
    part: Wanted, abi: int, missing: tuple[str, ...], context: Context, all_rules: Iterable[PathRule]
) -> Iterator[Step]:
    """Only what the ABI has; what is missing is told as a step that is not in force.

    ``all_rules`` are those of every ruleset of the sandbox: what one of them lets the program change, it can change.
    """
    if missing:
        end = Label()
        yield Step(
            Phase.LANDLOCK,
            f"{', '.join(missing)} (this kernel's ABI {abi} has no such thing)",
            (Jump(end, skip=True), end),
        )
    handled = part.handled & FsAccess.abi(abi)
    net = {name: getattr(part, name) for name in _NET if abi >= 4 and getattr(part, name) is not None}
    scopes = part.scopes if abi >= 6 else LandlockScope(0)
    if not handled and not net and not scopes:
        return
    ruleset = Register("ruleset")
    handled_net = sum(_NET[name] for name in net)
    # A kernel that knows a shorter structure takes the longer one as long as what it does not know is zero.
    attr = Buffer(struct.pack("<QQQ", handled, handled_net, scopes), "ruleset_attr")
    denied = [*rights_in_words(handled), *net, *(s.name.lower() for s in LandlockScope if scopes & s and s.name)]
    yield Step(
        Phase.LANDLOCK,
        f"deny {', '.join(denied)}, but for what follows",
        (call("landlock_create_ruleset", attr, len(attr.data), 0, out=ruleset),),
        hints={
            errno.EOPNOTSUPP: Finding(
                "Landlock is switched off", "add landlock to lsm= on the kernel's command line, and boot again", True
            )
        },
    )
    changeable = _changeable(context, all_rules) if part.rules else Names(())
    for rule in part.rules:
        rights = rule.access & handled
        if rights:
            yield _path(rule, rights, ruleset, changeable)
    for name, ports in net.items():
        for port in ports:
            data = Buffer(struct.pack("<QQ", _NET[name], port), "net_port")
            text = f"{name} may use port {port}"
            yield Step(
                Phase.LANDLOCK,
                text,
                (call("landlock_add_rule", ruleset, _NET_PORT, data, 0),),
                needs=ruleset,
                hints={errno.EAFNOSUPPORT: Finding("this kernel has no TCP", "leave the rules of ports out", True)},
            )
    log = _LOG[part.log] if abi >= 7 else _LOG["default"]
    yield Step(
        Phase.LANDLOCK,
        "restrict the program by these rules",
        (call("landlock_restrict_self", ruleset, log), call("close", ruleset)),
        needs=ruleset,
        hints={
            errno.EPERM: Finding("it needs no_new_privs (or CAP_SYS_ADMIN)", "leave NoNewPrivs on"),
            errno.E2BIG: Finding(
                "16 rulesets are in force already; the kernel takes no more", "put the rules of several into one"
            ),
        },
    )


def _changeable(context: Context, rules: Iterable[PathRule]) -> Writable:
    """The directories in which the program, or one that ran before it under the same parts, may put something else in
    the place of what is there."""
    paths = [os.fsencode(rule.path) for rule in rules if rule.access & CHANGE]
    if any(hasattr(part, "entries") for part in context.parts):
        # Inside a root of its own, which is not there yet.
        return Names([*paths, *writable_targets(context)])
    return Writable(paths)


def _path(rule: PathRule, rights: FsAccess, ruleset: Register, changeable: Writable) -> Step:
    path = os.fsencode(rule.path)
    fd = Register("path")
    beneath = Buffer(struct.pack("<Qi", rights, -1) + bytes(4), "path_beneath")
    absent = (errno.ENOENT, errno.ENOTDIR) if rule.optional else ()
    no_directory, done = Label(), Label()
    policy: dict[str, Any] = {"errors": absent, "policy": "jump", "label": done} if absent else {}
    below = place_of(path, changeable, None if rule.beneath is None else os.fsencode(rule.beneath))
    if below is None:
        opening: list[Op] = [call("openat", AT_FDCWD, path, O_PATH | O_CLOEXEC, 0, out=fd, **policy)]
    else:
        opening = open_beneath(*below, fd, **policy)
    ops: tuple[Op, ...] = (*opening, Store(beneath, 8, fd, 4))
    if rights & ~FILE and rights & FILE:
        # The kernel refuses rights for directories on a file (EINVAL): then with those for files alone.
        again = call(
            "landlock_add_rule",
            ruleset,
            _PATH_BENEATH,
            beneath,
            0,
            errors=(errno.EINVAL,),
            policy="jump",
            label=no_directory,
        )
        close = Label()
        ops += (
            again,
            Jump(close),
            no_directory,
            Store(beneath, 0, rights & FILE, 8),
            call("landlock_add_rule", ruleset, _PATH_BENEATH, beneath, 0),
            close,
        )
    else:
        ops += (call("landlock_add_rule", ruleset, _PATH_BENEATH, beneath, 0),)
    return Step(
        Phase.LANDLOCK,
        f"{os.fsdecode(path)}: {', '.join(rights_in_words(rights))}",
        (*ops, call("close", fd), done),
        path=path,
        needs=ruleset,
        hints={
            errno.ENOENT: Finding(
                "the path does not exist inside", "PathRule(…, optional=True) leaves such a rule out"
            ),
            errno.EACCES: Finding(
                "the program may not reach the path",
                "let the program's user search each directory on the way (chmod o+x), or leave the rule out",
            ),
            errno.EINVAL: Finding(
                "none of the rights means anything on this kind of file", "name rights that do, or its directory"
            ),
            errno.EBADFD: Finding(
                "the path lies in a file system of the kernel's own (pipes, sockets)", "leave the rule out"
            ),
            **({} if below is None else led_astray(below[0])),
        },
    )
