"""Errors about the files of a container: each says what helps, and what it says helps."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import SetupError, presets
from tests.opened import sh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def c() -> Iterator[isolate.Container]:
    with presets.untrusted().open() as container:
        script = (
            "cd /tmp; mkdir dir shut; echo x > file; ln -s file link; ln -s dir up; echo x > dir/a; echo x > dir/b;"
            "echo x > shut/f; chmod 0 shut; mkdir -p deep/er/est; mkfifo fifo"
        )
        container.run(["sh", "-c", script]).check()
        yield container


#: The call, its errno, words of the remedy, and the same with what helps.
CASES: dict[str, tuple[Callable[[isolate.Container], object], int, str, Callable[[isolate.Container], object]]] = {
    "a link at the end": (
        lambda c: c.read("/tmp/link"),
        errno.ELOOP,
        "name the place that it leads to",
        lambda c: c.read("/tmp/file"),
    ),
    "a link on the way": (
        lambda c: c.read("/tmp/up/a"),
        errno.ELOOP,
        "name the place that it leads to",
        lambda c: c.read("/tmp/dir/a"),
    ),
    "no directory": (
        lambda c: c.write("/tmp/new/a", "x"),
        errno.ENOENT,
        "parents=True",
        lambda c: c.write("/tmp/new/a", "x", parents=True),
    ),
    "no file": (lambda c: c.read("/tmp/none"), errno.ENOENT, "list()", lambda c: c.list("/tmp")),
    "a file on the way": (lambda c: c.read("/tmp/file/a"), errno.ENOTDIR, "list()", lambda c: c.list("/tmp")),
    "a directory": (lambda c: c.read("/tmp/dir"), errno.EINVAL, "get()", lambda c: c.get("/tmp/dir")),
    "a FIFO": (lambda c: c.read("/tmp/fifo"), errno.EINVAL, "list()", lambda c: c.list("/tmp")),
    "in a directory's place": (
        lambda c: c.write("/tmp/dir", "x"),
        errno.EISDIR,
        "another name",
        lambda c: c.write("/tmp/other", "x"),
    ),
    "read-only": (
        lambda c: c.write("/usr/x", "x"),
        errno.EROFS,
        "a Tmpfs",
        lambda c: c.write("/tmp/x", "x"),  # which is one
    ),
    "no right": (
        lambda c: c.read("/tmp/shut/f"),
        errno.EACCES,
        "chmod",
        lambda c: (sh(c, "chmod 700 /tmp/shut"), c.read("/tmp/shut/f"), sh(c, "chmod 0 /tmp/shut")),
    ),
    "a long name": (lambda c: c.write("/tmp/" + "n" * 300, "x"), errno.ENAMETOOLONG, "shorter", lambda c: None),
    "max_size": (
        lambda c: c.get("/tmp/dir", max_size=1),
        errno.EFBIG,
        "max_size",
        lambda c: c.get("/tmp/dir", max_size=4),
    ),
    "max_files": (
        lambda c: c.list("/tmp/dir", max_files=1),
        errno.EMFILE,
        "max_files",
        lambda c: c.list("/tmp/dir", max_files=2),
    ),
    "max_depth": (
        lambda c: c.list("/tmp/deep", recursive=True, max_depth=1),
        errno.ENAMETOOLONG,
        "max_depth",
        lambda c: c.list("/tmp/deep", recursive=True, max_depth=2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_it_says_helps(name: str, c: isolate.Container) -> None:
    call, number, remedy, helps = CASES[name]
    with pytest.raises(SetupError) as caught:
        call(c)
    assert caught.value.errno == number
    assert caught.value.cause
    assert remedy in (caught.value.remedy or "")
    helps(c)


def test_more_room_helps() -> None:
    def box(size: str) -> isolate.Sandbox:
        paths = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
        root = isolate.Root(*map(isolate.Bind, paths), isolate.Tmpfs("/mnt", size=size), isolate.Proc())
        return isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace(), root)

    with box("64K").open() as c, pytest.raises(SetupError) as caught:
        c.write("/mnt/a", bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert "Tmpfs(size=...)" in (caught.value.remedy or "")
    with box("2M").open() as c:
        c.write("/mnt/a", bytes(1 << 20))
