"""What ``isolate explain`` says first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolate import Bind, Landlock, Limits, NetNamespace, PidNamespace, Root, Sandbox, Seccomp, Tmpfs, presets
from isolate.tools.cli import main
from isolate.tools.cli.summary import summary

if TYPE_CHECKING:
    import pytest


def lines(box: Sandbox) -> dict[str, str]:
    return {line[:12].rstrip(): line[13:] for line in summary(box).splitlines()}


def test_ten_lines_with_the_defaults() -> None:
    said = lines(presets.untrusted(limits=Limits(memory="256M", pids=64)))
    assert len(said) == 10
    assert said["runs as"].startswith("uid 65534 inside, uid ")
    assert "root" not in said["runs as"]
    assert "/usr" in said["sees"]
    assert "/etc/ssl" not in said["sees"]  # below /etc
    assert said["network"] == "its own: loopback and nothing else"
    assert said["limited"] == "all of it together: memory 268435456, pids 64"
    assert "core 0" in said["per process"]
    assert said["privileges"] == "no capability; gains none by exec"
    assert said["refused"] == "system calls outside of Seccomp.default()"
    assert "/tmp" in said["may write"]
    assert "processes" in said["hidden"].partition("not hidden")[0]


def test_what_is_not_there_is_said() -> None:
    """The control: without the parts the same lines say that nothing is hidden or limited."""
    said = lines(Sandbox())
    assert said["runs as"].startswith(f"uid {os.geteuid()} of the host")
    assert said["sees"].startswith("the caller's files")
    assert said["hidden"].startswith("nothing; not hidden: its processes")
    assert said["network"] == "the caller's: all that it reaches"
    assert said["limited"].startswith("nothing in all")
    assert said["refused"] == "new user namespaces"
    assert lines(Sandbox(Seccomp.none()))["refused"] == "no system call by a filter"


def test_entries_and_other_parts() -> None:
    box = Sandbox(
        PidNamespace(),
        NetNamespace(loopback=False),
        Landlock(bind_tcp=[80]),
        Root(Bind("/usr"), Bind("/srv/\x1b[1m", "/task", read_only=False), Tmpfs("/t", read_only=True)),
    )
    said = lines(box)
    assert "/task (the host's /srv/\\x1b[1m)" in said["sees"]
    assert said["may write"].startswith("/task (")
    assert "/usr" not in said["may write"]
    assert "/t," not in said["may write"]
    assert said["network"] == "its own: nothing, not even loopback"
    assert "Landlock(bind_tcp=" in said["besides"]


def test_the_calls_are_behind_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) == 10
    assert main(["explain", "--calls"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(short)
    assert "clone3(" in shown
