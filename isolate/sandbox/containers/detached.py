"""Containers that outlive the program that opened them: opening, finding again, asking their keeper."""

from __future__ import annotations

import array
import base64
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from isolate.engine.descriptors import OwnedDescriptor
from isolate.errors import SetupError
from isolate.kernel import checks
from isolate.mounts.changes import Change, Changes
from isolate.sandbox.containers import records
from isolate.sandbox.containers.container import Container, check_parts
from isolate.sandbox.containers.kept import Kept
from isolate.sandbox.containers.log import read_log
from isolate.sandbox.containers.written import from_bytes, to_bytes
from isolate.sandbox.planned import Planned
from isolate.sandbox.streams import arguments

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["DetachedContainer", "open_detached", "reopen"]

_MOST = 1 << 17
_PATIENCE = 30.0
_STARTING = 120.0  # seconds for the keeper, which makes everything that the container stands on
_CODE = "import sys;sys.path[:]={path!r};from isolate.sandbox.containers.keeper import main;main()"


def _raised(answer: dict[str, Any]) -> None:
    if "error" in answer:
        told = dict(answer["error"])
        raise SetupError(told.pop("errno") or errno.EIO, told.pop("step"), **told)
    if "refused" in answer:
        raise SetupError(errno.EINVAL, "ask the container's keeper", part="Container", cause=str(answer["refused"]))


def open_detached(box: Planned, name: str, log_size: int | str = "1M") -> DetachedContainer:
    """See :meth:`isolate.Sandbox.open`."""
    check_parts(box.parts)
    records.check_name(name)
    options = {
        "name": name,
        "parts": base64.b64encode(to_bytes(box.parts)).decode(),
        "log_size": checks.size("log_size", log_size, 4096),
    }
    # This package may have been found by other means than a path: by an import hook, or in the working directory.
    package = os.path.dirname(os.path.abspath(sys.modules["isolate"].__path__[0]))
    path = [os.path.abspath(place) for place in (*sys.path, package) if place and os.path.exists(place)]
    known = ("PATH", "HOME", "XDG_RUNTIME_DIR")
    environment = {key: os.environ[key] for key in known if key in os.environ}
    environment["ISOLATE_CONTAINERS"] = records.base_directory()
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CODE.format(path=path)],
            input=json.dumps(options).encode(),
            capture_output=True,
            env=environment,
            check=False,
            timeout=_STARTING,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(
            errno.ETIMEDOUT,
            "start the container's keeper",
            part="Container",
            cause=f"it has not answered within {_STARTING:g} s",
            remedy=f"python -m isolate ps tells whether it runs, python -m isolate rm --force {name} ends it",
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        why = done.stderr.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
        raise SetupError(errno.EIO, "start the container's keeper", part="Container", cause=why or None) from None
    _raised(answer)
    return reopen(name)


def reopen(name: str) -> DetachedContainer:
    """A container that was opened detached, by this program or another one of the same user.

    :raises SetupError: ENOENT: there is none of this name; ESRCH: it has ended, or its keeper is dead.

    :param name: that it was given, as ``open(name=...)``.

    >>> reopen("nobody-made-this")
    Traceback (most recent call last):
    isolate.errors.SetupError: ...
    """
    with records.opened(name) as directory:
        answer, fds = _ask(directory, name, {"do": "join"})
        parts = from_bytes(records.read_file(directory, "parts"))
    if len(fds) != len(answer["flags"]) + 2:
        raise SetupError(
            errno.EMFILE, f"open the container {name!r}", part="Container", cause="no descriptors are left"
        )
    doors = dict(zip(map(int, answer["flags"]), fds[2:], strict=True))
    directories = {str(key): str(value) for key, value in answer["directories"].items()}
    return DetachedContainer(Planned(*parts), Kept(fds[0], fds[1], directories), doors, directories, name)


def _ask(directory: int, name: str, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[OwnedDescriptor]]:
    """One request to a keeper, within a deadline."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(_PATIENCE)
        try:
            client.connect(f"/proc/self/fd/{directory}/sock")
            client.sendall(json.dumps(request).encode(), socket.MSG_NOSIGNAL)
            data, ancillary, *_ = client.recvmsg(_MOST, socket.CMSG_SPACE(4 * 16), socket.MSG_CMSG_CLOEXEC)
            if not data:
                raise ConnectionResetError
        except OSError as error:
            raise SetupError(
                errno.ESRCH,
                f"open the container {name!r}",
                part="Container",
                cause="its keeper does not answer" if isinstance(error, TimeoutError) else "it has ended",
                remedy=f"python -m isolate rm {name}",
            ) from None
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    owned = [OwnedDescriptor(fd) for fd in fds]
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"refused": "its keeper's answer cannot be read"}
    _raised(answer)
    return answer, owned


class DetachedContainer(Container):
    """A container that outlives the program that opened it: made by ``Sandbox.open(name=…, detached=True)``, and by
    :func:`isolate.reopen` in any program of the same user.

    The end of the block, and of this program, ends this handle and the commands that were started by it, and nothing
    else. :meth:`keep` starts programs that run on. ``kill()`` ends the container. When ``wait()`` returns, its keeper
    has gone too: the log is complete and the name is free.
    """

    def __init__(
        self, box: Planned, life: Kept, doors: Mapping[int, OwnedDescriptor], directories: Mapping[str, str], name: str
    ) -> None:
        super().__init__(box, life, doors, directories)
        #: The argument for :func:`isolate.reopen`.
        self.name: str = name

    def __repr__(self) -> str:
        return f"<DetachedContainer {self.name!r} {'runs' if self.running else 'ended'}>"

    def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with records.opened(self.name) as directory:
            return _ask(directory, self.name, request)[0]

    def keep(self, args: Any, *, env: Mapping[Any, Any] | None = None, cwd: Any = None) -> int:
        """Start a program that runs until it ends or the container does, whoever ends before; its process id.

        It reads nothing, and what it writes goes to the container's log.

        :raises SetupError: it cannot be executed.
        """

        def coded(value: Any) -> str:
            return base64.b64encode(os.fsencode(value)).decode()

        request = {
            "do": "keep",
            "args": [base64.b64encode(a).decode() for a in arguments(args)],
            "env": None if env is None else [(coded(k), coded(v)) for k, v in env.items()],
            "cwd": None if cwd is None else coded(cwd),
        }
        if len(json.dumps(request)) > _MOST:
            raise ValueError(f"keep: arguments and environment have at most {_MOST} bytes together")
        return int(self._asked(request)["pid"])

    def changes(self) -> Changes | None:
        """As :meth:`isolate.Container.changes`; its keeper looks, and tells of no more than its answer has room for."""
        found = self._asked({"do": "changes"})
        if found["changes"] is None:
            return None
        rows = (Change(base64.b64decode(path), str(kind), int(size)) for path, kind, size in found["changes"])
        return Changes(rows, complete=bool(found["complete"]))

    def logs(self) -> bytes:
        """The output of the programs started by :meth:`keep`: its last bytes."""
        with records.opened(self.name) as directory:
            return read_log(directory)

    def stop(self, grace: float = 10.0) -> None:
        """SIGTERM to the programs that are kept, and the end of everything when they have ended, or after ``grace``
        seconds."""
        deadline = time.monotonic() + grace
        if not self._life.ended():
            try:
                self._asked({"do": "signal", "number": int(signal.SIGTERM)})
                while self._asked({"do": "programs"})["pids"] and time.monotonic() < deadline:
                    select.select([self._life.fileno()], [], [], 0.02)
            except SetupError:
                pass  # it has ended meanwhile
        self.kill()
        self.wait(30.0)
