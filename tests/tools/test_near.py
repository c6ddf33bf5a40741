"""The nearest commands of other tools, held against the tools themselves where they are here."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from isolate import (
    Bind,
    Capabilities,
    Dev,
    Etc,
    Landlock,
    Limits,
    Mask,
    NetNamespace,
    Overlay,
    PidNamespace,
    Proc,
    ReadOnly,
    Rlimits,
    Root,
    Sandbox,
    Scheduling,
    Seccomp,
    Surroundings,
    Symlink,
    Tmpfs,
    UserNamespace,
    UtsNamespace,
    presets,
)
from isolate.tools.cli import main
from isolate.tools.near import TOOLS, near
from isolate.tools.near.systemd import NEW
from tests.boxes import SYSTEM

if TYPE_CHECKING:
    import pathlib

EVERYTHING = (
    UserNamespace(),
    PidNamespace(),
    NetNamespace(),
    UtsNamespace(hostname="box"),
    Root(
        Bind("/usr"),
        Symlink("usr/bin", "/bin"),
        Proc(hidepid="invisible"),
        Dev(),
        Etc(),
        Tmpfs("/tmp", inodes=9),
        Overlay("/o", lower=["/usr"]),
        Mask("/usr/src", optional=True),
        ReadOnly("/tmp"),
    ),
    Limits(memory="64M", swap=0, pids=9, cpu=0.5, cpu_weight=50, cpus="0", memory_high="32M"),
    Rlimits(nofile=(5, 9), stack="unlimited", as_="1G"),
    Scheduling(nice=3, affinity={0}, oom_score_adj=4),
    Capabilities(["net_raw"]),
    Landlock(read=["/usr"]),
    Seccomp.strict(),
    Surroundings(env={"A": "b"}, cwd="/tmp"),
)


def test_every_part_has_words_or_is_named_as_missing() -> None:
    for tool in TOOLS:
        found = near(Sandbox(*EVERYTHING), tool, ["id", "-u"])
        assert found.words[0] == tool
        assert found.words[-2:] == ["id", "-u"]
        assert "Landlock" in found.lacks
        assert "Seccomp" in found.lacks
    bwrap = near(Sandbox(*EVERYTHING), "bwrap")
    assert {"Limits", "Rlimits", "Scheduling", "Overlay('/o')", "Etc"} <= set(bwrap.lacks)
    assert "--unshare-net" in bwrap.words
    assert "--unshare-ipc" not in bwrap.words
    docker = near(Sandbox(*EVERYTHING), "docker")
    pairs = set(zip(docker.words, docker.words[1:], strict=False))
    assert {
        ("--network", "none"),
        ("--ipc", "host"),
        ("--memory", "67108864"),
        ("--memory-swap", "67108864"),
        ("--pids-limit", "9"),
        ("--ulimit", "nofile=5:9"),
        ("--cap-add", "NET_RAW"),
    } <= pairs
    unit = near(Sandbox(*EVERYTHING), "systemd-run").words
    assert {"MemoryMax=67108864", "TasksMax=9", "CPUQuota=50%", "LimitNOFILE=5:9", "PrivateNetwork=yes"} <= set(unit)
    assert "PrivateIPC=yes" not in unit


def test_a_program_finds_the_same_under_bubblewrap() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    script = "id -u; hostname; ls /; ls /proc/self/fd | wc -l; cat /proc/net/dev | wc -l; touch /x; echo $?"
    entries = [
        *SYSTEM,
        Proc(),
        Dev(),
        Tmpfs("/tmp", size="1M"),
    ]
    box = Sandbox(UserNamespace(), PidNamespace(), NetNamespace(), UtsNamespace(hostname="box"), Root(*entries))
    here = box.run(["sh", "-c", script], text=True)
    words = near(box, "bwrap", ["sh", "-c", script]).words
    there = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if "No permissions" in there.stderr or "Operation not permitted" in there.stderr:
        pytest.skip(f"bubblewrap does not run here: {there.stderr.strip()}")
    assert there.stdout == here.stdout, there.stderr
    assert "box\n" in here.stdout


def test_docker_knows_the_options() -> None:
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    known = set(
        re.findall(
            r"--[a-z0-9-]+",
            subprocess.run(["docker", "run", "--help"], capture_output=True, text=True, check=True, timeout=60).stdout,
        )
    )
    for box in (Sandbox(*EVERYTHING), presets.untrusted(limits=Limits(memory="64M")), Sandbox()):
        words = near(box, "docker").words
        options = {word for word in words[2:] if word.startswith("--")}
        assert options <= known, options - known


def test_systemd_knows_the_properties(tmp_path: pathlib.Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    lines = ["[Service]", "ExecStart=/bin/true"]
    for box in (Sandbox(*EVERYTHING), presets.untrusted(limits=Limits(memory="64M"))):
        words = near(box, "systemd-run").words
        lines += [b for a, b in itertools.pairwise(words) if a == "-p" and b.partition("=")[0] not in NEW]
    unit = tmp_path / "near.service"
    unit.write_text("\n".join(lines) + "\n")
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    wrong = [line for line in done.stderr.splitlines() if "near.service:" in line]
    assert wrong == []
    unit.write_text("\n".join([*lines, "NoSuchProperty=1", "TasksMax=x"]) + "\n")  # the control: it would be told
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    assert "NoSuchProperty" in done.stderr
    assert "maximum tasks" in done.stderr


def test_no_path_becomes_several_words_of_an_option() -> None:
    strange = (
        Bind("/srv/a,source=/etc", "/x"),
        Bind("/srv/b /etc:/w", "/y"),
        Tmpfs("/t:exec"),
    )
    box = Sandbox(UserNamespace(), Root(*strange, Bind("/srv/plain", "/plain")))
    for tool, kept in (("docker", 2), ("systemd-run", 2)):
        found = near(box, tool, ["/bin/echo", "$HOME"])
        words = " ".join(found.words)
        assert "/srv/plain" in words
        assert "source=/etc" not in words or tool != "docker"
        assert "/etc:/w" not in words or tool != "systemd-run"
        assert "/t:exec" not in words
        assert sum("would be taken for several words" in why for why in found.lacks.values()) == kept
        assert found.words[-1] == {"docker": "$HOME", "systemd-run": "$$HOME"}[tool]


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--memory", "64M", "--as", "bwrap", "--", "id"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("bwrap ")
    assert "-- id\n\nbwrap has no words for:\n" in shown
    assert "  Limits " in shown
    assert main(["explain", "--as", "docker", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"words", "lacks"}
    with pytest.raises(ValueError, match="did you mean 'bwrap'"):
        near(Sandbox(), "bwarp")
