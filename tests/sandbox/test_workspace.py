"""A workspace: written by programs under any id map, read by the caller whatever was left, held to its size."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    Bind,
    Credentials,
    IdMap,
    PidNamespace,
    Proc,
    Root,
    Sandbox,
    SetupError,
    Symlink,
    UserNamespace,
    Workspace,
    presets,
)
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from pathlib import Path

    from tests.snapshot import Snapshot

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else inside")
ENTRIES = (Bind("/usr"), *(Symlink(f"usr/{name}", f"/{name}") for name in ("bin", "lib", "lib64")), Proc())
WHO: dict[str, tuple[Any, ...]] = {
    "as it is": (),
    "a user namespace": (UserNamespace(),),
    "another uid": (Credentials(uid=1234, gid=1234),),
    "mapped to nobody": (UserNamespace(map=IdMap.single(0, 0, host_uid=65534, host_gid=65534)),),
    "a range, and not its root": (
        UserNamespace(map=IdMap([(0, 100000, 1000)], [(0, 100000, 1000)])),
        Credentials(uid=5, gid=5),
    ),
}
SCRIPT = (
    "cat given sub/given && echo more >>given && mkdir out out/deep && echo result >out/deep/file"
    " && ln -s /etc/passwd link && mkfifo fifo && chmod 0 out/deep/file out/deep out given"
)


def holds() -> list[str]:
    try:
        Workspace(hold="memory").close()
    except SetupError:
        return ["measured"]
    return ["memory", "measured"]


@root_only
@pytest.mark.parametrize("hold", ["memory", "measured"])
@pytest.mark.parametrize("name", [name for name in WHO if name != "a range, and not its root"])
def test_any_id_map_writes_and_the_caller_reads(name: str, hold: str, clean: Snapshot) -> None:
    if hold not in holds():
        pytest.skip("a mount that is attached nowhere can be shown from Linux 6.15 on")
    with Workspace(contents={"given": "one\n", "sub/given": b"two\n"}, hold=hold) as work:
        assert work.held == hold
        box = Sandbox(PidNamespace(), *WHO[name], Root(*ENTRIES, work))
        result = box.run(["sh", "-c", SCRIPT], cwd="/workspace", text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, "one\ntwo\n", "")
        assert work.read("given") == b"one\nmore\n"
        assert work.get("out")["/out/deep/file"] == b"result\n"
        kinds = {info.path: info.kind for info in work.list(recursive=True)}
        assert (kinds["/link"], kinds["/fifo"], kinds["/out/deep/file"]) == ("symlink", "fifo", "file")
        for path in ("link", "fifo"):  # led nowhere, and waited for nobody
            with pytest.raises(SetupError):
                work.read(path)


def test_an_ordinary_user_reads_what_was_closed() -> None:
    code = (
        "from isolate import *; from isolate import presets\n"
        "with Workspace(contents={'given': 'one'}) as work:\n"
        f"    result = presets.untrusted(work).run(['sh', '-c', {SCRIPT!r}], cwd='/workspace', text=True)\n"
        "    assert result.ok, result\n"
        "    print(work.held, work.read('given'), work.get('out'), work.usage().within)\n"
        "    path = work.path\n"
        "import os; assert not os.path.exists(path)\n"
    ).replace("cat given sub/given", "cat given")
    assert as_ordinary_user(code) == "measured b'onemore\\n' {'/out/deep/file': b'result\\n'} True\n"


@root_only
def test_it_is_held_to_its_size() -> None:
    if "memory" not in holds():
        pytest.skip("a mount that is attached nowhere can be shown from Linux 6.15 on")
    script = "for i in $(seq 50); do : >f$i || break; done; dd if=/dev/zero of=big bs=64k count=64"
    with Workspace(size="1M", files=20) as work:
        box = presets.untrusted(work)
        result = box.run(["sh", "-c", script], cwd="/workspace", text=True)
        assert result.stderr is not None
        assert "No space left" in result.stderr
        usage = work.usage()
        assert usage.within
        assert usage.files <= 20
        assert usage.size <= 1 << 20
        # A second program finds what the first one left.
        assert b"f1\n" in (box.run(["ls"], cwd="/workspace").stdout or b"")
    with Workspace(size="1M", files=20, hold="measured") as work:  # the control: nobody holds it, and it is told
        presets.untrusted(work).run(["sh", "-c", script], cwd="/workspace")
        usage = work.usage()
        assert not usage.within
        assert usage.files > 20
        assert usage.size > 1 << 20


def test_a_directory_of_the_callers(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("a")
    place = tmp_path / "place"
    place.mkdir()
    with Workspace(place, target="/w", contents=tmp_path / "tree") as work:
        assert work.path == str(place)
        box = Sandbox(UserNamespace(), PidNamespace(), Root(*ENTRIES, work))
        assert box.run(["sh", "-c", "cat /w/a; echo b >/w/b"]).stdout == b"a"
    assert (place / "b").read_text() == "b\n"
    with pytest.raises(ValueError, match="closed"):
        work.read("b")


def test_its_errors_name_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with Workspace(tmp_path) as work:
        calls = (
            lambda: work.read("no"),
            lambda: work.get("no"),
            lambda: work.list("no"),
            lambda: work.write("no/a", b""),
        )
        for call in (
            *calls,
            lambda: work.read("link"),
            lambda: work.put({"link/a": b""}),
            lambda: work.get("/", max_files=1),
        ):
            work.write("a", b"")
            work.write("b", b"")
            with pytest.raises(SetupError) as told:
                call()
            assert told.value.part == "Workspace"
            assert "the workspace" in str(told.value)
            assert "ontainer" not in str(told.value)


def test_nothing_is_left(clean: Snapshot) -> None:
    for _ in range(3):
        with Workspace(contents={"a": "b"}) as work:
            path = work.path
            presets.untrusted(work).run(["sh", "-c", "mkdir -p x/y; chmod 0 x"], cwd="/workspace")
        assert path is None or not os.path.exists(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hold": "firmly"},
        {"size": "1"},
        {"files": "many"},
        {"files": 0},
        {"target": "relative"},
        {"hold": "memory", "path": "/tmp"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Workspace(**wrong)


DEEP = "import os\nos.chdir('/workspace')\nfor _ in range({}): os.mkdir('d'); os.chdir('d')"


@pytest.mark.parametrize("depth", [100, 3000])
def test_however_deep_it_is_it_goes(depth: int, clean: Snapshot) -> None:
    with Workspace(hold="measured") as work:
        result = presets.untrusted(work).run(["/usr/bin/python3", "-c", DEEP.format(depth)])
        assert result.ok, result
        place = work.path
        assert place is not None
        if depth == 100:
            assert work.usage().files == depth
        else:
            with pytest.raises(SetupError, match="deeper than"):
                work.usage()
    assert not os.path.exists(place)


def test_a_deep_one_of_an_ordinary_user_goes() -> None:
    as_ordinary_user(
        f"""
import os
from isolate import SetupError, Workspace, presets
with Workspace() as work:
    assert presets.untrusted(work).run(["/usr/bin/python3", "-c", {DEEP.format(1500)!r}]).ok
    try:
        work.read("nothing")
    except SetupError as error:
        assert "deeper than" in str(error), error
    else:
        raise AssertionError
assert not os.path.exists(work.path)
"""
    )


SWAPPED = """
import contextlib, os, shutil, sys, tempfile
from isolate import Workspace

CALLS = ("open", "os.chmod", "os.remove", "os.rmdir", "os.scandir", "os.rename", "os.listdir")
here, victim, seen, when = "", "", 0, frozenset()

def exchange(place):
    with contextlib.suppress(OSError):
        if os.path.islink(place):
            os.unlink(place)
            os.rename(place + "-", place)
        else:
            os.rename(place, place + "-")
            os.symlink(victim, place)

def hook(event, args):
    # Before a call of whoever removes: what a program does that still runs, and always at the worst instant.
    global seen, here
    if here and event in CALLS:
        seen += 1
        if seen in when:
            place, here = here, ""
            exchange(place)
            here = place

sys.addaudithook(hook)

def naive(path):
    for name in os.listdir(path):
        below = os.path.join(path, name)
        if os.path.isdir(below) and not os.path.islink(below):
            os.chmod(below, 0o700)
            naive(below)
        else:
            os.unlink(below)
    os.rmdir(path)

def led_outside(remove, path, instants):
    # A directory that is closed to its owner, as is what the link leads to: who removes them needs rights first.
    global here, victim, seen, when
    victim = tempfile.mkdtemp()
    os.mkdir(victim + "/file")
    os.chmod(victim, 0o500)
    os.makedirs(path + "/a/b")
    os.chmod(path + "/a/b", 0)
    os.chmod(path + "/a", 0)
    here, seen, when = path + "/a", 0, frozenset(instants)
    try:
        remove()
    finally:
        here = ""
    led = os.stat(victim).st_mode & 0o777 != 0o500 or not os.path.exists(victim + "/file")
    left = os.path.exists(path)
    for place in (victim, path + "/a", path + "/a-", path + "/a/b", path + "/a-/b"):
        if os.path.isdir(place) and not os.path.islink(place):
            os.chmod(place, 0o700)
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(victim)
    return led, left, seen

def tried(make):
    found, last, first = [], 1, 1
    while first <= last:
        for second in range(first, first + 4):  # and back, or never (the same twice)
            remove, path = make()
            led, left, calls = led_outside(remove, path, (first, second))
            assert make is control or not left, (first, second)
            last = max(last, calls)
            if led:
                found.append((first, second))
        first += 1
    return found, last

def workspace():
    work = Workspace(hold="measured")
    work.__enter__()
    return work.close, work.path

def control():
    path = tempfile.mkdtemp()
    def remove():
        with contextlib.suppress(OSError):
            naive(path)
    return remove, path
"""


def test_removing_is_not_led_outside_by_who_still_runs() -> None:
    """A directory becomes a link, and a directory again, before any two calls of whoever removes. Control: by paths."""
    as_ordinary_user(
        SWAPPED
        + """
led, calls = tried(workspace)
assert not led, led
assert calls > 8, calls
led, _ = tried(control)
assert led  # the control
"""
    )
