"""no_new_privs and the session keyring."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import Capabilities, Credentials, IdMap, NoNewPrivs, Sandbox, SessionKeyring, UserNamespace
from isolate.capabilities.caps import Cap

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="isolate-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("kind", [NoNewPrivs, SessionKeyring])
@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_switches_are_bool(kind: type, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__}: enabled must be True or False"):
        kind(wrong)


def test_set_by_default() -> None:
    assert Sandbox().run(["grep", "NoNewPrivs", "/proc/self/status"]).stdout == b"NoNewPrivs:\t1\n"


@as_root
def test_a_set_user_id_program_gains_nothing(public: Path) -> None:
    """The control: without no_new_privs the same file runs as its owner."""
    program = public / "id"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    user = Credentials(uid=1234, gid=1234)
    assert Sandbox(user).run([str(program), "-u"]).stdout == b"1234\n"
    everyone = UserNamespace(nested=True, map=IdMap([(0, 0, 65536)], [(0, 0, 65536)]))
    parts = (user, everyone, Capabilities((), bounding=tuple(Cap), securebits=0), NoNewPrivs(enabled=False))
    assert Sandbox(*parts).run([str(program), "-u"]).stdout == b"0\n"


KEYS = """
import sys
from isolate import Sandbox, SessionKeyring
from isolate.engine.native import call
from isolate.kernel.syscalls import number
SESSION, USER, JOIN, SEARCH = -3, b"user\\0", 1, 10
look = '''
from isolate.engine.native import call
from isolate.kernel.syscalls import number
found = call(number("keyctl"), 10, -3, b"user\\\\0", b"isolate-test\\\\0", 0)
print("found" if found > 0 else found)
'''
if call(number("keyctl"), JOIN, 0) < 0:
    print("no keyrings")
    sys.exit()
assert call(number("add_key"), USER, b"isolate-test\\0", b"secret", 6, SESSION) > 0
for part in (SessionKeyring(), SessionKeyring(enabled=False)):
    result = Sandbox(part).run([sys.executable, "-c", look], text=True)
    print(result.stdout.strip() or result.stderr)
"""


def test_the_callers_keys_cannot_be_found() -> None:
    """The control: in the caller's own session keyring they are found."""
    out = subprocess.run([sys.executable, "-c", KEYS], capture_output=True, text=True, check=True).stdout.split()
    if out == ["no", "keyrings"]:
        pytest.skip("this kernel has no keyrings")
    assert out == ["-126", "found"]  # ENOKEY


def test_many_keyrings_of_an_ordinary_user() -> None:
    """More in a row than the quota of keys: the kernel frees them a little later, and that is waited for."""
    from tests.ordinary import as_ordinary_user

    limit = int(Path("/proc/sys/kernel/keys/maxkeys").read_text()) if Path("/proc/sys/kernel/keys").exists() else 0
    if not 0 < limit <= 400:
        pytest.skip(f"the quota is {limit} keys")
    code = (
        "from isolate import Sandbox\n"
        "box = Sandbox()\n"
        f"print(sum(box.run(['true']).returncode == 0 for _ in range({limit + 50})))\n"
    )
    assert as_ordinary_user(code).strip() == str(limit + 50)


REFUSED = """
import sys
from isolate import Sandbox, Seccomp, SessionKeyring
from isolate.seccomp import rule
inner = '''
from isolate import Sandbox, SessionKeyring
for parts in ((), (SessionKeyring(),), (SessionKeyring(or_refused=True),)):
    try:
        result = Sandbox(*parts).run(["true"])
        print(result.verdict, result.applied["SessionKeyring"])
    except OSError as error:
        print(error.errno, error.cause)
'''
calls = sys.argv[1].split(",")
outer = Sandbox(Seccomp(rule(sys.argv[2], calls), otherwise="allow"))
result = outer.run([sys.executable, "-c", inner], text=True)
print(result.stdout + result.stderr)
"""


@pytest.mark.parametrize(
    ("calls", "answer", "wanted"),
    [
        # As in a default Docker container, and in a sandbox of isolate's own with its default filter.
        ("keyctl,add_key,request_key", "EPERM", ["OK False", "1 a seccomp filter forbids", "OK False"]),
        # The control: what remains would reach the caller's keys, so nothing starts.
        ("keyctl", "EPERM", ["1 a seccomp filter forbids", "1 a seccomp filter forbids", "1 a seccomp filter forbids"]),
        # And without a filter about keys a new keyring is had.
        ("mkdir", "EPERM", ["OK True", "OK True", "OK True"]),
    ],
)
def test_26_a_keyring_that_the_host_refuses(calls: str, answer: str, wanted: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED, calls, answer], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.startswith(want) for line, want in zip(lines, wanted, strict=False)] == [True] * 3, done.stdout


def test_26_explain_tells_of_what_may_be_left_out() -> None:
    assert "or none, where a filter on the caller refuses all calls about keys" in Sandbox().explain()
    assert "or none" not in Sandbox(SessionKeyring()).explain()


READ_ONLY = """
from isolate import Sandbox, Seccomp, UserNamespace
from isolate.seccomp import deny
for part in ((), (Seccomp.default(),), (Seccomp(deny("mkdir"), otherwise="allow"),)):
    try:
        result = Sandbox(UserNamespace(), *part).run(["unshare", "-U", "true"])
        nested = [step[:20] for step in result.left_out if "no user namespaces" in step]
        print(result.verdict, result.applied["UserNamespace"], *nested)
    except OSError as error:
        print(error.errno, error.cause)
"""


@pytest.mark.root
def test_26_nested_user_namespaces_where_proc_sys_is_read_only() -> None:
    """As in rootless podman. The filter forbids them as well; without one (the control) the error stays."""
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", READ_ONLY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["EXITED False UserNamespace: no us"] * 2
    assert lines[2].startswith("30 /proc/sys is read-only here")
