"""Trees that somebody else controls: whatever stands where something is mounted or made, nothing is led outside.

Each trap is tried with every entry that makes or mounts something, and with a naive mount by path, which it leads
astray.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from isolate import (
    Bind,
    Dev,
    Dir,
    File,
    Mask,
    Mqueue,
    Overlay,
    Proc,
    ReadOnly,
    Root,
    Sandbox,
    SetupError,
    Symlink,
    Sys,
    Tmpfs,
)
from tests.mounts.test_pseudo import nested

CANARY = "the canary of the host"
TARGET = "/a/t"


def up(place: Path, to: Path) -> str:
    return "../" * (len(place.parts) + 3) + str(to)[1:]


def middle(target: Path, to: str) -> None:
    target.parent.rmdir()
    target.parent.symlink_to(to)


def listen(target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        here = os.open(target.parent, os.O_RDONLY)
        try:
            s.bind(f"/proc/self/fd/{here}/{target.name}")  # a socket's path is short
        finally:
            os.close(here)


Trap = Callable[[Path, Path], object]

#: What stands at the target, given the target's place on the host and a directory outside of the tree.
LEADING: dict[str, Trap] = {
    "absolute link": lambda t, o: t.symlink_to(o),
    "relative link": lambda t, o: t.symlink_to(up(t, o)),
    "link to a link": lambda t, o: (t.with_name("l").symlink_to(o), t.symlink_to("l")),
    "link in the middle": lambda t, o: ((o / "t").mkdir(), middle(t, str(o))),
    "relative link in the middle": lambda t, o: ((o / "t").mkdir(), middle(t, up(t.parent, o))),
    "magic link": lambda t, o: t.symlink_to(f"/proc/self/root{o}"),
    "magic link in the middle": lambda t, o: ((o / "t").mkdir(), middle(t, f"/proc/self/root{o}")),
    "working directory": lambda t, o: t.symlink_to(f"/proc/self/cwd/{up(t, o)}"),
}
STANDING: dict[str, Trap] = {
    "dangling link": lambda t, o: t.symlink_to(o / "new"),
    "loop": lambda t, o: t.symlink_to("t"),
    "FIFO": lambda t, o: os.mkfifo(t),
    "socket": lambda t, o: listen(t),
    "file": lambda t, o: t.write_text("file"),
    "directory": lambda t, o: t.mkdir(),
    "file in the middle": lambda t, o: (t.parent.rmdir(), t.parent.write_text("file")),
    "hard link": lambda t, o: os.link(o / "canary", t),
}
TRAPS = {**LEADING, **STANDING}

#: Every entry that makes or mounts something at a target.
ENTRIES: dict[str, Callable[[Path], Any]] = {
    "Bind a directory": lambda source: Bind(source, TARGET),
    "Bind a file": lambda source: Bind(source / "file", TARGET),
    "Tmpfs": lambda source: Tmpfs(TARGET),
    "Overlay": lambda source: Overlay(TARGET, lower=[source]),
    "File": lambda source: File(TARGET, b"data"),
    "Dir": lambda source: Dir(TARGET),
    "Symlink": lambda source: Symlink("to", TARGET),
    "Mask": lambda source: Mask(TARGET, optional=True),
    "ReadOnly": lambda source: ReadOnly(TARGET),
    "Proc": lambda source: Proc(TARGET, masked=(), read_only=()),
    "Sys": lambda source: Sys(TARGET, masked=()),
    "Dev": lambda source: Dev(TARGET),
    "Mqueue": lambda source: Mqueue(TARGET),
    # One deeper: the trap is on the way.
    "Tmpfs below": lambda source: Tmpfs(TARGET + "/x"),
    "File below": lambda source: File(TARGET + "/x/y", b"data"),
    "Dir below": lambda source: Dir(TARGET + "/x"),
    "Symlink below": lambda source: Symlink("to", TARGET + "/x"),
}


class Hostile:
    """A tree, a directory outside of it with a canary, and a source."""

    def __init__(self, place: Path) -> None:
        self.tree, self.outside, self.source = place / "tree", place / "outside", place / "source"
        for path in (self.tree, self.outside, self.source, self.tree / "a"):
            path.mkdir()
            path.chmod(0o777)
        for name in ("usr", "bin", "lib", "lib64", "proc"):
            self.tree.joinpath(name).mkdir()
        self.outside.joinpath("canary").write_text(CANARY)
        self.source.joinpath("file").write_text("source")
        self.target = self.tree / TARGET[1:]

    def look(self) -> list[tuple[str, int, int, bytes]]:
        """All that is outside: names, modes, times, contents."""
        found = []
        for path in [self.outside, *sorted(self.outside.rglob("*"))]:
            s = path.lstat()
            found.append((str(path), s.st_mode, s.st_mtime_ns, path.read_bytes() if path.is_file() else b""))
        return found

    def root(self, *entries: Any) -> Root:
        binds = [Bind(f"/{name}") for name in ("usr", "bin", "lib", "lib64") if os.path.exists(f"/{name}")]
        return Root(Bind(self.tree, "/", read_only=False), *binds, Proc(), *entries)


@pytest.fixture
def hostile(place: Path) -> Hostile:
    return Hostile(place)


SCRIPT = f"cat {TARGET} {TARGET}/canary {TARGET}/*/canary 2>/dev/null; echo; cat /proc/self/mountinfo"


@pytest.mark.parametrize("trap", TRAPS)
def test_nothing_is_led_outside(trap: str, hostile: Hostile, natural: tuple[Any, ...]) -> None:
    TRAPS[trap](hostile.target, hostile.outside)
    before = hostile.look()
    plain = Sandbox(hostile.root(), *natural).run(["/bin/sh", "-c", SCRIPT], text=True, timeout=20)
    base = len(str(plain.stdout).splitlines())
    ran: list[str] = []
    refused: dict[str, SetupError] = {}
    for name, make in ENTRIES.items():
        entry = make(hostile.source)
        try:
            result = Sandbox(hostile.root(entry), *natural).run(["/bin/sh", "-c", SCRIPT], text=True, timeout=20)
        except SetupError as error:
            refused[name] = error
        else:
            assert trap == "hard link" or CANARY not in str(result.stdout), name
            mounted = len(str(result.stdout).splitlines()) - base
            if name.split()[0] not in ("Dir", "Symlink", "Mask"):
                assert mounted >= 1, f"{name}: ran, and its mount is not inside"
            ran.append(name)
        assert hostile.look() == before, name
    for name, error in refused.items():
        assert error.errno in (2, 17, 18, 20, 21, 22, 40), f"{name}: {error}"
        assert error.path, f"{name}: {error}"
    assert refused or trap in ("directory", "hard link", "file", "FIFO", "socket"), ran


@pytest.mark.parametrize("trap", LEADING)
def test_control_a_mount_by_path_is_led_astray(trap: str, hostile: Hostile) -> None:
    LEADING[trap](hostile.target, hostile.outside)
    done = nested(
        f"cd /; mount -t tmpfs astray {hostile.target}; grep astray /proc/self/mountinfo | cut -d' ' -f5 >&2", "pass"
    )
    assert done.returncode == 0, done.stderr
    where = Path(done.stderr.strip())
    assert where.is_relative_to(hostile.outside) or str(where).startswith(str(hostile.outside)), done.stderr


def test_control_a_file_made_by_path_is_led_astray(hostile: Hostile) -> None:
    STANDING["dangling link"](hostile.target, hostile.outside)
    hostile.target.touch()
    assert (hostile.outside / "new").exists()


@pytest.mark.parametrize("link", ["/inner", "../inner", "../../../../inner", "/../../inner", "/usr/../inner"])
def test_links_are_followed_within(link: str, hostile: Hostile, parts: tuple[Any, ...]) -> None:
    """A link means what it means inside: the root is above itself, and nothing of ours lies there."""
    hostile.tree.joinpath("inner").mkdir()
    hostile.target.symlink_to(link)
    result = Sandbox(hostile.root(File(TARGET + "/f", "text")), *parts).run(["/bin/cat", "/inner/f"])
    assert result.stdout == b"text", result.stderr
    assert hostile.tree.joinpath("inner", "f").read_bytes() == b""  # the place that it is mounted on


@pytest.mark.parametrize("kind", ["Proc", "Sys", "Dev", "Mqueue"])
def test_no_link_leads_to_the_kernels_file_systems(kind: str, hostile: Hostile, parts: tuple[Any, ...]) -> None:
    """Not even within (the class of CVE-2019-19921: /proc somewhere else, and what is checked is not what is used)."""
    hostile.tree.joinpath("inner").mkdir()
    hostile.target.symlink_to("/inner")
    with pytest.raises(SetupError) as caught:
        Sandbox(hostile.root(ENTRIES[kind](hostile.source)), *parts).run(["/bin/true"])
    assert caught.value.errno == 40
    assert caught.value.cause


# ---- swapped while we look -----------------------------------------------------------------------------------------

SWAP = """
import os, sys
from isolate.engine import native
from isolate.kernel import syscalls
number = syscalls.number("renameat2")
a, b = (os.fsencode(x) for x in sys.argv[1:3])
print("ready", flush=True)
while os.getppid() == int(sys.argv[3]):
    for _ in range(1000):
        native.call(number, -100, a, -100, b, 2)  # RENAME_EXCHANGE
"""


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Two names change places all the time."""
    command = [sys.executable, "-c", SWAP, str(one), str(other), str(os.getpid())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


def test_swapped_during_set_up(hostile: Hostile, parts: tuple[Any, ...]) -> None:
    """A directory and a link to the outside change places: each step meets one or the other, and neither leads out."""
    hostile.target.mkdir()
    hostile.target.chmod(0o777)
    link = hostile.tree / "a" / "link"
    link.symlink_to(hostile.outside)
    before = hostile.look()
    box = Sandbox(
        hostile.root(
            Dir(TARGET + "/d/e"),
            Symlink("to", TARGET + "/l"),
            File(TARGET + "/f", b"x"),
            Tmpfs(TARGET),
            Bind("/usr", TARGET),
        ),
        *parts,
    )
    ran = refused = 0
    with swapping(hostile.target, link):
        for _ in range(150):
            try:
                box.run(["/bin/true"])
            except SetupError:
                refused += 1
            else:
                ran += 1
            for path in (hostile.target, link):  # so that the link is made again the next time
                try:
                    os.unlink(path / "l")
                except OSError:
                    pass
            if ran >= 3 and refused >= 10:
                break
    assert hostile.look() == before
    assert refused >= 3
    assert ran + refused >= 10


def test_control_swapped_paths_lead_astray(hostile: Hostile) -> None:
    """The same by path: looked at, then used."""
    hostile.target.mkdir()
    link = hostile.tree / "a" / "link"
    link.symlink_to(hostile.outside)
    before = hostile.look()
    with swapping(hostile.target, link):
        for n in range(100_000):
            try:
                if not hostile.target.is_symlink():
                    (hostile.target / f"d{n}").mkdir()
            except OSError:
                pass
            if n % 100 == 0 and hostile.look() != before:
                break
    assert hostile.look() != before
