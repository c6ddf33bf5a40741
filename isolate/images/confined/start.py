"""Start the child: what it may reach, what it is asked, and what it answers.

The child is this Python, started anew, in namespaces of its own: a user namespace with the wanted map, so that it can
give files to their owners and has no power over anything else; a network without a way out; a mount namespace in which
everything is read-only; Landlock, with the directories that it works on and Python's own files; and a filter. It gets
descriptors for what it works on, and answers with a bounded piece of JSON.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from isolate.attributes.privileges import SetIdFiles
from isolate.attributes.rlimits import Rlimits
from isolate.capabilities import Cap, Capabilities
from isolate.images.confined import python, words
from isolate.images.errors import LayerError, StoreError, printable
from isolate.landlock import FsAccess, Landlock, PathRule, landlock_abi
from isolate.mounts import Bind, Root
from isolate.namespaces import IpcNamespace, MountNamespace, NetNamespace, PidNamespace, UserNamespace
from isolate.sandbox.box import Sandbox
from isolate.seccomp import Seccomp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.engine.plan import Part
    from isolate.namespaces.ids import IdMap

__all__ = ["box_for", "confined"]

_MAX_ANSWER = 64 << 20
_LONGEST = 4 * 3600.0  # seconds for one task: a layer of 100 GB on a slow disk takes less
_MEMORY = "8G"  # of address space: two million entries take less than one
_POWERS = (Cap.CHOWN, Cap.DAC_OVERRIDE, Cap.DAC_READ_SEARCH, Cap.FOWNER, Cap.FSETID, Cap.SETFCAP)
_MAKE = (
    FsAccess.WRITE_FILE
    | FsAccess.READ_FILE
    | FsAccess.READ_DIR
    | FsAccess.TRUNCATE
    | FsAccess.REMOVE_DIR
    | FsAccess.REMOVE_FILE
    | FsAccess.MAKE_DIR
    | FsAccess.MAKE_REG
    | FsAccess.MAKE_FIFO
    | FsAccess.MAKE_SYM
    | FsAccess.MAKE_CHAR
    | FsAccess.REFER
)
_READ = FsAccess.READ_FILE | FsAccess.READ_DIR


@lru_cache(maxsize=32)
def box_for(ids: IdMap | None, writable: tuple[bytes, ...], readable: tuple[bytes, ...], devices: bool) -> Sandbox:
    """The confinement of the child, made once for the same directories."""
    abi = landlock_abi()
    make = (_MAKE | FsAccess.MAKE_BLOCK if devices else _MAKE) & FsAccess.abi(max(abi, 1))
    rules = [PathRule(path, _READ | FsAccess.EXECUTE) for path in python.readable()]
    rules += [PathRule(path, make) for path in writable]
    rules += [PathRule(path, _READ) for path in readable]
    powers = (*_POWERS, Cap.MKNOD) if devices else _POWERS
    parts: list[Part] = [
        MountNamespace(),
        PidNamespace(),
        IpcNamespace(),
        NetNamespace(),
        Root(Bind("/", "/")),
        Landlock(rules=rules, handled=FsAccess.abi(min(abi, 5) or 1), required=abi > 0),
        Capabilities(effective=powers, permitted=powers, bounding=powers),
        SetIdFiles(),  # a tree has them; a store keeps it where nobody else may enter
        Rlimits(as_=_MEMORY, nofile=1024),
        Seccomp.default(),
    ]
    if ids is not None:
        parts.append(UserNamespace(map=ids))
    return Sandbox(*parts)


def confined(
    task: str,
    options: Mapping[str, Any],
    *,
    ids: IdMap | None,
    fds: Mapping[int, int],
    writable: tuple[int, ...] = (),
    readable: tuple[int, ...] = (),
    devices: bool = False,
    stdin: int | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Have a task done, and return its answer.

    ``fds`` are {number inside: descriptor}; ``writable`` and ``readable`` are descriptors of the directories beneath
    which it may make and read. ``ids`` is the map of its user namespace, None for none. ``timeout`` are seconds, None
    for four hours: a child that was stopped, or that waits for a disk that is gone, is not waited for without an end.

    :raises LayerError: a rule is broken, or the file system refuses an entry. :raises SetupError: the child could not
        be confined; nothing has been read. :raises StoreError: it did not end well.
    """
    places = tuple(tuple(sorted({_path(fd) for fd in group})) for group in (writable, readable))
    box = box_for(ids, places[0], places[1], devices)
    null = -3  # DEVNULL
    result = box.run(
        python.command(task, json.dumps(dict(options))),
        stdin=null if stdin is None else stdin,
        pass_fds=dict(fds),
        timeout=_LONGEST if timeout is None else timeout,
        max_output=_MAX_ANSWER,
    )
    assert result.stdout is not None
    assert result.stderr is not None
    if result.returncode != 0 or str(result.verdict) != "OK":
        said = printable(result.stderr[-2000:].decode("utf-8", "replace")) or f"returncode {result.returncode}"
        raise StoreError(f"the child that works on layers ended with {result.verdict}", cause=said)
    return _answer(result.stdout)


def _answer(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
        if "layer" in answer:
            entry, rule, number = answer["layer"]
            raise _layer_error(words.data(str(entry)), str(rule), number)
        if "os" in answer:
            number, reason = answer["os"]
            raise StoreError(f"the file system refuses it: {reason}", errno=int(number) if number else None)
        done = answer["done"]
        if not isinstance(done, dict):
            raise TypeError(done)
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise StoreError("the child that works on layers gave an answer that is none", cause=repr(error)) from None
    return done


def _layer_error(entry: bytes, rule: str, number: object) -> LayerError:
    error = LayerError(entry, rule)
    if isinstance(number, int):
        error.__cause__ = OSError(number, os.strerror(number))
    return error


def _path(fd: int) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % fd)
