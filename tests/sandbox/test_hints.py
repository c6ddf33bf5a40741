"""What a result says of limits that the kernel tells nobody about."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from isolate import Bind, IdMap, ProgramError, Rlimits, Root, Sandbox, UserNamespace, Verdict, presets
from tests.boxes import SYSTEM

if TYPE_CHECKING:
    from pathlib import Path

GROWS = "dd if=/dev/zero of=grown bs=8192 count=1 2>/dev/null"
TAKES = "x = []\nwhile True: x.append(bytearray(1 << 20))"
EXACTLY = "bytearray(40 << 20)"
ASKS = "bytearray(1 << 40)"


def test_13_a_file_that_would_grow_too_long(tmp_path: Path) -> None:
    limited = Sandbox(Rlimits(fsize=4096))
    result = limited.run(["sh", "-c", f"exec {GROWS}"], cwd=tmp_path)
    assert (result.verdict, result.returncode) == (Verdict.SIGNALED, -signal.SIGXFSZ)
    (hint,) = result.hints
    assert "SIGXFSZ" in hint
    assert "4096 bytes (by Rlimits(fsize=))" in hint
    with pytest.raises(ProgramError, match="4096 bytes"):
        result.check()
    # The controls: what fits, no limit, and the signal without one.
    assert Sandbox(Rlimits(fsize=8192)).run(["sh", "-c", f"exec {GROWS}"], cwd=tmp_path).hints == ()
    assert Sandbox().run(["sh", "-c", f"exec {GROWS}"], cwd=tmp_path).ok
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY:
        sent = Sandbox().run(["sh", "-c", "kill -XFSZ $$"])
        assert (sent.verdict, sent.hints) == (Verdict.SIGNALED, ())


def test_13_the_callers_own_limit(tmp_path: Path) -> None:
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))\n"
        f"from isolate import Sandbox\nprint(Sandbox().run(['sh', '-c', 'exec {GROWS}']).hints)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "4096 bytes (the caller's own)" in told


@pytest.mark.parametrize(("name", "word"), [("as_", "RLIMIT_AS"), ("data", "RLIMIT_DATA")])
def test_13_memory_up_to_the_limit(name: str, word: str) -> None:
    limited = Sandbox(Rlimits(**{name: "64M"}))
    result = limited.run([sys.executable, "-S", "-c", TAKES])
    assert result.verdict is Verdict.EXITED, result
    assert b"MemoryError" in (result.stderr or b"")
    (hint,) = result.hints
    assert f"{word} is {64 << 20} (by Rlimits({name}=))" in hint
    # The controls: one request that is too large leaves no trace, success needs no hint, another failure has none.
    asked = limited.run([sys.executable, "-S", "-c", ASKS])
    assert (asked.verdict, asked.hints) == (Verdict.EXITED, ())
    assert limited.run([sys.executable, "-S", "-c", EXACTLY]).hints == ()
    assert limited.run(["false"]).hints == ()


@pytest.mark.root
def test_a_source_that_is_closed_to_the_program(tmp_path: Path) -> None:
    source = tmp_path / "task"
    source.mkdir(mode=0o700)
    (source / "file").write_text("text")
    (source / "file").chmod(0o644)
    read, fail = ["cat", "/task/file"], ["sh", "-c", "exit 1"]
    closed = presets.untrusted(Bind(source, "/task"))
    result = closed.run(read)
    (hint,) = result.hints
    assert b"Permission denied" in result.stderr
    assert hint.startswith("/task is closed to the program, which is uid ")
    # Both remedies work, as they stand there.
    uid, gid, host_uid, host_gid = map(int, re.findall(r"\d+", hint.partition("IdMap.single")[2]))
    ids = IdMap.single(uid, gid, host_uid=host_uid, host_gid=host_gid)
    assert presets.untrusted(Bind(source, "/task", idmap=ids)).run(read).stdout == b"text"
    assert f"chmod o+rx {source}," in hint
    source.chmod(0o705)
    assert closed.run(read).stdout == b"text"
    # Nothing is said of a failure with other causes, of a source that is shown as the program's own, of success.
    assert closed.run(fail).hints == ()
    source.chmod(0o700)
    assert presets.untrusted(Bind(source, "/task", read_only=False)).run(fail).hints == ()
    assert closed.run(["true"]).hints == ()
    assert Sandbox(UserNamespace(), Root(*SYSTEM, Bind(source, "/task"))).run(fail).hints == ()
