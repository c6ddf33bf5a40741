"""What programs change in an overlay in memory is told, whatever they leave there, and the layers below stay."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from isolate import Bind, Dev, Dir, File, Overlay, PidNamespace, Proc, Root, Sandbox, Symlink, Tmpfs, UserNamespace
from isolate.sandbox import changed
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from pathlib import Path

    from isolate.mounts.changes import Changes
    from tests.engine.leaks import Snapshot


def system() -> list[Bind | Symlink]:
    """The host's programs."""
    found: list[Bind | Symlink] = []
    for path in ("/usr", "/bin", "/lib", "/lib64"):
        if os.path.islink(path):
            found.append(Symlink(os.readlink(path), path))
        elif os.path.isdir(path):
            found.append(Bind(path))
    return found


def box_of(*lower: Path) -> Sandbox:
    entries = (*system(), Proc(), Dev(), Tmpfs("/tmp"), Dir("/var/empty"), File("/etc/name", "x"))
    return Sandbox(UserNamespace(), PidNamespace(), Root(Overlay("/", lower=lower), *entries))


def rows(found: Changes | None) -> list[str]:
    assert found is not None
    return [str(change) for change in found]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files that are there before. Owned by whoever root inside is, since only that may change them."""
    top = tmp_path / "tree"
    for name in ("a", "b", "same", "dir/x", "dir/y", "gone/z"):
        (top / "w" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "w" / name).write_text(name)
    (top / "w" / "link").symlink_to("a")
    return top


def test_each_kind_of_change(tree: Path, clean: Snapshot) -> None:
    box = box_of(tree)
    assert rows(box.run(["true"]).changes) == []  # what the root's entries made is no change of the program's
    code = (
        "cd /w; echo new > new; echo A > a; rm b; rm -r gone; chmod 600 same; rm -r dir; mkdir dir; echo x > dir/n;"
        "mkdir -p deep/er; ln -sf b link; mkfifo pipe; cat dir/n >/dev/null; touch -r new \"$(printf 'l\\n\\377')\";"
        "echo 1 > /var/empty/file"
    )
    result = box.run(["sh", "-c", code])
    assert result.ok, result
    assert rows(result.changes) == [
        "A /var",
        "A /var/empty",
        "A /var/empty/file",
        "C /w/a",
        "D /w/b",
        "A /w/deep",
        "A /w/deep/er",
        "A /w/dir/n",
        "D /w/dir/x",
        "D /w/dir/y",
        "D /w/gone",
        "A /w/l\\n\\xff",
        "C /w/link",
        "A /w/new",
        "A /w/pipe",
        "M /w/same",
    ]
    assert result.changes is not None
    assert result.changes.complete
    assert ["modified", "/w/a"] in json.loads(result.json())["changes"]
    assert (tree / "w/b").read_text() == "b"  # the layer below is as it was
    assert rows(box.run(["true"]).changes) == []  # and so is the next start's


def test_without_such_an_overlay_there_is_none(tree: Path, tmp_path: Path) -> None:
    assert Sandbox().run(["true"]).changes is None
    assert json.loads(Sandbox().run(["true"]).json())["changes"] is None
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    kept = Overlay("/", lower=[tree], upper=tmp_path / "upper", work=tmp_path / "work")
    box = Sandbox(UserNamespace(), PidNamespace(), Root(kept, *system(), Dev()))
    assert box.run(["sh", "-c", "echo 1 > /w/new"]).changes is None
    assert (tmp_path / "upper/w/new").exists()


def test_the_same_by_every_verb(tree: Path) -> None:
    box, command = box_of(tree), ["sh", "-c", "echo A > /w/a"]
    assert rows(asyncio.run(box.arun(command)).changes) == ["C /w/a"]
    with box.spawn(command) as process:
        assert rows(process.result().changes) == ["C /w/a"]
    with box.prepare(command) as prepared, prepared.start() as process:
        assert rows(process.result().changes) == ["C /w/a"]

    async def spawned() -> list[str]:
        async with await box.aspawn(command) as process:
            return rows((await process.result()).changes)

    assert asyncio.run(spawned()) == ["C /w/a"]
    with box.open() as c:
        assert rows(c.changes()) == []
        assert c.run(command).changes is None  # it stays for the next
        c.write("/w/b", "B")
        assert rows(c.changes()) == ["C /w/a", "C /w/b"]


def test_the_same_contents_are_no_change(tree: Path) -> None:
    """Written again, with the time of before: nothing differs. Other bytes of the same number with it do."""
    box = box_of(tree)
    same = "cp -p a ../copy; cat ../copy > a; touch -r ../copy a; rm ../copy"
    assert rows(box.run(["sh", "-c", f"cd /w; {same}"]).changes) == []
    other = "cp -p a ../copy; echo -n X > a; touch -r ../copy a; rm ../copy"
    assert rows(box.run(["sh", "-c", f"cd /w; {other}"]).changes) == ["C /w/a"]


def test_layers_below_hide_one_another(tree: Path, tmp_path: Path) -> None:
    """A file of the upper layer hides a directory of the lower one, so what is made in its place is another kind."""
    top = tmp_path / "top"
    (top / "w").mkdir(parents=True)
    (top / "w/dir").write_text("a file")
    box = box_of(top, tree)
    code = "cd /w; cat dir && rm dir && mkdir dir && echo 1 > dir/x && echo 2 > gone/z"
    assert rows(box.run(["sh", "-c", code]).changes) == ["C /w/dir", "A /w/dir/x", "C /w/gone/z"]


def test_links_of_the_program_lead_nowhere(tree: Path, tmp_path: Path) -> None:
    """It puts links where directories were, and names that lead out: all of them are told, none is followed."""
    (tmp_path / "secret").write_text("s")
    code = f"cd /w; rm -r dir gone; ln -s {tmp_path} dir; ln -s / gone; mkdir up; ln -s ../../../../../.. up/up"
    found = rows(box_of(tree).run(["sh", "-c", code]).changes)
    assert found == ["C /w/dir", "C /w/gone", "A /w/up", "A /w/up/up"]


def test_there_may_be_too_much(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = box_of(tree)
    monkeypatch.setattr(changed, "FILES", 50)
    many = box.run(["sh", "-c", "cd /w; for i in $(seq 100); do echo > n$i; done"]).changes
    assert many is not None
    assert not many.complete
    assert 0 < len(many) <= 50
    few = box.run(["sh", "-c", "echo > /w/new"]).changes  # the control
    assert few is not None
    assert few.complete
    # More bytes than are compared: told as changed, whether they are or not.
    monkeypatch.setattr(changed, "BYTES", 0)
    assert rows(box.run(["sh", "-c", "cat /w/a > /w/n; cat /w/n > /w/a; rm /w/n"]).changes) == ["C /w/a"]


def test_directories_deeper_than_a_path_can_say(tree: Path) -> None:
    code = (
        "import os\nos.chdir('/w')\n"
        "for _ in range(400): os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('bottom', 'w').close()"
    )
    result = box_of(tree).run(["/usr/bin/python3", "-c", code])
    assert result.ok, result
    assert result.changes is not None
    assert not result.changes.complete
    assert max(len(change.path) for change in result.changes) < 4096


def test_a_sparse_file_is_not_read_to_its_end(tree: Path) -> None:
    with (tree / "w/holes").open("wb") as file:
        file.truncate(1 << 40)
    code = "f = open('/w/holes', 'r+b'); f.truncate(1 << 39); f.truncate(1 << 40)"
    box = box_of(tree)
    # Whether there is room for it is the host's affair: if its file system tells holes, none is needed.
    result = box.run(["/usr/bin/python3", "-c", code], timeout=20)
    if result.ok:
        assert rows(result.changes) == ["C /w/holes"]


def test_a_descriptor_less_is_an_error_and_no_leak(tree: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    box = box_of(tree)
    assert box.run(["true"]).ok
    inside = max(int(name) for name in os.listdir("/proc/self/fd"))
    seen = set()
    try:
        for more in range(1, 16):
            resource.setrlimit(resource.RLIMIT_NOFILE, (inside + more, hard))
            try:
                result = box.run(["sh", "-c", "echo 1 > /w/n"])
                seen.add("ran")
                assert rows(result.changes) == ["A /w/n"] or not result.changes.complete  # type: ignore[union-attr]
            except OSError as error:
                seen.add(errno.errorcode[error.errno or 0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen <= {"ran", "EMFILE"}
    assert rows(box.run(["sh", "-c", "echo 1 > /w/n"]).changes) == ["A /w/n"]


CLOSED = """
import os, tempfile
from isolate import *
whole = tempfile.TemporaryDirectory()
top = whole.name
os.makedirs(top + "/w/dir")
open(top + "/w/a", "w").write("a")
links = [Symlink(os.readlink(p), p) if os.path.islink(p) else Bind(p)
         for p in ("/usr", "/bin", "/lib", "/lib64") if os.path.lexists(p)]
box = Sandbox(UserNamespace(), PidNamespace(), Root(Overlay("/", lower=[top]), *links, Dev()))
code = "cd /w; echo 1 > dir/in; mkdir -m 000 shut; echo 2 > a; chmod 000 a; chmod 000 dir"
result = box.run(["sh", "-c", code])
assert result.ok, result
print(*result.changes, result.changes.complete, sep="|")
with box.open() as c:
    c.run(["sh", "-c", code]).check()
    found = c.changes()
    print(found.complete, str(found[0]))
whole.cleanup()
"""


def test_whoever_looks_is_no_root() -> None:
    """What a program closed to its owner is opened again once all has ended; not while it runs."""
    out = as_ordinary_user(CLOSED).splitlines()
    assert out == ["C /w/a|M /w/dir|A /w/dir/in|A /w/shut|True", "False C /w/a"]


def test_modes_of_a_tree_stay_out_of_it(tree: Path) -> None:
    """The directory for changes has the mode of the layer's top, which is no change."""
    tree.chmod(0o711)
    assert rows(box_of(tree).run(["true"]).changes) == []
    assert stat.S_IMODE(tree.stat().st_mode) == 0o711


@pytest.mark.skipif(os.geteuid() != 0, reason="without a user namespace overlays are root's")
def test_a_mark_of_the_program_s_own_removes_nothing(tree: Path) -> None:
    """Beside a user namespace's overlay, to which user.overlay.opaque is no attribute of the program's."""
    for name in ("w", "w/dir"):
        os.chown(tree / name, 0, 0)
    entries = (*system(), Proc(), Dev(), Tmpfs("/tmp"))
    box = Sandbox(PidNamespace(), Root(Overlay("/", lower=[tree]), *entries))
    marked = "import os\nfor d in ('/w', '/w/dir'): os.setxattr(d, 'user.overlay.opaque', b'y')\nos.stat('/w/dir/x')"
    result = box.run(["/usr/bin/python3", "-c", marked])
    if b"Operation not supported" in result.stderr:
        pytest.skip("this kernel's tmpfs has no attributes of users (Linux 6.6)")
    assert result.ok, result
    assert [row for row in rows(result.changes) if row.startswith("D")] == []
    made_anew = "cd /w; rm -r dir && mkdir dir && echo x > dir/x"  # the control
    assert "D /w/dir/y" in rows(box.run(["sh", "-c", made_anew]).changes)


def test_long_paths_take_no_memory_of_the_callers(tree: Path) -> None:
    code = (
        "import os\nos.chdir('/w')\n"
        "for _ in range(14): os.mkdir('d' * 250); os.chdir('d' * 250)\n"
        "for i in range({}): os.mkdir(f'{{i:0200}}')"
    )
    for count, whole in ((50, True), (5000, False)):
        found = box_of(tree).run(["/usr/bin/python3", "-c", code.format(count)]).changes
        assert found is not None
        assert found.complete is whole
        assert sum(len(change.path) for change in found) <= changed.PATHS
