"""Sources that an earlier run could change: whatever it put on the way, a later start is not led outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Bind, Landlock, Overlay, Root, Sandbox, SetupError, Tmpfs, UserNamespace
from isolate.landlock.part import landlock_abi
from isolate.landlock.rights import PathRule
from tests.mounts.conftest import SYSTEM, Shell
from tests.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "the caller's own secret\n"


@pytest.fixture
def world(place: Path) -> Path:
    """``w`` is for the program, ``secret`` is for the caller alone."""
    for name in ("w", "w/out", "w/work", "secret", "low"):
        (place / name).mkdir()
        (place / name).chmod(0o777)
    (place / "secret" / "file").write_text(SECRET)
    (place / "secret" / "file").chmod(0o666)
    return place


def led_away(world: Path, shell: Shell) -> None:
    """What a first run does: the directory that the next one names is now a link to the caller's."""
    done = shell(f"rmdir /data/out && ln -s {world}/secret /data/out", Bind(world / "w", "/data", read_only=False))
    assert done.ok, done.stderr
    assert os.path.islink(world / "w" / "out")


def entries(world: Path) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Entries that name something below what the program writes to, and a script that shows where it leads."""
    w = Bind(world / "w", "/data", read_only=False)
    out = world / "w" / "out"
    return {
        "a bind": ((w, Bind(out, "/out", read_only=False)), "cat /out/file; echo changed > /out/file"),
        "a bind, the outer one later": ((Bind(out, "/out", read_only=False), w), "cat /out/file"),
        "a bind to be read": ((w, Bind(out, "/out")), "cat /out/file"),
        "a file": ((w, Bind(out / "file", "/file")), "cat /file"),
        "a path with dots": ((w, Bind(world / "w" / "x" / ".." / "out", "/out")), "cat /out/file"),
        "a lower layer": ((w, Overlay("/out", lower=[out])), "cat /out/file"),
        "an upper layer": (
            (w, Overlay("/out", lower=[world / "low"], upper=out, work=world / "w" / "work")),
            "cat /out/file; echo changed > /out/new",
        ),
        "below an upper layer": (
            (
                Overlay("/data", lower=[world / "low"], upper=world / "w", work=world / "low2"),
                Bind(out, "/out", read_only=False),
            ),
            "cat /out/file",
        ),
        "below a kept root": (
            (Bind(world, "/all", read_only=False), Bind(out, "/out")),
            "cat /out/file",
        ),
        "beneath, named": ((Bind(out, "/out", beneath=world / "w"),), "cat /out/file"),
        "beneath, a layer": ((Overlay("/out", lower=[out], beneath=world / "w"),), "cat /out/file"),
    }


@pytest.mark.parametrize("which", entries(Path("/x")))
def test_a_source_is_not_led_outside_by_an_earlier_run(which: str, world: Path, shell: Shell) -> None:
    (world / "low2").mkdir()
    led_away(world, shell)
    given, script = entries(world)[which]
    with pytest.raises(SetupError, match="symbolic link") as caught:
        shell(script, *given)
    assert "w" in str(caught.value)
    assert (world / "secret" / "file").read_text() == SECRET
    assert sorted(os.listdir(world / "secret")) == ["file"]


@pytest.mark.parametrize("which", entries(Path("/x")))
def test_where_nobody_was_there_it_is_what_it_names(which: str, world: Path, shell: Shell) -> None:
    """The control of the test above: the same entries, and the directory is still one."""
    (world / "low2").mkdir()
    (world / "w" / "x").mkdir()
    (world / "w" / "out" / "file").write_text("what is to be seen\n")
    (world / "w" / "out" / "file").chmod(0o666)
    given, script = entries(world)[which]
    done = shell(script, *given)
    assert "what is to be seen" in (done.stdout or ""), done.stderr


def test_the_link_leads_outside_where_nobody_says_that_a_program_wrote_there(world: Path, shell: Shell) -> None:
    """The attack works on a sandbox that knows nothing of the earlier one's writable source: that is what beneath= is
    for."""
    led_away(world, shell)
    assert shell("cat /out/file", Bind(world / "w" / "out", "/out")).stdout == SECRET


@pytest.mark.parametrize("how", ["a link of the caller's", "a mount of the caller's", "a descriptor", "dots"])
def test_the_writable_source_is_known_by_what_it_is(how: str, world: Path, shell: Shell) -> None:
    led_away(world, shell)
    (world / "alias").symlink_to(world / "w")
    given: tuple[Any, ...] = (Bind(world / "w", "/data", read_only=False), Bind(world / "alias" / "out", "/out"))
    fd = -1
    if how == "a descriptor":
        fd = os.open(world / "w", os.O_PATH)
        given = (Bind(fd, "/data", read_only=False), Bind(world / "w" / "out", "/out"))
    elif how == "dots":
        given = (given[0], Bind(world / "low" / ".." / "w" / "." / "out", "/out"))
    elif how == "a mount of the caller's":
        if os.geteuid() != 0:
            pytest.skip("needs root")
        (world / "again").mkdir()
        subprocess.run(["mount", "--bind", world / "w", world / "again"], check=True)
        given = (given[0], Bind(world / "again" / "out", "/out"))
    try:
        with pytest.raises(SetupError, match="symbolic link"):
            shell("cat /out/file", *given)
    finally:
        if fd >= 0:
            os.close(fd)
        if how == "a mount of the caller's":
            subprocess.run(["umount", world / "again"], check=True)


def test_links_of_the_callers_own_are_followed(world: Path, shell: Shell) -> None:
    (world / "mine").symlink_to(world / "secret")
    (world / "w" / "out").rmdir()
    given = (Bind(world / "w", "/data", read_only=False), Bind(world / "w" / ".." / "mine", "/out"))
    assert shell("cat /out/file", *given).stdout == SECRET


def test_optional_is_left_out_and_beneath_must_hold_it(world: Path, parts: tuple[Any, ...]) -> None:
    box = Sandbox(Root(*SYSTEM, Bind(world / "w" / "gone", "/out", beneath=world / "w", optional=True)), *parts)
    result = box.run(["/bin/ls", "/out"])
    assert not result.ok
    assert result.applied["Root"] is False
    with pytest.raises(ValueError, match="does not lie below"):
        Bind(world / "secret", "/out", beneath=world / "w")
    with pytest.raises(ValueError, match="does not lie below"):
        Bind(world / "w" / ".." / "secret", "/out", beneath=world / "w")
    with pytest.raises(TypeError, match="descriptor"):
        Bind(0, "/out", beneath=world / "w")
    assert "beneath=" in repr(Bind(world / "w" / "out", "/out", beneath=world / "w"))


# ---- Landlock --------------------------------------------------------------------------------------------------------

needs_landlock = pytest.mark.skipif(landlock_abi() == 0, reason="this kernel has no Landlock")
PROGRAMS = [path for path in ("/usr", "/bin", "/lib", "/lib64", "/etc") if os.path.exists(path)]


def rules(world: Path) -> dict[str, Callable[[], Landlock]]:
    w, out = world / "w", world / "w" / "out"
    return {
        "nested": lambda: Landlock(execute=PROGRAMS, write=[w, out]),
        "nested, to be read": lambda: Landlock(execute=PROGRAMS, write=[w], read=[out]),
        "beneath, named": lambda: Landlock(execute=PROGRAMS, rules=[PathRule(out, "write", beneath=w)]),
    }


@needs_landlock
@pytest.mark.parametrize("which", rules(Path("/x")))
def test_a_rule_is_not_led_outside_by_an_earlier_run(which: str, world: Path, shell: Shell) -> None:
    box = Sandbox(rules(world)[which]())
    see = ["/bin/sh", "-c", f"cat {world}/secret/file; ls {world}/w/out"]
    assert box.run(see, text=True).stdout == ""  # the control: a directory, and the secret is out of reach
    led_away(world, shell)
    with pytest.raises(SetupError, match="symbolic link"):
        box.run(see)
    # The attack works where nothing says that a program wrote there.
    naive = Sandbox(Landlock(execute=PROGRAMS, read=[world / "w" / "out"]))
    assert naive.run(see, text=True).stdout.startswith(SECRET)


@needs_landlock
def test_a_rule_inside_of_a_root_is_not_led_outside_either(world: Path, shell: Shell) -> None:
    parts = () if os.geteuid() == 0 else (UserNamespace(),)
    (world / "low" / "file").write_text(SECRET)

    def box(*rules: Any) -> Sandbox:
        root = Root(*SYSTEM, Bind(world / "w", "/data", read_only=False), Bind(world / "low", "/secret"), Tmpfs("/tmp"))
        system = [path for path in PROGRAMS if path != "/etc"]
        return Sandbox(root, Landlock(execute=system, rules=rules), *parts)

    see = ["/bin/cat", "/secret/file"]
    assert not box(("/data/out", "read")).run(see).ok
    (world / "w" / "out").rmdir()
    (world / "w" / "out").symlink_to("/secret")
    with pytest.raises(SetupError, match="symbolic link"):
        box(("/data/out", "read")).run(see)
    assert box(("/secret", "read")).run(see, text=True).stdout == SECRET


def test_nothing_is_left(world: Path, shell: Shell) -> None:
    before = Snapshot.take()
    for _ in range(3):
        shell("true", Bind(world / "w", "/data", read_only=False), Bind(world / "w" / "out", "/out"))
    before.compare()
    shutil.rmtree(world / "w")
