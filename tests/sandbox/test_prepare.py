"""A prepared program is set up, known by its pid, and not executed before it is started."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import PIPE, PidNamespace, Prepared, Sandbox, SetupError, UserNamespace, presets
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from tests.engine.leaks import Snapshot

USER = Sandbox(UserNamespace(), PidNamespace())


@pytest.mark.parametrize("box", [USER, Sandbox(), presets.untrusted()], ids=["user", "plain", "untrusted"])
def test_the_pid_is_known_before_and_stays(box: Sandbox, clean: Snapshot) -> None:
    with box.prepare(["sh", "-c", "echo ran; cat"], stdin=PIPE, stdout=PIPE) as prepared:
        assert Path(f"/proc/{prepared.pid}/comm").read_text() == "isolate-launche\n"
        assert prepared.pidfd >= 0
        process = prepared.start()
        assert process.pid == prepared.pid
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ran\n"
        process.stdin.close()
        assert process.wait(10) == 0
        process.close()
        with pytest.raises(ValueError, match="started already"):
            prepared.start()


def test_what_is_not_started_is_taken_down(clean: Snapshot, tmp_path: Path) -> None:
    with USER.prepare(["touch", str(tmp_path / "file")]) as prepared:
        fd = os.pidfd_open(prepared.pid)
    assert not (tmp_path / "file").exists()
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(fd, 0)
    os.close(fd)
    with pytest.raises(ValueError, match="closed already"):
        prepared.start()


def test_what_cannot_be_executed_is_told_before() -> None:
    with pytest.raises(SetupError) as caught:
        USER.prepare(["no-such-program"])
    assert caught.value.errno == errno.ENOENT


def test_who_is_killed_while_waiting(clean: Snapshot) -> None:
    with USER.prepare(["true"]) as prepared:
        signal.pidfd_send_signal(prepared.pidfd, signal.SIGKILL)
        with pytest.raises(SetupError):
            prepared.start()


def test_by_an_ordinary_user() -> None:
    code = (
        "from isolate import presets\n"
        "with presets.untrusted().prepare(['true']) as p:\n"
        "    assert p.pid > 0\n"
        "    process = p.start()\n"
        "    assert process.wait(10) == 0 and process.pid == p.pid\n"
        "    process.close()\n"
        "    print('done')\n"
    )
    assert as_ordinary_user(code) == "done\n"


def test_the_type_is_public() -> None:
    with USER.prepare(["true"]) as prepared:
        assert isinstance(prepared, Prepared)
