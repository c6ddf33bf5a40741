"""Landlock: every right denied without its rule and allowed with it, in the kernel."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate import (
    Bind,
    Capabilities,
    ConflictError,
    Credentials,
    Landlock,
    NoNewPrivs,
    PidNamespace,
    Root,
    Sandbox,
    SetupError,
    Symlink,
    Tmpfs,
    UnsupportedError,
    UserNamespace,
)
from isolate.landlock.part import landlock_abi
from isolate.landlock.rights import FILE, READ, WRITE, FsAccess, LandlockScope, PathRule
from tests.ordinary import as_ordinary_user
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ABI = landlock_abi()
needs_landlock = pytest.mark.skipif(ABI == 0, reason="this kernel has no Landlock")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def needs_abi(version: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(version > ABI, reason=f"needs ABI {version}, this kernel has {ABI}")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may use, whose first component holds nothing that Python needs."""
    with tempfile.TemporaryDirectory(prefix="isolate-test-", dir="/tmp") as name:
        os.chmod(name, 0o777)
        yield Path(name)


def elsewhere() -> list[str]:
    """All that is at the top but /tmp and what is none of a program's business."""
    return [f"/{name}" for name in os.listdir("/") if name != "tmp" and (os.path.isdir(f"/{name}"))]


def python(code: str, *parts: object, stdin: str = "") -> str:
    """What the code prints inside; the name of the error if it ends in an OSError."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    wrapped = f"import os, socket, fcntl, signal, subprocess, sys\ntry:\n{body}"
    wrapped += "except OSError as error:\n    print(type(error).__name__, error.errno)\nelse:\n    print('done')\n"
    result = Sandbox(*parts).run([sys.executable, "-ISc", wrapped], text=True, input=stdin)  # type: ignore[arg-type]
    assert result.returncode == 0, result.stderr
    return str(result.stdout.strip())


DENIED = "PermissionError 13"

# ---- values ----------------------------------------------------------------------------------------------------------


def test_the_rights_of_each_abi() -> None:
    counts = {0: 0, 1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16, 8: 16, 9: 17, 99: 17}
    for version, count in counts.items():
        assert bin(FsAccess.abi(version)).count("1") == count
        assert FsAccess.abi(version - 1) & ~FsAccess.abi(version) == 0
    assert FsAccess.abi(9) == READ | WRITE | FILE | FsAccess.MAKE_CHAR | FsAccess.MAKE_BLOCK


def test_numbers_are_the_kernels() -> None:
    header = Path("/usr/include/linux/landlock.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    found = 0
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) > 3 and words[1].startswith("LANDLOCK_ACCESS_FS_"):
            assert FsAccess[words[1].removeprefix("LANDLOCK_ACCESS_FS_")] == 1 << int(words[-1].rstrip(")"))
            found += 1
    assert found >= 13


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "nothing to restrict"),
        ({"read": "/usr"}, TypeError, "sequence of paths"),
        ({"read": ["usr"]}, ValueError, "must be absolute"),
        ({"read": ["/usr\0"]}, ValueError, "NUL"),
        ({"rules": [("/usr", "raed")]}, ValueError, "did you mean 'read'"),
        ({"rules": [("/usr", ())]}, ValueError, "without rights"),
        ({"rules": [("/usr", 4)]}, TypeError, "not the number"),
        ({"read": ["/usr"], "handled": "make_dir"}, ConflictError, "not among the rights handled"),
        ({"bind_tcp": [65536]}, ValueError, "ports in 0"),
        ({"bind_tcp": [True]}, ValueError, "ports in 0"),
        ({"connect_tcp": 80}, TypeError, "sequence of ports"),
        ({"scopes": ["signals"]}, ValueError, "did you mean 'signal'"),
        ({"scopes": "signal"}, TypeError, "sequence of names"),
        ({"bind_tcp": (), "log": "of"}, ValueError, "did you mean 'off'"),
    ],
)
def test_wrong_values(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Landlock(**arguments)  # type: ignore[arg-type]


rights = st.integers(1, 2**17 - 1).map(FsAccess)
rules = st.builds(PathRule, st.sampled_from(["/", "/a b", "/é", b"/\xff"]), rights, st.booleans())


@given(
    st.lists(rules, max_size=3),
    st.none() | st.lists(st.integers(0, 65535), max_size=3),
    st.integers(1, 3).map(LandlockScope),
    st.sampled_from(["default", "off", "all"]),
    st.booleans(),
)
def test_values(
    given_rules: list[PathRule], ports: list[int] | None, scopes: LandlockScope, log: str, required: bool
) -> None:
    value = Landlock(rules=given_rules, bind_tcp=ports, scopes=scopes, log=log, required=required)
    assert eval(repr(value)) == value
    assert hash(eval(repr(value))) == hash(value)
    assert value.missing(9) == ()
    assert set(value.missing(4)) <= set(value.missing(1)) <= set(value.missing(0))


def test_what_an_older_kernel_lacks() -> None:
    value = Landlock(read=["/"], bind_tcp=(), scopes=("signal",), log="off")
    assert value.missing(7) == ()
    assert value.missing(6) == ("log=off",)
    assert value.missing(5) == ("signal", "log=off")
    assert value.missing(3) == ("ioctl_dev", "bind_tcp", "signal", "log=off")
    assert "refer" in value.missing(1)


# ---- rights ----------------------------------------------------------------------------------------------------------

ACTIONS = {
    FsAccess.EXECUTE: "subprocess.run(['{d}/program'], check=True)",
    FsAccess.WRITE_FILE: "open('{d}/file', 'r+').close()",
    FsAccess.READ_FILE: "open('{d}/file').close()",
    FsAccess.READ_DIR: "os.listdir('{d}')",
    FsAccess.REMOVE_DIR: "os.rmdir('{d}/empty')",
    FsAccess.REMOVE_FILE: "os.unlink('{d}/file')",
    FsAccess.MAKE_CHAR: "os.mknod('{d}/new', 0o020600, 0)",  # 0:0, a whiteout, needs no capability
    FsAccess.MAKE_DIR: "os.mkdir('{d}/new')",
    FsAccess.MAKE_REG: "os.mknod('{d}/new', 0o100600)",
    FsAccess.MAKE_SOCK: "socket.socket(socket.AF_UNIX).bind('{d}/new')",
    FsAccess.MAKE_FIFO: "os.mkfifo('{d}/new')",
    FsAccess.MAKE_SYM: "os.symlink('/', '{d}/new')",
    FsAccess.TRUNCATE: "os.truncate('{d}/file', 0)",
}


def furnish(directory: Path) -> None:
    (directory / "file").write_text("text")
    (directory / "file").chmod(0o666)
    (directory / "program").write_bytes(Path("/bin/true").read_bytes())
    (directory / "program").chmod(0o755)
    (directory / "empty").mkdir()
    (directory / "other").mkdir()
    for each in ("empty", "other"):
        (directory / each).chmod(0o777)


@needs_abi(3)
@pytest.mark.parametrize("right", ACTIONS, ids=lambda right: right.name.lower())
@pytest.mark.parametrize("namespace", [(), (UserNamespace(), PidNamespace())], ids=["plain", "namespaces"])
def test_right(public: Path, right: FsAccess, namespace: tuple[object, ...]) -> None:
    furnish(public)
    action = ACTIONS[right].format(d=public)
    everywhere = [PathRule(path, right) for path in elsewhere()]
    denied = python(action, *namespace, Landlock(rules=everywhere, handled=right))
    assert denied == DENIED
    allowed = python(action, *namespace, Landlock(rules=[*everywhere, PathRule(public, right)], handled=right))
    assert allowed == "done"


@needs_abi(3)
def test_every_right_has_its_test() -> None:
    others = FsAccess.REFER | FsAccess.MAKE_BLOCK | FsAccess.IOCTL_DEV | FsAccess.RESOLVE_UNIX
    tested = FsAccess(0)
    for right in ACTIONS:
        tested |= right
    assert tested | others == FsAccess.abi(9)


@as_root
@needs_landlock
def test_make_block(public: Path) -> None:
    if os.path.ismount("/tmp") and os.statvfs("/tmp").f_flag & os.ST_NODEV:
        pytest.skip("no device can be made here")
    action = f"os.mknod('{public}/new', 0o060600, os.makedev(7, 250))"
    caps = Capabilities({"MKNOD"})
    right = FsAccess.MAKE_BLOCK
    assert python(action, caps, Landlock(handled=right)) == DENIED
    assert python(action, caps, Landlock(handled=right, rules=[(public, right)])) == "done"
    assert stat.S_ISBLK((public / "new").stat().st_mode)


@needs_abi(2)
def test_refer(public: Path) -> None:
    """A link to another directory fails with EXDEV, as if it were another file system."""
    furnish(public)
    action = f"os.link('{public}/file', '{public}/other/file')"
    right = FsAccess.REFER
    assert python(action, Landlock(handled=right)) == f"OSError {errno.EXDEV}"
    assert python(action, Landlock(handled=right, rules=[(public, right)])) == "done"


@needs_abi(5)
def test_ioctl_dev() -> None:
    action = "fcntl.ioctl(open('/dev/zero', 'rb'), 0x5401, bytes(64))"  # TCGETS
    right = FsAccess.IOCTL_DEV
    assert python(action, Landlock(handled=right)) == DENIED
    assert python(action, Landlock(handled=right, rules=[("/dev/zero", right)])) == f"OSError {errno.ENOTTY}"


@needs_abi(9)
def test_resolve_unix(public: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{public}/socket")
        listener.listen()
        (public / "socket").chmod(0o777)
        action = f"socket.socket(socket.AF_UNIX).connect('{public}/socket')"
        right = FsAccess.RESOLVE_UNIX
        assert python(action, Landlock(handled=right)) == DENIED
        assert python(action, Landlock(handled=right, rules=[(public, right)])) == "done"


# ---- rules -----------------------------------------------------------------------------------------------------------


@needs_abi(5)
def test_read_execute_write(public: Path) -> None:
    furnish(public)
    system = {"execute": elsewhere()}
    change = f"open('{public}/new', 'w').write('x')\nos.rename('{public}/new', '{public}/other/new')"
    assert python(f"print(open('{public}/file').read())", Landlock(**system)) == DENIED
    assert python(f"print(open('{public}/file').read())", Landlock(**system, read=[public])) == "text\ndone"
    assert python(change, Landlock(**system, read=[public])) == DENIED
    assert python(change, Landlock(**system, write=[public])) == "done"
    run = f"subprocess.run(['{public}/program'], check=True)"
    assert python(run, Landlock(**system, write=[public])) == DENIED
    assert python(run, Landlock(execute=[*elsewhere(), public])) == "done"


@needs_abi(5)
def test_rule_for_a_file(public: Path) -> None:
    """Rights for directories in a named set mean nothing on a file and are left out."""
    furnish(public)
    part = Landlock(execute=elsewhere(), write=[public / "file"])
    assert python(f"open('{public}/file', 'w').write('x')", part) == "done"
    assert python(f"open('{public}/program', 'r+')", part) == DENIED


@needs_landlock
def test_only_rights_for_directories_on_a_file_is_an_error(public: Path) -> None:
    furnish(public)
    with pytest.raises(SetupError, match="none of the rights") as caught:
        Sandbox(Landlock(rules=[(public / "file", "make_dir")], handled="make_dir")).run(["true"])
    assert (caught.value.errno, caught.value.path) == (errno.EINVAL, str(public / "file"))


@needs_landlock
def test_a_missing_path(public: Path) -> None:
    path = public / "missing"
    with pytest.raises(SetupError, match="does not exist inside") as caught:
        Sandbox(Landlock(rules=[(path, "make_dir")])).run(["true"])
    assert (caught.value.errno, caught.value.path, caught.value.part) == (errno.ENOENT, str(path), "Landlock")
    result = Sandbox(Landlock(rules=[PathRule(path, "make_dir", optional=True)], handled="make_dir")).run(["true"])
    assert result.returncode == 0
    assert result.applied["Landlock"]
    part = Landlock(rules=[PathRule(path, "make_dir", True)], handled="make_dir")
    assert python(f"os.mkdir('{path}')", part) == DENIED


@needs_landlock
def test_a_path_is_opened_once(public: Path) -> None:
    """What the path led to has the rights; where the name leads later has not."""
    for name in ("first", "second"):
        (public / name).mkdir(mode=0o777)
        (public / name / "file").write_text(name)
    (public / "link").symlink_to("first")
    part = Landlock(rules=[*((path, "read_file") for path in elsewhere()), (public / "link", "read_file")])
    part = Landlock(rules=part.rules, handled="read_file")
    code = (
        f"print('ready', flush=True)\nsys.stdin.readline()\nprint(open('{public}/first/file').read())\n"
        f"print(open('{public}/link/file').read())"
    )
    body = "".join(f"    {line}\n" for line in code.splitlines())
    wrapped = f"import sys\ntry:\n{body}except OSError as error:\n    print(error.errno)"
    with Sandbox(part).spawn([sys.executable, "-ISc", wrapped], stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (public / "link").unlink()
        (public / "link").symlink_to("second")
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdin.close()
        assert process.stdout.read() == b"first\n13\n"
        assert process.wait() == 0


@needs_abi(5)
def test_paths_are_those_of_the_new_root(public: Path) -> None:
    """``/data`` is a file of the sandbox's root; on the host it is another, or none."""
    furnish(public)
    root = Root(
        Bind("/usr"),
        Symlink("usr/bin", "/bin"),
        Symlink("usr/lib", "/lib"),
        Symlink("usr/lib64", "/lib64"),
        Bind(str(public), "/data", read_only=False),
        Tmpfs("/tmp"),
    )
    look = ["sh", "-c", "cat /data/file; mkdir /data/new && echo made; mkdir /tmp/new && echo made"]
    for rules, expected in (({}, ""), ({"read": ["/data"]}, "text"), ({"write": ["/data"]}, "textmade\n")):
        box = Sandbox(UserNamespace(), root, Landlock(execute=["/usr"], **rules))  # type: ignore[arg-type]
        assert box.run(look, text=True).stdout == expected
    assert Sandbox(UserNamespace(), root).run(["mkdir", "/tmp/new"]).returncode == 0


@needs_landlock
def test_several_take_away_more(public: Path) -> None:
    one = Landlock(handled="make_dir", rules=[(public, "make_dir")])
    two = Landlock(handled="make_sym", rules=[(public, "make_sym")])
    three = Landlock(handled="make_dir")
    both = f"os.mkdir('{public}/a')\nos.symlink('/', '{public}/b')\nos.rmdir('{public}/a')\nos.unlink('{public}/b')"
    assert python(both, one, two) == "done"
    assert python(both, one, two, three) == DENIED


# ---- TCP, scopes -----------------------------------------------------------------------------------------------------


@needs_abi(4)
def test_bind_tcp() -> None:
    port = free_port()
    action = f"socket.socket().bind(('127.0.0.1', {port}))"
    assert python(action, Landlock(bind_tcp=())) == DENIED
    assert python(action, Landlock(bind_tcp=[1])) == DENIED
    assert python(action, Landlock(bind_tcp=[1, port])) == "done"
    assert python(action, Landlock(connect_tcp=())) == "done"


@needs_abi(4)
def test_connect_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        action = f"socket.create_connection(('127.0.0.1', {port})).close()"
        assert python(action, Landlock(connect_tcp=())) == DENIED
        assert python(action, Landlock(connect_tcp=[port])) == "done"
        assert python(action, Landlock(bind_tcp=())) == "done"


@needs_abi(6)
def test_scope_signal() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as outside:
        action = f"os.kill({outside.pid}, 0)"
        assert python(action, Landlock(scopes=["signal"])) == f"PermissionError {errno.EPERM}"
        assert python("os.kill(os.getpid(), 0)", Landlock(scopes=["signal"])) == "done"
        assert python(action, Landlock(scopes=["abstract_unix_socket"])) == "done"
        assert outside.stdin is not None
        outside.stdin.close()
        assert outside.wait() == 0


@needs_abi(6)
def test_the_sandbox_can_still_be_ended() -> None:
    with Sandbox(Landlock(scopes=["signal"])).spawn(["cat"], stdin=-1) as process:
        process.terminate()
        assert process.wait() == -15


@needs_abi(6)
def test_scope_abstract_unix_socket() -> None:
    name = f"isolate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        action = f"socket.socket(socket.AF_UNIX).connect('\\0{name}')"
        assert python(action, Landlock(scopes=["abstract_unix_socket"])) == f"PermissionError {errno.EPERM}"
        assert python(action, Landlock(scopes=["signal"])) == "done"


@needs_abi(7)
@pytest.mark.parametrize("log", ["off", "all"])
def test_log(log: str) -> None:
    assert python("os.mkdir('/tmp/never')", Landlock(handled="make_dir", log=log)) == DENIED


# ---- the kernel's age, privileges ------------------------------------------------------------------------------------


@pytest.mark.skipif(not 0 < ABI < 9, reason="this kernel has all that is known, or nothing")
def test_too_old_a_kernel() -> None:
    """``resolve_unix`` came with ABI 9. Required: an error before anything starts. Else: the rest holds."""
    part = {"handled": FsAccess.MAKE_DIR | FsAccess.RESOLVE_UNIX}
    with pytest.raises(UnsupportedError, match="resolve_unix") as caught:
        Sandbox(Landlock(**part)).run(["true"])
    assert caught.value.errno == errno.EOPNOTSUPP
    assert f"ABI {ABI}" in str(caught.value)
    assert "required=False" in str(caught.value.remedy)
    weaker = Landlock(**part, required=False)
    assert python("os.mkdir('/tmp/never')", weaker) == DENIED
    assert Sandbox(weaker).run(["true"]).applied["Landlock"] is False
    assert Sandbox(Landlock(handled="make_dir", required=False)).run(["true"]).applied["Landlock"] is True


@needs_landlock
def test_a_missing_path_is_passed_over_where_it_is_not_required(public: Path) -> None:
    part = Landlock(rules=[(public / "missing", "make_dir")], handled="make_dir", required=False)
    assert python(f"os.mkdir('{public}/new')", part) == DENIED
    assert Sandbox(part).run(["true"]).applied["Landlock"] is False


@needs_landlock
def test_it_brings_no_new_privs() -> None:
    result = Sandbox(Landlock(handled="make_dir")).run(["grep", "NoNewPrivs", "/proc/self/status"])
    assert result.stdout == b"NoNewPrivs:\t1\n"


@needs_landlock
def test_without_no_new_privs_it_needs_a_capability() -> None:
    parts = (Landlock(handled="make_dir"), NoNewPrivs(enabled=False), UserNamespace(nested=True))
    with pytest.raises(SetupError, match="needs no_new_privs") as caught:
        Sandbox(*parts).run(["true"])
    assert (caught.value.errno, caught.value.syscall) == (errno.EPERM, "landlock_restrict_self")
    assert python("os.mkdir('/tmp/never')", *parts, Capabilities({"SYS_ADMIN"})) == DENIED


@needs_abi(5)
def test_an_ordinary_user_without_namespaces(public: Path) -> None:
    out = as_ordinary_user(
        "import os\n"
        "from isolate import Landlock, Sandbox\n"
        "top = [f'/{n}' for n in os.listdir('/') if n != 'tmp' and os.path.isdir(f'/{n}')]\n"
        f"for more in ({{}}, {{'write': [{str(public)!r}]}}):\n"
        "    box = Sandbox(Landlock(execute=top, **more))\n"
        f"    print(box.run(['mkdir', '{public}/new']).returncode)\n"
    )
    assert out.split() == ["1", "0"]


@as_root
@needs_landlock
def test_rules_are_opened_with_the_programs_ids(public: Path) -> None:
    """A directory that the program may not enter cannot become a rule's by the caller's rights."""
    (public / "closed").mkdir(mode=0o700)
    (public / "closed" / "inner").mkdir(mode=0o777)
    part = Landlock(rules=[(public / "closed" / "inner", "make_dir")], handled="make_dir")
    with pytest.raises(SetupError, match="may not reach") as caught:
        Sandbox(part, Credentials(uid=1234, gid=1234)).run(["true"])
    assert caught.value.errno == errno.EACCES
    assert Sandbox(part).run(["true"]).returncode == 0
