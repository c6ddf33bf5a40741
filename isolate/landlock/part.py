"""Landlock: what of the file system, of TCP and of other processes the program may reach (landlock(7)).

It needs no privileges and no namespaces, and works inside them too. It takes away only: what other rules deny stays
denied.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isolate.attributes.privileges import NoNewPrivs
from isolate.errors import ConflictError, UnsupportedError
from isolate.kernel.checks import is_int, keywords, nearest
from isolate.landlock.rights import READ, WRITE, FsAccess, LandlockScope, PathRule, access_of, rights_in_words, shown
from isolate.thread.entering import Irreversible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.engine.plan import Context, Step
    from isolate.landlock.rights import Access, Path

__all__ = ["FsAccess", "Landlock", "LandlockScope", "PathRule", "landlock_abi"]

_DEFAULT_HANDLED = FsAccess.abi(5)

_LOG = {"default": 0, "off": 1 | 4, "all": 2}


def landlock_abi() -> int:
    """The version of the kernel's Landlock ABI; 0 where there is none (too old, left out, or switched off at boot)."""
    return max(0, _probe())


def _probe() -> int:
    from isolate.engine.native import call
    from isolate.kernel.syscalls import number

    return call(number("landlock_create_ruleset"), 0, 0, 1)  # LANDLOCK_CREATE_RULESET_VERSION


def _ports(name: str, ports: object) -> tuple[int, ...]:
    if isinstance(ports, (str, int)):
        raise TypeError(f"Landlock: {name} must be a sequence of ports, not {ports!r}")
    found = tuple(sorted(set(ports)))  # type: ignore[call-overload]
    for port in found:
        if not is_int(port) or not 0 <= port <= 65535:
            raise ValueError(f"Landlock: {name} must hold ports in 0 … 65535, not {port!r}")
    return found


@keywords
@dataclass(frozen=True, init=False, repr=False)
class Landlock(Irreversible):
    """The access that the program has; the rest is denied (EACCES, EXDEV for links and renames, EPERM for scopes).

    ``read``, ``execute``, ``write``
        Paths. ``read`` reads files and lists directories; ``execute`` also executes; ``write`` reads, and makes,
        changes, moves and removes everything but devices.
    ``rules``
        More :class:`PathRule` objects, or (path, rights) pairs, for other rights.
    ``handled``
        The file system's rights that are denied where no rule gives them: all sixteen of ABI 5 if there is any path,
        else none.
    ``bind_tcp``, ``connect_tcp``
        The TCP ports that may be bound and connected to (Linux 6.7). ``()`` is none; None leaves TCP alone. UDP and
        other protocols are not covered: use a network namespace.
    ``scopes``
        ``"abstract_unix_socket"``, ``"signal"``: not across the border of the sandbox (Linux 6.12).
    ``log``
        The denials that go to the audit log: ``"default"`` (until the next exec), ``"all"``, ``"off"`` (Linux 6.15).
    ``required``
        True: a right that the kernel is too old for is an error before anything starts. False: the rights that the
        kernel knows are in force, and ``Result.applied`` tells the rest.

    Several Landlock parts add up: each takes away more. Descriptors that are already open or inherited keep
    working. Landlock covers no chdir, stat, chmod, chown, xattr or access: pair it with a root of its own. A program
    must be executable by the rules, with its loader and libraries readable. Needs ``no_new_privs``, and brings it.

    Errors: ENOENT and EACCES for a path; UnsupportedError (ENOSYS, EOPNOTSUPP) for the kernel.
    Source: landlock(7), Linux 5.13.

    :param read: paths that may be read.
    :param execute: paths that may be read and executed.
    :param write: paths that may be read and changed.
    :param rules: further (path, rights) pairs.
    :param handled: rights that are denied where no rule gives them.
    :param bind_tcp: TCP ports that may be bound; None leaves TCP alone.
    :param connect_tcp: TCP ports that may be connected to.
    :param scopes: ``"abstract_unix_socket"``, ``"signal"``.
    :param log: ``"default"``, ``"all"`` or ``"off"``.
    :param required: an older kernel is an error.

    >>> box = Sandbox(Landlock(read=["/"], execute=["/"]))
    >>> box.run(["sh", "-c", "echo x > /dev/null"]).ok
    False
    """

    rules: tuple[PathRule, ...]
    handled: FsAccess
    bind_tcp: tuple[int, ...] | None
    connect_tcp: tuple[int, ...] | None
    scopes: LandlockScope
    log: str
    required: bool

    repeatable: ClassVar[bool] = True

    def __init__(
        self,
        *,
        read: Iterable[Path] = (),
        execute: Iterable[Path] = (),
        write: Iterable[Path] = (),
        rules: Iterable[PathRule | tuple[Path, Access]] = (),
        handled: Access | None = None,
        bind_tcp: Iterable[int] | None = None,
        connect_tcp: Iterable[int] | None = None,
        scopes: LandlockScope | Iterable[str] = (),
        log: str = "default",
        required: bool = True,
    ) -> None:
        all_rules: list[PathRule] = []
        for name, paths in (("read", read), ("execute", execute), ("write", write)):
            if isinstance(paths, (str, bytes, os.PathLike)):
                raise TypeError(f"Landlock: {name} must be a sequence of paths, such as [{paths!r}]")
            all_rules += [PathRule(path, name) for path in paths]
        all_rules += [rule if isinstance(rule, PathRule) else PathRule(*rule) for rule in rules]
        if handled is None:
            rights = _DEFAULT_HANDLED if all_rules else FsAccess(0)
            for rule in all_rules:  # a later right that a rule names is meant
                rights |= rule.access
        else:
            rights = access_of(handled)
        for rule in all_rules:
            if rule.access & ~rights:
                extra = ", ".join(rights_in_words(rule.access & ~rights))
                raise ConflictError(f"Landlock: {rule!r} gives {extra}, which is not among the rights handled")
        if isinstance(scopes, str):
            raise TypeError(f"Landlock: scopes must be a sequence of names, such as [{scopes!r}]")
        scope = scopes if isinstance(scopes, LandlockScope) else LandlockScope(0)
        for word in () if isinstance(scopes, LandlockScope) else scopes:
            scope |= LandlockScope.parse(word)
        if log not in _LOG:
            raise ValueError(f"Landlock: log must be one of {', '.join(_LOG)}, not {log!r}{nearest(str(log), [*_LOG])}")
        if not rights and bind_tcp is None and connect_tcp is None and not scope:
            raise ValueError("Landlock: nothing to restrict: give paths, ports or scopes")
        values: dict[str, Any] = {
            "rules": tuple(all_rules),
            "handled": rights,
            "bind_tcp": None if bind_tcp is None else _ports("bind_tcp", bind_tcp),
            "connect_tcp": None if connect_tcp is None else _ports("connect_tcp", connect_tcp),
            "scopes": scope,
            "log": log,
            "required": bool(required),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        given: list[str] = []
        if self.rules:
            given.append(f"rules={list(self.rules)!r}")
        implied = _DEFAULT_HANDLED if self.rules else FsAccess(0)
        for rule in self.rules:
            implied |= rule.access
        if self.handled != implied:
            given.append(f"handled={shown(self.handled)}")
        for name in ("bind_tcp", "connect_tcp"):
            ports = getattr(self, name)
            if ports is not None:
                given.append(f"{name}={ports!r}")
        if self.scopes:
            given.append(f"scopes={_scope_names(self.scopes)!r}")
        if self.log != "default":
            given.append(f"log={self.log!r}")
        if not self.required:
            given.append("required=False")
        return f"Landlock({', '.join(given)})"

    def leaves_files(self) -> bool:
        """Whether a rule lets the program change files, which are there afterwards."""
        return any(rule.access & WRITE & ~READ for rule in self.rules)

    def brings(self) -> Iterator[NoNewPrivs]:
        """The kernel asks for it (or for CAP_SYS_ADMIN, which is not worth having for this)."""
        yield NoNewPrivs()

    def missing(self, abi: int) -> tuple[str, ...]:
        """The rights and scopes of this part that a kernel with that version of the ABI does not know, in words."""
        lacking = self.handled & ~FsAccess.abi(abi)
        missing = [name.lower() for name, right in FsAccess.__members__.items() if lacking & right]
        if abi < 4:
            missing += [name for name in ("bind_tcp", "connect_tcp") if getattr(self, name) is not None]
        if abi < 6:
            missing += _scope_names(self.scopes)
        if abi < 7 and self.log != "default":
            missing.append(f"log={self.log}")
        return tuple(missing)

    @property
    def restricts_execution(self) -> bool:
        """Whether a program that no rule names may not be executed."""
        return bool(self.handled & FsAccess.EXECUTE)

    def steps(self, context: Context) -> Iterator[Step]:
        """The ruleset, the rules, and the restriction, at the end of the setting up.

        :raises UnsupportedError: if the kernel is too old and the part is required.
        """
        answer = _probe()
        abi = max(0, answer)
        missing = self.missing(abi)
        if missing and self.required:
            raise _unsupported(answer, missing)
        from isolate.landlock.steps import steps

        rules = [rule for part in context.parts if isinstance(part, Landlock) for rule in part.rules]
        return steps(self, abi, missing, context, rules)


def _scope_names(scopes: LandlockScope) -> tuple[str, ...]:
    return tuple(name.lower() for name, member in LandlockScope.__members__.items() if scopes & member)


def _unsupported(answer: int, missing: tuple[str, ...]) -> UnsupportedError:
    if answer < 0:
        cause = {
            errno.ENOSYS: "the kernel has no Landlock (it came with Linux 5.13), or a seccomp filter hides it",
            errno.EOPNOTSUPP: "Landlock is switched off: it is not in the kernel's lsm= list at boot",
        }.get(-answer, "the kernel does not tell its version of Landlock; a seccomp filter may forbid it")
        return UnsupportedError(
            -answer,
            "ask for the version of Landlock",
            part="Landlock",
            syscall="landlock_create_ruleset",
            cause=cause,
            remedy="add landlock to lsm= on the kernel's command line, or accept what there is: required=False",
        )
    return UnsupportedError(
        errno.EOPNOTSUPP,
        f"restrict {', '.join(missing)}",
        part="Landlock",
        syscall="landlock_create_ruleset",
        cause=f"this kernel's Landlock is of ABI {answer}, too old for that",
        remedy=f"accept what there is: required=False, or name less: handled=FsAccess.abi({answer})",
    )
