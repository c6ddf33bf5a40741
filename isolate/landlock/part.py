"""Landlock: what of the file system, of TCP and of other processes the program may reach (landlock(7)).

It needs no privileges and no namespaces, and works inside them too. It takes away only: what other rules deny stays
denied.
"""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from isolate.attributes.privileges import NoNewPrivs
from isolate.engine.beneath import check_beneath
from isolate.errors import ConflictError, UnsupportedError
from isolate.thread.entering import Irreversible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.engine.plan import Context, Step

__all__ = ["FsAccess", "Landlock", "LandlockScope", "PathRule", "landlock_abi"]

Path: TypeAlias = "str | bytes | os.PathLike[str]"


class FsAccess(enum.IntFlag):
    """Rights on files and directories: the kernel's, under its names, and three sets of them."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15
    RESOLVE_UNIX = 1 << 16

    @classmethod
    def abi(cls, version: int) -> FsAccess:
        """All rights that an ABI of the kernel's has: 1 is Linux 5.13, 2 is 5.19, 3 is 6.2, 5 is 6.10, 9 is 7.1."""
        bits = next((bits for since, bits in _FS_BITS if version >= since), 0)
        return cls((1 << bits) - 1)

    @classmethod
    def parse(cls, text: str) -> FsAccess:
        """From the kernel's name in lower case, or ``read``, ``write``, ``execute``: the sets of :class:`Landlock`."""
        sets = {"read": READ, "write": READ | WRITE, "execute": READ | cls.EXECUTE}
        found = sets.get(text.lower()) or cls.__members__.get(text.upper())
        if found is None:
            known = [*sets, *(name.lower() for name in cls.__members__)]
            raise ValueError(f"Landlock: no right is named {text!r}{_near(text, known)}")
        return found


_FS_BITS = ((9, 17), (5, 16), (3, 15), (2, 14), (1, 13))
READ = FsAccess.READ_FILE | FsAccess.READ_DIR
#: What it takes to change a tree, short of making devices.
WRITE = (
    FsAccess.WRITE_FILE | FsAccess.TRUNCATE | FsAccess.REMOVE_DIR | FsAccess.REMOVE_FILE | FsAccess.MAKE_DIR
    | FsAccess.MAKE_REG | FsAccess.MAKE_SOCK | FsAccess.MAKE_FIFO | FsAccess.MAKE_SYM | FsAccess.REFER
)  # fmt: skip
#: The rights that mean something on what is no directory; the kernel takes only these in a rule for it.
FILE = (
    FsAccess.EXECUTE | FsAccess.WRITE_FILE | FsAccess.READ_FILE | FsAccess.TRUNCATE | FsAccess.IOCTL_DEV
    | FsAccess.RESOLVE_UNIX
)  # fmt: skip
#: The rights by which a program can put something else in a path's place.
CHANGE = WRITE & ~(FsAccess.WRITE_FILE | FsAccess.TRUNCATE | READ)
_DEFAULT_HANDLED = FsAccess.abi(5)

Access: TypeAlias = "FsAccess | str | Iterable[str]"


class LandlockScope(enum.IntFlag):
    """What may not be reached outside of the sandbox's own Landlock domain (Linux 6.12)."""

    ABSTRACT_UNIX_SOCKET = 1
    SIGNAL = 2

    @classmethod
    def parse(cls, text: str) -> LandlockScope:
        """From the name in lower case."""
        found = cls.__members__.get(text.upper())
        if found is None:
            raise ValueError(f"Landlock: no scope is named {text!r}{_near(text, [n.lower() for n in cls.__members__])}")
        return found


_BIND_TCP, _CONNECT_TCP = 1, 2
_LOG = {"default": 0, "off": 1 | 4, "all": 2}


def _near(text: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(text.lower(), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def landlock_abi() -> int:
    """The version of the kernel's Landlock ABI; 0 where there is none (too old, left out, or switched off at boot)."""
    return max(0, _probe())


def _probe() -> int:
    from isolate.engine.native import call
    from isolate.kernel.syscalls import number

    return call(number("landlock_create_ruleset"), 0, 0, 1)  # LANDLOCK_CREATE_RULESET_VERSION


def _access(given: object) -> FsAccess:
    if isinstance(given, FsAccess):
        return given
    if isinstance(given, str):
        return FsAccess.parse(given)
    if isinstance(given, int):
        raise TypeError(f"Landlock: rights are FsAccess or names, not the number {given!r}")
    rights = FsAccess(0)
    for name in given:  # type: ignore[attr-defined]
        rights |= _access(name)
    return rights


@dataclass(frozen=True)
class PathRule:
    """Rights on a file, or on a directory with everything beneath it.

    ``path`` is absolute and as seen inside the sandbox's root. It is opened once, with the program's ids; what it leads
    to then has the rights, whatever the name leads to later. ``optional``: no error where nothing is there. Rights for
    directories are left out where the path is a file's.

    ``beneath`` is a directory that the path lies below and that a program may have written to: the path is then opened
    from there, never outside of it and never through a symbolic link. So is what lies below a directory that the rules
    themselves, or a writable entry of :class:`~isolate.Root`, let the program change.
    """

    path: Path
    access: FsAccess
    optional: bool = False
    beneath: Path | None = None

    def __init__(self, path: Path, access: Access, optional: bool = False, *, beneath: Path | None = None) -> None:
        data = os.fsencode(path)
        if not data.startswith(b"/") or b"\0" in data:
            raise ValueError(f"Landlock: a path must be absolute and without NUL, not {path!r}")
        rights = _access(access)
        if not rights:
            raise ValueError(f"Landlock: a rule without rights for {path!r}")
        object.__setattr__(self, "path", data)
        object.__setattr__(self, "access", rights)
        object.__setattr__(self, "optional", bool(optional))
        below = None if beneath is None else check_beneath(data, beneath, "Landlock")
        object.__setattr__(self, "beneath", below)

    def __repr__(self) -> str:
        optional = ", optional=True" if self.optional else ""
        if self.beneath is not None:
            optional += f", beneath={os.fsdecode(self.beneath)!r}"
        return f"PathRule({os.fsdecode(self.path)!r}, {_shown(self.access)}{optional})"


def rights_in_words(rights: FsAccess) -> tuple[str, ...]:
    """The rights in words, sets first."""
    words: list[str] = []
    for name, members in (("write", READ | WRITE), ("execute", READ | FsAccess.EXECUTE), ("read", READ)):
        if rights & members == members:
            words.append(name)
            rights &= ~members
    if rights & FsAccess.EXECUTE:  # the word alone is the set
        words.append("execute" if "write" in words else "execute without read")
        rights &= ~FsAccess.EXECUTE
    return (*words, *(name.lower() for name, member in FsAccess.__members__.items() if rights & member))


def _shown(rights: FsAccess) -> str:
    """As code."""
    words = rights_in_words(rights)
    if "execute without read" in words or _access(words) != rights:
        return f"FsAccess({int(rights):#x})"
    return repr(words[0] if len(words) == 1 else words)


def _ports(name: str, ports: object) -> tuple[int, ...]:
    if isinstance(ports, (str, int)):
        raise TypeError(f"Landlock: {name} must be a sequence of ports, not {ports!r}")
    found = tuple(sorted(set(ports)))  # type: ignore[call-overload]
    for port in found:
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ValueError(f"Landlock: {name} must hold ports in 0 … 65535, not {port!r}")
    return found


@dataclass(frozen=True, init=False, repr=False)
class Landlock(Irreversible):
    """What the program may reach; the rest is denied (EACCES, EXDEV for links and renames, EPERM for scopes).

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
        Which denials the audit log gets: ``"default"`` (until the next exec), ``"all"``, ``"off"`` (Linux 6.15).
    ``required``
        True: what the kernel is too old for is an error before anything starts. False: what there is holds, and
        ``Result.applied`` tells what does not.

    Several of them hold together: each takes away more. Descriptors that are open already, and what is inherited, keep
    working. Landlock covers no chdir, stat, chmod, chown, xattr or access: pair it with a root of its own. A program
    must be executable by the rules, with its loader and libraries readable. Needs ``no_new_privs``, and brings it.

    Errors: ENOENT and EACCES for a path; UnsupportedError (ENOSYS, EOPNOTSUPP) for the kernel.
    Source: landlock(7), Linux 5.13.
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
            rights = _access(handled)
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
            raise ValueError(f"Landlock: log must be one of {', '.join(_LOG)}, not {log!r}{_near(str(log), [*_LOG])}")
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
            given.append(f"handled={_shown(self.handled)}")
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
        """What of this a kernel with that version of the ABI cannot do, in words."""
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

        return steps(self, abi, missing, context)


def _scope_names(scopes: LandlockScope) -> tuple[str, ...]:
    return tuple(name.lower() for name, member in LandlockScope.__members__.items() if scopes & member)


def _unsupported(answer: int, missing: tuple[str, ...]) -> UnsupportedError:
    if answer < 0:
        cause = {
            errno.ENOSYS: "the kernel has no Landlock (it came with Linux 5.13), or a seccomp filter hides it",
            errno.EOPNOTSUPP: "Landlock is switched off: it is not in the kernel's lsm= list at boot",
        }.get(-answer, "the kernel does not tell its version of Landlock; a seccomp filter may forbid it")
        return UnsupportedError(
            -answer, "ask for the version of Landlock", part="Landlock", syscall="landlock_create_ruleset", cause=cause,
            remedy="add landlock to lsm= on the kernel's command line, or accept what there is: required=False",
        )  # fmt: skip
    return UnsupportedError(
        errno.EOPNOTSUPP, f"restrict {', '.join(missing)}", part="Landlock", syscall="landlock_create_ruleset",
        cause=f"this kernel's Landlock is of ABI {answer}, too old for that",
        remedy=f"accept what there is: required=False, or name less: handled=FsAccess.abi({answer})",
    )  # fmt: skip
