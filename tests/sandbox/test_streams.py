"""Streams that are opened by name, whoever the program is inside: /dev/stdin, /dev/stdout, /dev/fd/5."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Credentials, IdMap, PidNamespace, Pool, Sandbox, UserNamespace, presets
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from pathlib import Path

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else inside")

WHO: dict[str, tuple[Any, ...]] = {
    "as it is": (),
    "another uid": (Credentials(uid=1234, gid=1234),),
    "mapped to nobody": (UserNamespace(map=IdMap.single(0, 0, host_uid=65534, host_gid=65534)),),
    "nobody inside": (UserNamespace(uid=7, gid=7, map=IdMap.single(7, 7, host_uid=65534, host_gid=65534)),),
    "a range, and not its root": (
        UserNamespace(map=IdMap([(0, 100000, 1000)], [(0, 100000, 1000)])),
        Credentials(uid=5, gid=5),
    ),
}


@pytest.fixture(params=WHO.values(), ids=WHO)
def box(request: pytest.FixtureRequest) -> Sandbox:
    """A sandbox for each id map."""
    return Sandbox(PidNamespace(), *request.param)


@root_only
def test_27_pipes_by_name(box: Sandbox) -> None:
    shell = "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr"
    result = box.run(["sh", "-c", shell], input=b"in\n")
    assert (result.stdout, result.stderr) == (b"in\nout\n", b"err\n")


@root_only
def test_27_control_a_pipe_that_nobody_opened_up(tmp_path: Path) -> None:
    """Without it the kernel refuses: a FIFO with a name is the caller's own business, and stays as it is."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    fd = os.open(fifo, os.O_RDWR)
    try:
        box = Sandbox(Credentials(uid=1234, gid=1234))
        result = box.run(["sh", "-c", "echo x > /dev/fd/5"], pass_fds={5: fd})
        assert b"ermission denied" in result.stderr
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    finally:
        os.close(fd)


@root_only
def test_27_pipes_of_the_callers(box: Sandbox) -> None:
    ours, theirs = os.pipe()
    into, from_us = os.pipe()
    os.write(from_us, b"in\n")
    os.close(from_us)
    try:
        result = box.run(
            ["sh", "-c", "cat /dev/fd/6; cat /dev/stdin; echo out > /dev/fd/5"],
            pass_fds={5: theirs, 6: into},
            stdin=into,
        )
        assert result.ok, result.stderr
        assert result.stdout == b"in\n"
        assert os.read(ours, 99) == b"out\n"
    finally:
        for fd in (ours, theirs, into):
            os.close(fd)


@root_only
@pytest.mark.parametrize("which", ["another uid", "mapped to nobody", "a range, and not its root"])
def test_27_terminals_by_name(which: str) -> None:
    box = Sandbox(PidNamespace(), *WHO[which])
    shell = "echo out > /dev/stdout; read x < /dev/stdin; echo $x > /dev/stderr"
    with box.spawn(["sh", "-c", shell], pty=True) as process:
        assert process.pty is not None
        process.pty.write(b"in\n")
        assert process.wait(20) == 0
        found = b""
        while b"in\r\nin\r\n" not in found.replace(b"out\r\n", b""):
            found += process.pty.read(99) or b""
    assert found.count(b"out") == 1


@root_only
def test_27_a_spawned_program_in_the_presets() -> None:
    box = presets.untrusted()
    with box.spawn(["sh", "-c", "cat /dev/stdin > /dev/stdout"], stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"text")
        process.stdin.close()
        assert process.stdout.read() == b"text"


@root_only
def test_27_from_a_pool() -> None:
    with Pool(Sandbox(PidNamespace(), *WHO["nobody inside"]), size=1) as pool:
        assert pool.run(["sh", "-c", "cat /dev/stdin > /dev/stdout"], input=b"x").stdout == b"x"


def test_27_an_ordinary_user() -> None:
    out = as_ordinary_user(
        "from isolate import *\n"
        "for parts in ((UserNamespace(),), (UserNamespace(uid=5, gid=5), PidNamespace())):\n"
        "    print(Sandbox(*parts).run(['sh', '-c', 'cat /dev/stdin > /dev/stdout'], input=b'x').stdout)\n"
    )
    assert out.splitlines() == ["b'x'", "b'x'"]
