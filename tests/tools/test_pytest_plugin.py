"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def outcome(
    tests: str, tmp_path: Path, *options: str, uid: int | None = None, temporary: Path | None = None
) -> tuple[dict[str, int], str]:
    """Run tests with the plugin: {"passed": 2, ...}, and what was printed."""
    (tmp_path / "test_it.py").write_text(tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents[:3]:
        if parent.stat().st_uid == os.getuid() and str(parent) != "/tmp":
            os.chmod(parent, 0o755)
    plugin = [] if registered() else ["-p", "isolate.tools.pytest_plugin"]
    args = [sys.executable, "-m", "pytest", *without(*options), *plugin, "-q", "-rs", *options, "test_it.py"]
    who: dict[str, object] = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    base = tmp_path / "base"
    if temporary is not None:
        env["PYTEST_DEBUG_TEMPROOT"] = str(temporary)
    elif uid is not None:
        base.mkdir()
        os.chown(base, uid, uid)
        args += ["--basetemp", str(base / "t")]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=False, env=env, **who)  # type: ignore[call-overload]
    text = done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    return {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}, text


def without(*options: str) -> list[str]:
    """Other plugins are not loaded: most of the time of a short run would be theirs."""
    others = ["cacheprovider", "hypothesispytest", "anyio", "timeout", *([] if "-n" in options else ["xdist"])]
    return [word for name in others for word in ("-p", f"no:{name}")]


def registered() -> bool:
    return any(e.value == "isolate.tools.pytest_plugin" for e in importlib.metadata.entry_points(group="pytest11"))


NETWORK = """
import os, socket, threading

OUTSIDE = os.readlink("/proc/thread-self/ns/net")

def listen():
    return socket.create_server(("127.0.0.1", 7171))

def test_a(netns):
    listen()
    names = [name for _, name in socket.if_nameindex()]
    assert "lo" in names and "eth0" not in names
    inside = os.readlink("/proc/thread-self/ns/net")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(os.readlink("/proc/thread-self/ns/net")))
    thread.start(); thread.join()
    assert seen == [inside]
    assert str(netns.namespace.identity.inode) in inside

def test_b(netns):
    listen()
    assert os.readlink("/proc/thread-self/ns/net") != OUTSIDE

def test_wire(netns):
    other = netns.peer()
    with other.namespace:
        server = socket.create_server((other.address, 80))
    client = socket.create_connection((netns.peer_address, 80), timeout=30)
    server.accept()[0].sendall(b"over the wire")
    assert client.recv(99) == b"over the wire"
"""
REST = """
import os, socket, subprocess

def test_fs(isolated_fs):
    (isolated_fs / "x").write_text("1")
    assert os.getcwd() == str(isolated_fs) == os.environ["HOME"]
    assert os.path.ismount(isolated_fs)
    import tempfile
    assert tempfile.gettempdir() == str(isolated_fs)

def test_fs_is_gone():
    assert not [line for line in open("/proc/thread-self/mountinfo") if "test_fs0" in line]

def test_sandbox(sandbox):
    import isolate
    assert sandbox.run(["hostname"], text=True).stdout == "sandbox\\n"
    assert (sandbox + isolate.Rlimits(nofile=20)).run(["sh", "-c", "ulimit -n"], text=True).stdout == "20\\n"
"""
CGROUP = """
import os
import isolate
def test_cgroup(cgroup):
    child = isolate.Sandbox(cgroup).spawn(["sleep", "100"])
    assert child.pid in cgroup.processes()
    os.environ["PATH"]  # closed with the group
    child.close()
"""


@root
def test_fixtures_as_root(tmp_path: Path) -> None:
    found, text = outcome(NETWORK + REST + CGROUP, tmp_path)
    assert found == {"passed": 7}, text


def test_fixtures_as_an_ordinary_user(tmp_path: Path) -> None:
    uid = NOBODY if os.geteuid() == 0 else None
    found, text = outcome(NETWORK + REST, tmp_path, "--isolate-user", uid=uid)
    assert found == {"passed": 6}, text


@root
def test_two_users_without_a_name_do_not_share_a_directory(tmp_path: Path) -> None:
    """Inside both are root by number: pytest would put both into the directory of "root", and refuse the second."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    test = "import os\ndef test(tmp_path):\n    assert os.stat(tmp_path).st_uid == 0\n"
    for number, uid in enumerate((471101, 471102)):
        (tmp_path / str(number)).mkdir()
        found, text = outcome(test, tmp_path / str(number), "--isolate-user", uid=uid, temporary=shared)
        assert found == {"passed": 1}, text
    assert sorted(os.listdir(shared)) == ["pytest-of-uid-471101", "pytest-of-uid-471102"]


@root
def test_an_ordinary_user_without_the_option_skips_or_fails(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    found, text = outcome(NETWORK, tmp_path / "1", uid=NOBODY)
    assert found == {"skipped": 3}, text
    assert "--isolate-user" in text
    found, text = outcome(NETWORK, tmp_path / "2", "--isolate-strict", uid=NOBODY)
    assert found == {"error": 3}, text


@root
def test_a_network_that_cannot_be_made_skips_or_fails(tmp_path: Path) -> None:
    code = "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\ndef test(lan): ...\n"
    for option, wanted in (("--strict-markers", "skipped"), ("--isolate-strict", "error")):
        (tmp_path / wanted).mkdir()
        found, text = outcome(code, tmp_path / wanted, option, uid=NOBODY)
        assert found == {wanted: 1}, text


FIXED = """
import os, pathlib, socket, pytest, time
@pytest.mark.parametrize("n", range(2))
def test_port(n):
    mark = f"{os.environ['PYTEST_XDIST_WORKER']}-{n}"
    both = [pathlib.Path(__file__).parent / f"gw{i}-{n}" for i in range(2)]
    try:
        server = socket.create_server(("127.0.0.1", 7272))
    finally:
        (pathlib.Path(__file__).parent / mark).touch()
    with server:  # until the other worker has tried it as well
        until = time.monotonic() + 60
        while not all(path.exists() for path in both):
            assert time.monotonic() < until
            time.sleep(0.01)
"""


@root
@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="needs pytest-xdist")
@pytest.mark.parametrize("scope", [pytest.param("worker", marks=pytest.mark.slow), "test"])
def test_a_fixed_port_in_several_workers(tmp_path: Path, scope: str) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    workers = ("-n", "2", "--dist", "each")  # each runs all of them
    found, text = outcome(FIXED, tmp_path / "1", *workers, f"--isolate-net={scope}")
    assert found == {"passed": 4}, text
    found, text = outcome(FIXED, tmp_path / "2", *workers)  # the control
    assert found == {"passed": 2, "failed": 2}, text


@root
def test_a_network_for_each_test(tmp_path: Path) -> None:
    code = """
import os
seen = {os.readlink("/proc/thread-self/ns/net")}
def test_1(): seen.add(os.readlink("/proc/thread-self/ns/net")); assert len(seen) == 2
def test_2(): seen.add(os.readlink("/proc/thread-self/ns/net")); assert len(seen) == 3
"""
    found, text = outcome(code, tmp_path, "--isolate-net=test")
    assert found == {"passed": 2}, text


def test_the_marker(tmp_path: Path) -> None:
    code = """
import pytest
import isolate.tools.doctor
def abilities():
    yield isolate.tools.doctor.Ability("net", "networks", True)
    yield isolate.tools.doctor.Ability("overlay", "layers", False, "the kernel has none", "another kernel")
isolate.tools.doctor.abilities = lambda: tuple(abilities())
@pytest.mark.isolate_requires("net")
def test_can(): pass
@pytest.mark.isolate_requires("net", "overlay")
def test_cannot(): pass
"""
    for name in "12":
        (tmp_path / name).mkdir()
    found, text = outcome(code, tmp_path / "1", "--strict-markers")
    assert found == {"passed": 1, "skipped": 1}, text
    assert "overlay: the kernel has none (another kernel)" in text
    misspelled = '@pytest.mark.isolate_requires("net", "overlai")\ndef test_misspelled(): pass\n'
    found, text = outcome(code + misspelled, tmp_path / "2", "--isolate-strict")
    assert found == {"passed": 1, "error": 2}, text
    assert "did you mean 'overlay'" in text


def test_it_is_light(tmp_path: Path) -> None:
    code = """
import sys
def test_nothing_is_imported():
    ours = {name for name in sys.modules if name.startswith("isolate.")}
    modules = ("", ".pytest_hooks", ".pytest_network", ".pytest_plugin", ".pytest_refusal")
    plugin = {f"isolate.tools{name}" for name in modules}
    assert ours == plugin | {"isolate.kernel", "isolate.kernel.lazy"}  # by which the others are imported when used
"""
    found, text = outcome(code, tmp_path)
    assert found == {"passed": 1}, text


# ---- other versions of pytest --------------------------------------------------------------------------------------

OLD = """
import pytest, sys
real = pytest.hookimpl
def hookimpl(*args, **options):
    # pytest's own plugins are of its version; ours meets an older one.
    ours = sys._getframe(1).f_globals["__name__"].startswith("isolate")
    if ours and (sys.argv[1] != "pluggy 1.0" or "wrapper" in options):
        raise TypeError("unexpected keyword")
    return real(*args, **options)
pytest.hookimpl = hookimpl
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("version", ["pluggy 1.0", "one that lacks more"])
def test_39_an_older_pytest_is_not_broken(version: str, tmp_path: Path) -> None:
    """The plugin works where it can; where it cannot, it says so in the header and the run goes on."""
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    plugin = [] if registered() else ["-p", "isolate.tools.pytest_plugin"]
    options = [*without(), *plugin]
    done = subprocess.run(
        [sys.executable, "-c", OLD, version, *options, "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert ("isolate: its plugin is off" in done.stdout) == (version != "pluggy 1.0")


def debians() -> str | None:
    """Debian 12's own pytest (7.2.1, pluggy 1.0.0), where it is installed."""
    path = "/usr/lib/python3/dist-packages"
    return path if os.path.isdir(f"{path}/_pytest") and os.path.isdir(f"{path}/pluggy") else None


@root
@pytest.mark.skipif(debians() is None, reason="python3-pytest of the distribution is not installed")
def test_39_the_distributions_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(NETWORK)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "-p", "no:cacheprovider", "-p", "isolate.tools.pytest_plugin", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(debians()),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
