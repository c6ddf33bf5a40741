"""Whose files are: what the caller shows to be written can be, and no id inside is the root of the host."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import isolate
from isolate import (
    Bind,
    Capabilities,
    ConflictError,
    IdMap,
    Overlay,
    Root,
    Sandbox,
    SetIdFiles,
    SetupError,
    UserNamespace,
    presets,
)
from isolate.namespaces.ids import UNUSED, is_host_root
from tests.mounts.conftest import SYSTEM
from tests.ordinary import as_ordinary_user
from tests.snapshot import SOON, Snapshot

as_root = pytest.mark.skipif(not is_host_root(), reason="needs root")


@pytest.fixture
def mine(place: Path) -> Path:
    """A directory of the caller's, for nobody else."""
    (place / "mine").mkdir(mode=0o755)
    (place / "mine" / "there").write_text("already\n")
    return place / "mine"


def tree(place: Path) -> Path:
    """A root file system: directories that programs are shown in, and a file of root's alone."""
    root = place / "root"
    for name in ("bin", "lib", "lib64", "usr", "proc", "dev", "tmp", "run", "etc", "w"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc" / "shadow").write_text("root's alone\n")
    (root / "etc" / "shadow").chmod(0o600)
    return root


#: The host's programs in such a root; what is a link on the host is a mount here.
PROGRAMS = [Bind(os.path.realpath(path), path) for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
SCRIPT = "cat /out/there && echo new > /out/new && echo more >> /out/there && mkdir /out/d && cat /out/there"


def test_a_writable_directory_of_the_callers_can_be_written(mine: Path) -> None:
    """Whatever the ids inside: as root (then mounted with an id map), and as an ordinary user."""
    result = presets.untrusted(Bind(mine, "/out", read_only=False)).run(["sh", "-c", SCRIPT], text=True)
    assert result.stdout == "already\nalready\nmore\n", result
    for name in ("new", "there", "d"):
        assert (mine / name).stat().st_uid == os.geteuid()


def test_a_writable_file_of_the_callers_too(mine: Path) -> None:
    box = presets.untrusted(Bind(mine / "there", "/out", read_only=False))
    assert box.run(["sh", "-c", "echo more >> /out; cat /out"], text=True).stdout == "already\nmore\n"


@as_root
def test_without_the_map_it_cannot(mine: Path) -> None:
    """The control of the tests above; and what is for everybody, or the program's already, gets no map."""
    box = presets.untrusted(Bind(mine, "/out", read_only=False, idmap=False))
    assert "denied" in (box.run(["sh", "-c", SCRIPT], text=True).stderr or "")
    assert "uid_map" in presets.untrusted(Bind(mine, "/out", read_only=False)).explain().split("gid_map:")[0]
    mine.chmod(0o777)
    assert "CLONE_NEWUSER), uid_map" not in presets.untrusted(Bind(mine, "/out", read_only=False)).explain()
    mine.chmod(0o755)
    os.chown(mine, 65534, 65534)
    assert "CLONE_NEWUSER), uid_map" not in presets.untrusted(Bind(mine, "/out", read_only=False)).explain()
    assert "CLONE_NEWUSER), uid_map" not in presets.untrusted(Bind(mine, "/out")).explain()


@as_root
def test_where_the_file_system_cannot_the_error_says_how() -> None:
    box = presets.untrusted(Bind("/sys/kernel", "/out", read_only=False))
    with pytest.raises(SetupError, match="chown the directory") as caught:
        box.run(["true"])
    assert "idmap=False" in str(caught.value)


@as_root
def test_a_map_of_ones_own(mine: Path) -> None:
    os.chown(mine / "there", 7, 8)
    owners = ["stat", "-c", "%u:%g", "/out/there"]
    box = Sandbox(Root(*SYSTEM, Bind(mine, "/out", idmap=IdMap([(7, 1000, 1)], [(8, 1001, 1)]))))
    assert box.run(owners, text=True).stdout == "1000:1001\n"
    box = Sandbox(Root(*SYSTEM, Overlay("/out", lower=[mine], idmap=IdMap([(7, 1000, 1), (0, 0, 1)], [(8, 1001, 1)]))))
    assert box.run(owners, text=True).stdout == "1000:1001\n"
    with pytest.raises(TypeError, match="idmap must be"):
        Bind(mine, "/out", idmap="root")  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="one mount"):
        Overlay("/o", lower=[mine], upper="/u", work="/w", idmap=IdMap([(0, 0, 1)], [(0, 0, 1)]))


# ---- containers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", ["discard", "deny", "keep"])
def test_a_container_is_not_the_hosts_root(writes: str, place: Path) -> None:
    root = tree(place)
    see = "id -u; cat /etc/shadow; cat /proc/self/uid_map; stat -c %u /etc/shadow"
    result = presets.container(root, *PROGRAMS, writes=writes).run(["/bin/sh", "-c", see], text=True)
    lines = (result.stdout or "").splitlines()
    assert lines[:2] == ["0", "root's alone"], result  # root inside, with all that is root's in its tree
    assert lines[3] == "0"
    outside, count = map(int, lines[2].split()[1:])
    if is_host_root():
        assert outside >= 100000
        assert count == 65536
    else:
        assert (outside, count) == (os.geteuid(), 1)


@as_root
def test_the_hosts_root_where_it_is_asked_for(place: Path) -> None:
    """The control: as it was."""
    box = presets.container(tree(place), *PROGRAMS, extra=[UserNamespace()])
    assert box.run(["/bin/cat", "/proc/self/uid_map"], text=True).stdout.split() == ["0", "0", "1"]  # type: ignore[union-attr]


ATTACK = "cp /bin/id /w/tool && chmod 4755 /w/tool; [ -u /w/tool ] && echo set"


@as_root
def test_no_program_that_makes_a_host_user_root(place: Path) -> None:
    """What a container leaves in a tree that it may change; an ordinary user of the host then executes it."""
    root = tree(place)
    place.chmod(0o755)

    def attacked(*extra: Any) -> tuple[str, str]:
        box = presets.container(root, *PROGRAMS, writes="keep", extra=extra)
        done = box.run(["/bin/sh", "-c", ATTACK], text=True)
        ran = subprocess.run([root / "w" / "tool", "-u"], user=65534, group=65534, capture_output=True, text=True)
        return (done.stdout or "").strip(), ran.stdout.strip()

    assert attacked() == ("", "65534")
    assert attacked(Capabilities.docker()) == ("", "65534")
    # The attack works where it is let.
    assert attacked(SetIdFiles(), UserNamespace()) == ("set", "0")


@as_root
def test_no_capability_of_a_file_for_a_host_user(place: Path) -> None:
    root = tree(place)
    (root / "w" / "tool").write_bytes(Path("/bin/true").read_bytes())
    capability = (0x02000001).to_bytes(4, "little") + (1 << 7).to_bytes(4, "little") + bytes(12)
    script = f"import os; os.setxattr('/w/tool', 'security.capability', {capability!r})"
    import sys

    python = [Bind(path) for path in {sys.prefix, sys.base_prefix} if not path.startswith("/usr")]
    for extra in ((), (UserNamespace(),)):
        box = presets.container(root, *PROGRAMS, *python, writes="keep", extra=[Capabilities.docker(), *extra])
        done = box.run([sys.executable, "-ISc", script], text=True)
        assert "Operation not supported" in (done.stderr or ""), done
        assert "security.capability" not in os.listxattr(root / "w" / "tool")
    box = presets.container(
        root, *PROGRAMS, *python, writes="keep", extra=[Capabilities.docker(), UserNamespace(), SetIdFiles()]
    )
    assert box.run([sys.executable, "-ISc", script]).ok
    assert "security.capability" in os.listxattr(root / "w" / "tool")


@as_root
@pytest.mark.parametrize("writes", ["discard", "deny", "keep"])
def test_another_map_in_the_place_of_a_containers(writes: str, place: Path) -> None:
    """Files are shown by the map that the sandbox has in the end."""
    see = ["/bin/sh", "-c", "cat /etc/shadow; stat -c %u /etc/shadow; cat /proc/self/uid_map"]
    root = tree(place)
    for ranges, shown in (([(0, 0, 65536)], "0 0 65536"), ([(0, 700000, 1000)], "0 700000 1000")):
        user = UserNamespace(map=IdMap(ranges, ranges))
        parts = [
            user if isinstance(part, UserNamespace) else part
            for part in presets.container(root, *PROGRAMS, writes=writes).parts
        ]
        for box in (Sandbox(*parts), presets.container(root, *PROGRAMS, writes=writes, extra=[user])):
            lines = (box.run(see, text=True).stdout or "").splitlines()
            assert lines[:2] == ["root's alone", "0"]
            assert lines[2].split() == shown.split()


@as_root
def test_data_that_is_the_callers_alone_can_be_read_in_a_container(place: Path) -> None:
    data = place / "data"
    data.mkdir(mode=0o700)
    (data / "task").write_text("6 * 7\n")
    box = presets.container(tree(place), *PROGRAMS, Bind(data, "/run"))
    assert box.run(["/bin/cat", "/run/task"], text=True).stdout == "6 * 7\n"


@as_root
def test_ids_that_nobody_has() -> None:
    ids = IdMap.unprivileged()
    for ranges in (ids.uids, ids.gids):
        assert [(r.inside, r.count) for r in ranges] == [(0, 65536)]
        assert ranges[0].outside == UNUSED or ranges[0].outside >= 65536


def test_an_ordinary_user_has_none_of_them_and_a_file_is_no_root() -> None:
    code = "import isolate\ntry: isolate.IdMap.unprivileged()\nexcept isolate.SetupError as e: print(e.errno)"
    assert as_ordinary_user(code) == "1\n"
    with pytest.raises(SetupError, match="directory that holds") as caught:
        presets.container("/etc/passwd")
    assert isinstance(caught.value, NotADirectoryError)


@as_root
def test_nothing_is_left_of_the_maps(mine: Path) -> None:
    before = Snapshot.take()
    box = presets.untrusted(Bind(mine, "/out", read_only=False))
    for _ in range(5):
        assert box.run(["true"]).ok
    before.compare()
    with pytest.raises(SetupError):
        presets.untrusted(Bind(mine, "/out", read_only=False), Bind("/nowhere")).run(["true"])
    deadline = time.monotonic() + SOON
    while (left := [p for p in Path("/proc").glob("[0-9]*/comm") if _is_ours(p)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left
    assert stat.S_IMODE(mine.stat().st_mode) == 0o755
    assert isolate.__version__


def _is_ours(comm: Path) -> bool:
    try:
        parent = next(line for line in (comm.parent / "status").read_text().split("\n") if line.startswith("PPid"))
        return comm.read_text().startswith("isolate") and int(parent.split()[1]) == os.getpid()
    except OSError:
        return False
