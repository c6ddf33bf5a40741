"""The effective ids, the groups and the umask of the calling thread, and back (credentials(7)).

Raw system calls: they change one thread. libc's setresuid changes all, by a signal to each.
"""

from __future__ import annotations

import errno
import os
import struct

from isolate.capabilities.change import Sets
from isolate.engine import native
from isolate.engine.finding import Finding
from isolate.engine.native import ffi
from isolate.engine.plan import number
from isolate.errors import IrreversibleError, SetupError
from isolate.thread.change import Change

__all__ = ["CredentialsChange"]

_KEEP = 0xFFFFFFFF  # (uid_t) -1
_CAP_SETGID = 6
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 1, 2, 3, 4


def _prctl(operation: int, value: int = 0) -> int:
    return native.call(number("prctl"), operation, value, 0, 0, 0)


class CredentialsChange(Change):
    """Effective uid and gid and the supplementary groups of this thread; the umask of the whole process.

    Real and saved ids stay: they are the way back.
    """

    __slots__ = ("_before", "_gid", "_groups", "_uid", "_umask")

    order = 60

    def __init__(self, uid: int | None, gid: int | None, groups: tuple[int, ...] | None, umask: int | None) -> None:
        self._uid, self._gid, self._groups, self._umask = uid, gid, groups, umask
        self._before: _Before | None = None

    text = "the credentials"

    def check(self) -> None:
        """An effective id that is neither the real nor the saved one could not be had again."""
        for what, wanted, (real, effective, saved) in (
            ("uid", self._uid, os.getresuid()),
            ("gid", self._gid, os.getresgid()),
        ):
            if wanted is not None and wanted != effective and effective not in (real, saved):
                raise IrreversibleError(
                    f"with Credentials: the effective {what} {effective} is neither the real nor the saved one of this"
                    f" thread, so there is no way back to it; use isolate.in_thread(function, part) or Sandbox(part)"
                )

    def apply(self) -> None:
        """Groups, gid, uid: each needs what the next gives up."""
        self._before = _Before()
        if self._groups is not None:
            self._set_groups(sorted(set(self._groups)))
        for what, value in (("gid", self._gid), ("uid", self._uid)):
            if value is not None:
                result = native.call(number(f"setres{what}"), _KEEP, value, _KEEP)
                if result < 0:
                    raise _refused(
                        -result, f"effective {what} {value}", f"setres{what}", _finding(what, value, -result)
                    )
        if self._umask is not None:
            self._before.umask = native.call(number("umask"), self._umask)

    def _set_groups(self, groups: list[int]) -> None:
        assert self._before is not None
        if groups == self._before.groups:
            return
        result = _setgroups(groups)
        if result == -errno.EPERM and not groups and self._before.caps.mask(0) >> _CAP_SETGID & 1:
            return  # as in a sandbox: where the user namespace denies setgroups to everybody, groups cannot be dropped
        if result == -errno.EPERM and not groups and self._before.groups == [self._own_gid()]:
            return  # as in a sandbox: the own gid among the groups, where every login has it, gives nothing
        if result < 0:
            raise _refused(
                -result,
                "supplementary groups",
                "setgroups",
                Finding(
                    "it needs CAP_SETGID, and a user namespace that allows setgroups",
                    "keep them with groups=None, or run this program as root",
                ),
            )

    def _own_gid(self) -> int:
        return os.getegid() if self._gid is None else self._gid

    def undo(self) -> None:
        """The uid first: with it come the capabilities that the rest needs."""
        before = self._before
        if before is None:
            return
        if before.umask is not None:
            native.call(number("umask"), before.umask)
        _done(native.call(number("setresuid"), _KEEP, before.uid, _KEEP), f"effective uid {before.uid} again")
        # A change between root and others sets or clears the effective set.
        _done(before.caps.write(), "the effective capabilities again")
        _done(native.call(number("setresgid"), _KEEP, before.gid, _KEEP), f"effective gid {before.gid} again")
        if sorted(os.getgroups()) != before.groups:
            _done(_setgroups(before.groups), "the supplementary groups again")
        # The kernel took both away when the ids changed.
        _prctl(_PR_SET_PDEATHSIG, before.death_signal)
        if before.dumpable == 1 and _prctl(_PR_GET_DUMPABLE) != 1:
            _prctl(_PR_SET_DUMPABLE, 1)

    def now(self) -> str:
        """The ids of this thread."""
        return f"uid {os.getresuid()}, gid {os.getresgid()} (real, effective, saved), groups {os.getgroups()}"


class _Before:
    def __init__(self) -> None:
        self.uid, self.gid = os.geteuid(), os.getegid()
        self.groups = sorted(os.getgroups())
        self.umask: int | None = None
        self.caps = Sets()
        self.caps.read()
        self.dumpable = _prctl(_PR_GET_DUMPABLE)
        signal = ffi.new("int *")
        native.call(number("prctl"), _PR_GET_PDEATHSIG, signal)
        self.death_signal = int(signal[0])


def _setgroups(groups: list[int]) -> int:
    return native.call(number("setgroups"), len(groups), struct.pack(f"={len(groups)}I", *groups) or 0)


def _done(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{os.strerror(-result)}: {what}")


def _finding(what: str, value: int, error: int) -> Finding:
    if error == errno.EINVAL:
        return Finding(
            f"{what} {value} is not mapped in the user namespace",
            f"take one that /proc/self/{what}_map names, or map it: UserNamespace(map=...)",
        )
    capability = f"CAP_SET{what.upper()}"
    return Finding(
        f"it needs {capability}, or to be the real or saved {what}",
        f"run this program as root or with {capability}; as an ordinary user, Sandbox(UserNamespace({what}={value}))"
        " shows a program this id",
    )


def _refused(error: int, step: str, syscall: str, found: Finding) -> SetupError:
    return SetupError(error, step, part="Credentials", syscall=syscall, cause=found.cause, remedy=found.remedy)
