"""What init makes inside comes to the program that started it: listening sockets in a network nobody else is in."""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import NetNamespace, PidNamespace, Sandbox, UserNamespace
from isolate.engine.handing import Handing, bind_and_listen
from isolate.engine.ops import Register
from isolate.engine.plan import Phase, Step
from isolate.errors import SetupError
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context

CLIENT = (
    "import socket; s = socket.create_connection(('127.0.0.1', 3128), 5); "
    "s.sendall(b'hello'); print(s.recv(9).decode())"
)


@dataclass(frozen=True)
class Listening:
    """A part that listens inside on a port, for whoever starts it."""

    got: list[int] = field(default_factory=list, hash=False, compare=False)
    closed: list[bool] = field(default_factory=list, hash=False, compare=False)
    refuse: bool = False
    port: int = 3128

    def brings(self) -> Iterator[NetNamespace]:
        yield NetNamespace()

    def steps(self, context: Context) -> Iterator[Step]:
        def receive(fds: list[int], session: object) -> Listening:
            self.got.extend(fds)
            if self.refuse:
                os.close(fds[0])
                raise SetupError(errno.EADDRINUSE, "take the listener", part="Listening")
            return self

        handing = Handing(receive, part="Listening")
        slot, fd = handing.slot(context), Register("listener")
        ops = (*bind_and_listen(fd, "127.0.0.1", self.port), *handing.hand(slot, [fd]), *handing.wait(slot))
        yield Step(Phase.SYSTEM, f"listen at 127.0.0.1:{self.port} inside, for the caller", ops)

    def close(self) -> None:
        self.closed.append(True)


def serve(fd: int) -> threading.Thread:
    listener = socket.socket(fileno=fd)
    listener.settimeout(30)

    def body() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(9).upper())

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def the_caller_serves_inside() -> None:
    part = Listening()
    parts = [part, PidNamespace()] + ([UserNamespace()] if os.geteuid() else [])
    with Sandbox(*parts).spawn(["python3", "-c", CLIENT], stdout=-1) as process:
        thread = serve(part.got[0])
        assert process.stdout is not None
        assert process.stdout.read() == b"HELLO\n"
        thread.join()
        assert not part.closed
    assert part.closed == [True]
    # Control: without it nobody listens in there, and what listens in there is not on the host.
    bare = Sandbox(NetNamespace(), *parts[1:]).run(["python3", "-c", CLIENT], text=True)
    assert "ConnectionRefusedError" in bare.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 3128), 5)


@pytest.mark.root
def test_the_caller_serves_inside() -> None:
    the_caller_serves_inside()


def test_the_caller_serves_inside_as_an_ordinary_user() -> None:
    root = Path(__file__).parents[2]
    as_ordinary_user(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from tests.engine.test_handing import the_caller_serves_inside as test; test()"
    )


@pytest.mark.root
def test_a_refusal_takes_the_sandbox_down() -> None:
    gc.collect()  # no descriptor of an earlier test's is closed meanwhile
    before = set(os.listdir("/proc/self/fd"))
    part = Listening(refuse=True)
    with pytest.raises(SetupError, match="take the listener"):
        Sandbox(part).run(["true"])
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.root
def test_a_step_that_fails_earlier_is_the_one_that_is_told() -> None:
    @dataclass(frozen=True)
    class Broken:
        def steps(self, context: Context) -> Iterator[Step]:
            from isolate.engine.ops import call

            yield Step(Phase.IDENTITY, "never works", (call("close", -1),))

    with pytest.raises(SetupError, match="never works"):
        Sandbox(Listening(), Broken()).run(["true"])


@pytest.mark.root
def test_two_listeners_and_a_further_program() -> None:
    one, two = Listening(), Listening(port=3129)

    @dataclass(frozen=True)
    class Other(Listening):
        pass

    two = Other(port=3129)
    with Sandbox(one, two, PidNamespace()).spawn(["sleep", "9"]) as process:
        for part in (one, two):
            with socket.socket(fileno=part.got[0]) as listener:
                assert listener.getsockname() == ("127.0.0.1", part.port)
        with process.exec(["true"]) as further:
            assert further.wait() == 0
