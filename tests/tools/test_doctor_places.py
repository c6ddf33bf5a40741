"""The doctor, put into the places that programs find themselves in: what it says there, and that its remedies work.

A remedy is text to paste into a shell of somebody who may call sudo. Here that shell is root's, ``sudo`` is a function
that runs what it is given, and what follows is the doctor again, as whoever asked.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import hosts
from tests.login import make_login_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.login import Login

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="root makes the places")]

INSIDE = [sys.executable, str(hosts.REPO / "tests/hosts.py"), "--doctor"]
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
SUDO = 'sudo() { "$@"; }\n'


class Found:
    """A report, by rows."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.rows = {row["name"]: row for row in report["abilities"]}
        self.presets = {preset["name"]: preset for preset in report["presets"]}
        self.usable = report["usable"]
        self.host = report["host"]

    def ok(self, *names: str) -> None:
        assert [(name, self.rows[name]["reason"]) for name in names if not self.rows[name]["ok"]] == []

    def no(self, name: str, *words: str) -> str:
        """A row that is no: its reason has the words. The text to paste."""
        row = self.rows[name]
        assert not row["ok"], row
        assert [word for word in words if word not in row["reason"]] == [], row
        return str(row["paste"])


def look(*command: str, **options: Any) -> Found:
    """The doctor behind a command that leads into a place."""
    try:
        return Found(hosts._result([*command, *INSIDE], cwd="/", **options))
    except hosts.Missing as error:
        pytest.skip(str(error))


def shell(script: str, *then: str) -> Found:
    """A shell of root's that goes to a place, and becomes the doctor."""
    return look("bash", "-c", f'set -e\n{SUDO}{script}\nexec {shlex.join(then)} "$@"', "bash")


def own_mounts(script: str, *then: str) -> Found:
    """The same in a mount namespace of its own, from which nothing spreads.

    /proc is the only one of its kind there: the kernel allows a new one if any is visible as a whole.
    """
    others = 'findmnt -rn -t proc -o TARGET | grep -vx /proc | while read -r other; do umount -l "$other"; done\n'
    text = f'set -e\n{SUDO}{others}{script}\nexec {shlex.join(then)} "$@"'
    return look("unshare", "--mount", "--propagation", "private", "bash", "-c", text, "bash")


PARTS = [
    "start",
    "user",
    "mount",
    "pid",
    "net",
    "ipc",
    "uts",
    "root",
    "bind",
    "tmpfs",
    "proc",
    "dev",
    "seccomp",
    "landlock",
]


def test_root() -> None:
    found = look()
    found.ok(*PARTS, "id-ranges", "cgroup-memory", "cgroup-pids")
    assert found.rows["pid"]["proof"] == "a process outside cannot be signalled"
    assert found.rows["cgroup-memory"]["proof"] == "memory beyond the limit cannot be used"
    assert [preset["runs"] and not preset["without"] for preset in found.presets.values()] == [True, True]


@contextlib.contextmanager
def _groups_gone(name: str) -> Iterator[None]:
    try:
        yield
    finally:
        hosts.remove_groups(name)  # a process of the last doctor's may be on its way out


def test_a_uid_without_groups_gets_a_group_to_divide() -> None:
    found = look(*NOBODY)
    found.ok(*PARTS)
    assert (found.usable, found.presets["untrusted"]["without"]) == (True, ["limits"])
    paste = found.no("cgroup-memory", "not ours to write")
    assert found.no("cgroup-pids") == paste
    with _groups_gone("isolate-nobody"):
        shell(paste, *NOBODY).ok("cgroup-memory", "cgroup-pids", "cgroup-cpu", "cgroup-cpuset")


@pytest.fixture
def login() -> Iterator[Login]:
    yield from make_login_user()


def _subordinate(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


@pytest.mark.slow
def test_a_login_user_with_and_without_subordinate_ids(login: Login) -> None:
    become = ["setpriv", f"--reuid={login.uid}", f"--regid={login.gid}", "--init-groups"]
    has = [line for line in _subordinate("/etc/subuid") if line.startswith(login.name + ":")]
    if has:  # useradd gives a range of its own on some hosts
        login.change("--del-subuids", "0-4294967294", "--del-subgids", "0-4294967294")
    found = look(*become)
    found.ok(*PARTS)
    paste = found.no("id-ranges", "/etc/subuid", login.name)
    assert "--add-subuids" in paste
    assert "--add-subgids" in paste
    others = {line.split(":")[1] for file in ("/etc/subuid", "/etc/subgid") for line in _subordinate(file)}
    shell(paste, *become).ok("id-ranges")
    own = {line.split(":")[1] for line in _subordinate("/etc/subuid") if line.startswith(login.name + ":")}
    assert own
    assert not own & others
    # The same with no_new_privs, under which newuidmap can grant nothing.
    denied = look(*become, "--no-new-privs")
    denied.ok(*PARTS)
    assert "NoNewPrivileges=no" in denied.no("id-ranges", "no_new_privs")
    # Somebody else holds the same range.
    first = own.pop()
    for file in ("/etc/subuid", "/etc/subgid"):
        with open(file, "a") as lines:
            lines.write(f"isolate-nobody-else:{first}:65536\n")
    try:
        assert "others hold some of them too" in look(*become).rows["id-ranges"]["reason"]
    finally:
        for file in ("/etc/subuid", "/etc/subgid"):
            kept = [line for line in _subordinate(file) if not line.startswith("isolate-nobody-else:")]
            Path(file).write_text("".join(line + "\n" for line in kept))


def _bubblewrap(*options: str) -> list[str]:
    command = [*NOBODY, "bwrap", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *options]
    return [*command, "--"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--unshare-user"], ["--unshare-all"]])
def test_in_bubblewrap(options: list[str]) -> None:
    found = look(*_bubblewrap(*options))
    found.ok("start", "user", "mount", "pid", "root", "bind", "seccomp", "landlock")
    for row in found.rows.values():
        assert row["ok"] or row["reason"], row


def test_in_bubblewrap_that_allows_no_user_namespaces() -> None:
    found = look(*_bubblewrap("--unshare-user", "--disable-userns"))
    found.ok("start", "seccomp", "landlock")
    assert "bwrap without --disable-userns" in found.no("user", "an outer user namespace may have a lower one")
    assert not found.usable
    look(*_bubblewrap("--unshare-user")).ok("user")  # the remedy


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1])
def test_a_limit_of_processes(limit: int, login: Login) -> None:
    become = ["setpriv", f"--reuid={login.uid}", f"--regid={login.gid}", "--init-groups"]
    become += ["env", "-i", "PATH=/usr/bin:/bin", "bash", "--norc", "-c"]
    lower = f"ulimit -S -u {limit}\n"
    found = look(*become, lower + 'exec "$@"', "bash")
    paste = found.no("start", "RLIMIT_NPROC")
    assert not found.usable
    look(*become, lower + paste + '\nexec "$@"', "bash").ok("start", "user", "root")


_READ_ONLY = """for point in $(findmnt -rno TARGET -t cgroup,cgroup2); do mount -o remount,ro,bind "$point"; done"""


@pytest.mark.slow
def test_cgroups_that_are_read_only_to_root() -> None:
    found = own_mounts(_READ_ONLY)
    found.ok(*PARTS)
    paste = found.no("cgroup-memory", "read-only")
    assert found.presets["untrusted"]["without"] == ["limits"]
    own_mounts(f"{_READ_ONLY}\n{paste}").ok("cgroup-memory", "cgroup-pids")


@pytest.mark.slow
def test_no_cgroup_file_system() -> None:
    gone = "umount --recursive --lazy /sys/fs/cgroup"
    found = own_mounts(gone)
    found.ok(*PARTS)
    paste = found.no("cgroup-memory")
    own_mounts(f"{gone}\n{paste}").ok("cgroup-memory", "cgroup-pids")


def test_a_masked_proc() -> None:
    """Root may mount a /proc; a sandbox with a user namespace, which the presets have, may not."""
    mask = "mount --bind /dev/null /proc/version"
    for become in ([], NOBODY):
        found = own_mounts(mask, *become)
        found.ok("start", "user", "mount", "root", "bind")
        paste = found.no("proc", "masked", "/proc/version")
        assert not found.usable
        assert not found.presets["container"]["runs"]
        after = own_mounts(f"{mask}\n{paste}", *become)
        after.ok("proc")
        assert after.usable


@pytest.mark.slow
def test_a_proc_that_hides_other_users() -> None:
    hidden = own_mounts("mount -t proc -o hidepid=2 proc /proc", *NOBODY)
    hidden.ok("start", "user", "mount", "pid", "root", "seccomp")
    for row in hidden.rows.values():
        assert row["ok"] or row["reason"], row


@pytest.mark.slow
def test_no_proc() -> None:
    gone = "umount --recursive --lazy /proc"
    found = own_mounts(gone)
    assert "mount -t proc proc /proc" in found.no("user", "/proc")
    own_mounts(f"{gone}\nmount -t proc proc /proc").ok("user", "proc")


@pytest.mark.slow
def test_root_without_capabilities() -> None:
    found = look("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    found.ok("start", "seccomp", "landlock")
    paste = found.no("user", "CAP_SETUID")
    assert not found.usable
    done = subprocess.run(
        ["bash", "-c", paste + " start user root"], capture_output=True, text=True, check=False, cwd="/", timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_in_isolate_itself() -> None:
    from isolate import Bind, Sandbox, presets

    def inside(box: Sandbox) -> Found:
        import json

        result = box.run(INSIDE, timeout=100, text=True)
        assert result.ok, result.stderr
        return Found(json.loads(result.stdout.splitlines()[-1]))

    found = inside(presets.untrusted(*(Bind(place) for place in hosts._places())))
    found.ok("start", "seccomp", "landlock")
    assert "UserNamespace(nested=True)" in found.no("user")
    assert not found.usable


# ---- containers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docker() -> Iterator[Any]:
    """A function that runs the doctor in ``docker run`` with these options."""
    try:
        hosts._tool("dockerd", "docker")
        with hosts._tree() as top, hosts.docker_daemon(top) as client:
            tar = subprocess.run(["tar", "c", "-C", str(top / "root"), "."], capture_output=True, check=True).stdout
            subprocess.run([*client, "import", "-", "isolate-doctor"], input=tar, capture_output=True, check=True)
            words = [*client, "run", "--rm", "--network", "none", *hosts._volumes()]
            yield lambda *options: look(*words, *options, "isolate-doctor")
    except hosts.Missing as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_in_docker_and_with_the_options_that_it_names(docker: Any) -> None:
    found = docker()
    found.ok("start", "seccomp", "landlock")
    paste = found.no("user")
    assert paste.startswith("docker run --security-opt seccomp=unconfined")
    assert found.host.endswith("in Docker")
    assert not found.usable
    options = shlex.split(paste)[2:-1]
    after = docker(*options)
    after.ok("user", "mount", "pid", "net", "root", "bind", "proc", "dev")
    assert after.usable


@pytest.mark.slow
def test_in_docker_with_some_options(docker: Any) -> None:
    half = docker("--security-opt", "seccomp=unconfined")
    half.ok("start", "user", "mount", "root", "bind")
    assert "systempaths=unconfined" in half.no("proc", "masked")
    other = docker("--security-opt", "systempaths=unconfined")
    assert "seccomp=unconfined" in other.no("user")
    admin = docker("--cap-add", "SYS_ADMIN")
    admin.ok("start", "user", "mount", "seccomp")
    assert "systempaths=unconfined" in admin.no("proc", "masked")


@pytest.mark.slow
def test_in_rootless_podman(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_INSIDE", INSIDE)
    try:
        found = Found(hosts._podman())  # type: ignore[arg-type]
    except hosts.Missing as error:
        pytest.skip(str(error))
    found.ok("start", "user", "mount", "seccomp", "landlock")
    assert found.no("proc", "masked").startswith("podman run --security-opt unmask=ALL")
