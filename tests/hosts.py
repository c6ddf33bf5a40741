"""What starts where: ``python tests/hosts.py [HOST ...]`` prints a table. Run it as root.

Each host is a place that a program of a user's may find itself in. In each, the same attempts are made by the same
Python: what starts is ``ok``, what does not has its cause below the table. A default that the host cannot give, and
that was left out knowingly (``Result.applied``), is named behind the ``ok``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

# ---- inside a host -------------------------------------------------------------------------------------------------


def attempts() -> dict[str, Callable[[], Any]]:
    """What is tried: a name and what gives a result."""
    import isolate
    from isolate import presets

    def user() -> list[Any]:
        return [] if os.geteuid() == 0 and _capable() else [isolate.UserNamespace()]

    def box(*parts: Any) -> Callable[[], Any]:
        return lambda: isolate.Sandbox(*parts).run(["true"], timeout=20)

    def pooled() -> Any:
        with isolate.Pool(isolate.Sandbox(isolate.Rlimits(nofile=64)), size=1) as pool:
            return pool.run(["true"], timeout=20)

    return {
        "nothing named": box(),
        "Seccomp": box(isolate.Seccomp.default()),
        "Landlock": box(isolate.Landlock(read=["/"], execute=["/"])),
        "Rlimits": box(isolate.Rlimits(nofile=64)),
        "Pool": pooled,
        "UserNamespace": box(isolate.UserNamespace()),
        "Pid+Net+Ipc": lambda: box(*user(), isolate.PidNamespace(), isolate.NetNamespace(), isolate.IpcNamespace())(),
        "Root": lambda: box(*user(), isolate.Root(isolate.Bind("/usr"), *_links()))(),
        "untrusted()": lambda: presets.untrusted().run(["true"], timeout=20),
        "untrusted(limits)": lambda: presets.untrusted(limits=isolate.Limits(memory="64M", pids=16)).run(
            ["true"], timeout=20
        ),
        "Limits": box(isolate.Limits(memory="64M", pids=16)),
    }


def _links() -> list[Any]:
    import isolate

    names = ("bin", "lib", "lib64")
    return [
        isolate.Symlink(f"usr/{name}", f"/{name}") if os.path.islink(f"/{name}") else isolate.Bind(f"/{name}")
        for name in names
        if os.path.lexists(f"/{name}")
    ]


def _capable() -> bool:
    from isolate.diagnosis.host import Host

    return Host().capable()


def inside() -> None:
    """Try everything and print it as JSON."""
    found: dict[str, dict[str, Any]] = {}
    for name, attempt in attempts().items():
        try:
            result = attempt()
            left = sorted(part for part, held in result.applied.items() if not held)
            found[name] = {"ok": result.ok, "without": left, "why": "" if result.ok else str(result)}
        except Exception as error:
            found[name] = {"ok": False, "without": [], "why": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(found))


def doctor() -> None:
    """What ``python -m isolate doctor --json`` finds, on one line."""
    from isolate.tools.doctor import examine

    print("\n" + json.dumps(examine().json()))


# ---- the hosts -----------------------------------------------------------------------------------------------------


class Missing(Exception):
    """The host cannot be had here."""


def _result(command: list[str], **options: Any) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, stdin=subprocess.DEVNULL, **options
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise Missing(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    table: dict[str, dict[str, Any]] = json.loads(lines[-1])
    return table


def _tool(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            raise Missing(f"{name} is not installed")


_INSIDE = [sys.executable, str(REPO / "tests/hosts.py"), "--inside"]


def _places() -> list[str]:
    """Directories that this Python and this repository need beside /usr and /etc."""
    wanted = {str(REPO), sys.prefix, sys.base_prefix, *(os.path.realpath(p) for p in sys.path if os.path.isdir(p))}
    found: list[str] = []
    for path in sorted(wanted):
        if not any(path == other or path.startswith(other + "/") for other in ["/usr", "/etc", *found]):
            found.append(path)
    return found


def _root() -> dict[str, dict[str, Any]]:
    return _result(_INSIDE, cwd="/")


def _nobody() -> dict[str, dict[str, Any]]:
    return _result(_INSIDE, cwd="/", user=65534, group=65534, extra_groups=[])


@contextlib.contextmanager
def _user() -> Iterator[Any]:
    from tests.login import make_login_user

    _tool("useradd", "su")
    yield from make_login_user()


def _login() -> dict[str, dict[str, Any]]:
    with _user() as user:
        return _result(["su", "-l", user.name, "-c", " ".join(_INSIDE)])


def _bubblewrap() -> dict[str, dict[str, Any]]:
    _tool("bwrap")
    command = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--unshare-all"]
    back = [word for place in _places() if place.startswith("/tmp/") for word in ("--ro-bind", place, place)]
    with _user() as user:
        return _result(["su", "-l", user.name, "-c", " ".join([*command, *back, "--", *_INSIDE])])


def _untrusted() -> dict[str, dict[str, Any]]:
    from isolate import Bind, presets

    box = presets.untrusted(*(Bind(place) for place in _places()))
    result = box.run(_INSIDE, timeout=200, text=True)
    if not result.ok:
        raise Missing(f"{result.verdict} {result.stderr[-300:]}")
    table: dict[str, dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return table


@contextlib.contextmanager
def _tree() -> Iterator[Path]:
    """A root for containers: the host's /usr and /etc are bound into it."""
    with tempfile.TemporaryDirectory(prefix="isolate-hosts-") as name:
        top = Path(name)
        top.chmod(0o755)
        root = top / "root"
        for entry in ("usr", "etc", "tmp", "proc", "sys", "dev", "run", "var"):
            (root / entry).mkdir(parents=True)
        for entry in ("bin", "sbin", "lib", "lib64"):
            (root / entry).symlink_to(f"usr/{entry}")
        yield top


def _volumes() -> list[str]:
    return [word for place in ["/usr", "/etc", *_places()] for word in ("-v", f"{place}:{place}:ro")]


@contextlib.contextmanager
def docker_daemon(top: Path, driver: str = "vfs") -> Iterator[list[str]]:
    """A Docker daemon of our own, without a network, that ends with the block."""
    _tool("setpriv")
    socket = top / "docker.sock"
    groups = f"tests-docker-{os.getpid()}"  # not below "docker", which may be another daemon's
    # A run of the tests that is killed runs no `finally`: the daemon gets the signal on which it also stops containerd.
    command = [
        "setpriv",
        "--pdeathsig",
        "TERM",
        "dockerd",
        "--data-root",
        str(top / "data"),
        "--exec-root",
        str(top / "exec"),
        "-H",
        f"unix://{socket}",
        "--pidfile",
        str(top / "docker.pid"),
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--storage-driver",
        driver,
        "--cgroup-parent",
        f"/{groups}",
    ]
    with open(top / "log", "wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    docker = ["docker", "-H", f"unix://{socket}"]
    try:
        for _ in range(300):
            if daemon.poll() is not None:
                raise Missing(f"dockerd: {(top / 'log').read_text()[-300:]}")
            if (
                socket.exists()
                and subprocess.run([*docker, "version"], capture_output=True, check=False).returncode == 0
            ):
                break
            time.sleep(0.1)
        else:
            raise Missing("dockerd does not answer")
        yield docker
    finally:
        daemon.terminate()
        daemon.wait(60)
        remove_groups(groups)


def remove_groups(name: str, seconds: float = 30) -> None:
    """Remove a group of our own in every hierarchy, with those below it and whatever still runs there."""
    hierarchies = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    found = [top / name for top in hierarchies if (top / name).is_dir()]
    deadline = time.monotonic() + seconds
    while found and time.monotonic() < deadline:
        for top in found:
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    for pid in Path(directory, "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    os.rmdir(directory)
        found = [top for top in found if top.is_dir()]
        time.sleep(0.01 if found else 0)


def _docker() -> dict[str, dict[str, Any]]:
    _tool("dockerd", "docker")
    with _tree() as top, docker_daemon(top) as docker:
        image = subprocess.run(["tar", "c", "-C", str(top / "root"), "."], capture_output=True, check=True).stdout
        made = subprocess.run([*docker, "import", "-", "isolate-hosts"], input=image, capture_output=True, check=False)
        if made.returncode:
            raise Missing(made.stderr.decode()[-300:])
        return _result([*docker, "run", "--rm", "--network", "none", *_volumes(), "isolate-hosts", *_INSIDE])


def _podman() -> dict[str, dict[str, Any]]:
    _tool("podman", "newuidmap")
    with _tree() as top, _user() as user:
        own = top / "own"
        (own / "run").mkdir(parents=True)
        for path in (own, own / "run"):
            os.chown(path, user.uid, user.gid)
            path.chmod(0o700)
        for path in [top / "root", *(top / "root").iterdir()]:
            os.chown(path, user.uid, user.gid, follow_symlinks=False)
        command = [
            "env",
            f"HOME={own}",
            f"XDG_RUNTIME_DIR={own}/run",
            "podman",
            "--storage-driver",
            "vfs",
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
            "run",
            "--rm",
            "--network",
            "none",
            *_volumes(),
            "--rootfs",
            str(top / "root"),
            *_INSIDE,
        ]
        try:
            return _result(["su", "-l", user.name, "-c", " ".join(command)])
        finally:
            # What podman leaves running between two commands of a user's.
            pids = subprocess.run(["pgrep", "-u", str(user.uid)], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["umount", "-l", str(own)], capture_output=True, check=False)


HOSTS: dict[str, Callable[[], dict[str, dict[str, Any]]]] = {
    "root": _root,
    "login user": _login,
    "uid 65534": _nobody,
    "Docker": _docker,
    "podman": _podman,
    "bubblewrap": _bubblewrap,
    "untrusted()": _untrusted,
}

# ---- the table -----------------------------------------------------------------------------------------------------


def main(wanted: list[str]) -> int:
    """Print the table."""
    unknown = sorted(set(wanted) - set(HOSTS))
    if unknown:
        raise SystemExit(f"no host is named {unknown[0]!r}; there are {', '.join(HOSTS)}")
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    notes: list[str] = []
    for host in wanted or HOSTS:
        try:
            tables[host] = HOSTS[host]()
        except Missing as error:
            notes.append(f"{host}: not to be had here: {error}")
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    width = max(map(len, names), default=0)
    print(" " * width, *(f"{host:12}" for host in tables))
    marks: dict[str, int] = {}
    for name in names:
        cells = []
        for table in tables.values():
            row = table[name]
            text = "ok" if row["ok"] else "no"
            left = f"without {', '.join(row['without'])}" if row["without"] else ""
            reason = left if row["ok"] else row["why"]
            if reason:
                text += f" [{marks.setdefault(reason, len(marks) + 1)}]"
            cells.append(f"{text:12}")
        print(f"{name:{width}}", *cells)
    for reason, mark in marks.items():
        print(f"[{mark}] {reason}")
    print(*notes, sep="\n")
    return 1 if notes else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        inside()
    elif sys.argv[1:] == ["--doctor"]:
        doctor()
    else:
        sys.exit(main(sys.argv[1:]))
