"""The keeper of a detached container: a process of its own that opens it, holds it, and gives it to who asks.

It is a Python of the same installation, in a session of its own. It owns the container's launcher, so that the
container ends with it, and nothing but the container's end, or a SIGKILL, ends it. Who asks is the same user, or root:
the socket is in a directory that nobody else can enter, and the kernel tells who is there (SO_PEERCRED).
"""

from __future__ import annotations

import array
import base64
import contextlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isolate.errors import SetupError
from isolate.sandbox.box import Sandbox
from isolate.sandbox.containers import records
from isolate.sandbox.containers.doors import ROOT
from isolate.sandbox.containers.log import Log
from isolate.sandbox.containers.written import from_bytes

if TYPE_CHECKING:
    from isolate.sandbox.containers.container import Container
    from isolate.sandbox.process import Process

__all__ = ["MOST", "main"]

#: Bytes of a request or an answer.
MOST = 1 << 17
_PATIENCE = 10.0
_SO_PEERCRED, _UCRED = 17, struct.Struct("iII")


class Keeper:
    """One container and who asks for it."""

    def __init__(self, container: Container, directory: int, name: str, log_size: int) -> None:
        self.container = container
        self.directory = directory
        self.log: Log = Log(directory, log_size)
        self.record: records.Record = records.Record(name, "running", time.time(), None, container.pid, os.getpid())
        self.programs: dict[int, Process] = {}
        self._relays: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.socket: socket.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Reached through the descriptor, because an address has room for only 107 bytes.
        self.socket.bind(f"/proc/self/fd/{directory}/sock")
        self.socket.listen(16)
        #: Of this process: who joins waits for its end.
        self.pidfd: int = os.pidfd_open(os.getpid())

    def serve(self) -> None:
        """Until the container has ended."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(self.container.fileno(), select.POLLIN)
        poll.register(self.container.pidfd, select.POLLIN)
        while self.container.running:
            for fd, _ in poll.poll(1000):
                if fd == self.socket.fileno():
                    with contextlib.suppress(OSError):
                        client, _ = self.socket.accept()
                        threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            client.settimeout(_PATIENCE)
            with contextlib.suppress(OSError):  # it has gone
                _, uid, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, _UCRED.size))
                if uid not in (0, os.geteuid()):
                    return
                fds: list[int] = []
                try:
                    request = json.loads(client.recv(MOST))
                    answer = self._do(request, fds)
                except SetupError as error:
                    told = {
                        n: getattr(error, n) for n in ("errno", "step", "part", "syscall", "path", "cause", "remedy")
                    }
                    answer = {"error": told}
                except Exception as error:  # whatever was asked, the keeper goes on
                    answer = {"refused": f"{type(error).__name__}: {error}"}
                data = json.dumps(answer).encode()
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                client.sendmsg([data], ancillary)

    def _do(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        what = request["do"]
        if what == "join":
            doors = {**self.container._doors, ROOT: self.container._root}
            fds += [self.container.pidfd, self.pidfd, *doors.values()]
            return {"flags": list(doors), "directories": self.container._directories}
        if what == "keep":
            return self._keep(request)
        if what == "signal":
            with self._lock:
                for process in self.programs.values():
                    process.send_signal(int(request["number"]))
            return {}
        if what == "changes":
            return self._changes()
        if what == "programs":
            with self._lock:
                return {"pids": [process.pid for process in self.programs.values()]}
        raise ValueError(f"nobody can ask for {what!r}")

    def _changes(self) -> dict[str, Any]:
        """As many of the changes as there is room for."""
        found = self.container.changes()
        if found is None:
            return {"changes": None}
        rows, left = [], MOST // 2
        for change in found:
            rows.append((base64.b64encode(change.path).decode(), change.kind, change.bytes))
            left -= len(rows[-1][0]) + 64
            if left < 0:
                return {"changes": rows[:-1], "complete": False}
        return {"changes": rows, "complete": found.complete}

    def _keep(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start a program whose output goes to the log."""
        args = [base64.b64decode(a) for a in request["args"]]
        env = request["env"]
        options: dict[str, Any] = {
            "env": None if env is None else {base64.b64decode(k): base64.b64decode(v) for k, v in env},
            "cwd": None if request["cwd"] is None else base64.b64decode(request["cwd"]),
        }
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            process = self.container.spawn(args, stdin=-3, stdout=writing, stderr=writing, **options)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with self._lock:
            self.programs[process.pid] = process
            command = tuple(a.decode("utf-8", "backslashreplace") for a in args)
            self.record = replace(self.record, command=command)
            records.write_record(self.directory, self.record)
        relay = threading.Thread(target=self._relay, args=(process, reading), daemon=True)
        self._relays = [thread for thread in self._relays if thread.is_alive()] + [relay]
        relay.start()
        return {"pid": process.pid}

    def _relay(self, process: Process, reading: int) -> None:
        pid = process.pid
        with open(reading, "rb", buffering=0) as pipe:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            poll.register(process.fileno(), select.POLLIN)
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if pipe.fileno() in ready:
                    data = pipe.read(65536)
                    if not data:
                        break
                    self.log.write(data)
                elif ready:
                    break  # it has ended, and nothing of what it wrote is left in the pipe
        with contextlib.suppress(SetupError):
            code = process.wait()
            self.log.write(f"[{os.fsdecode(process.args[0])} ended with {code}]\n".encode("utf-8", "backslashreplace"))
        process.close()
        with self._lock:
            self.programs.pop(pid, None)

    def end(self) -> None:
        """Say that it has ended, once the last of the output is in the log."""
        self.socket.close()
        for relay in self._relays:
            relay.join(5.0)
        self.log.close()
        with contextlib.suppress(OSError):
            os.unlink("sock", dir_fd=self.directory)
        self.record = replace(self.record, state="ended", ended=time.time())
        with contextlib.suppress(OSError):
            records.write_record(self.directory, self.record)


def _started(options: dict[str, Any]) -> Keeper:
    parts = from_bytes(base64.b64decode(options["parts"]))
    name = records.check_name(options["name"])
    directory, _lock = records.reserve(name)  # the lock stays open until this process ends
    try:
        container = Sandbox(*parts).open()
        keeper = Keeper(container, directory, name, int(options["log_size"]))
        with open(
            os.open("parts", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory), "wb"
        ) as file:
            file.write(base64.b64decode(options["parts"]))
        records.write_record(directory, keeper.record)
    except BaseException:
        os.close(_lock)
        records.remove(name)
        raise
    return keeper


def main() -> None:
    """Read what is wanted from stdin, tell on stdout how it went, keep."""
    options = json.loads(sys.stdin.buffer.read())
    if os.fork():  # nobody else runs in this process: whoever started us waits for this one, and has no child
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    keeper = None
    try:
        keeper = _started(options)
        answer: dict[str, Any] = {}
    except SetupError as error:
        told = ("errno", "step", "part", "syscall", "path", "cause", "remedy")
        answer = {"error": {n: getattr(error, n) for n in told}}
    except Exception as error:
        answer = {"refused": f"{type(error).__name__}: {error}"}
    try:
        os.write(1, json.dumps(answer).encode())
    except OSError:
        pass  # whoever asked has gone; the container is there all the same, under its name
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if keeper is None:
        os._exit(1)
    try:
        keeper.serve()
        keeper.container.close()
    finally:
        keeper.end()
        os._exit(0)
