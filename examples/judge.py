"""The main job: run programs that nobody trusts and say in one word how each ended.

    python examples/judge.py [--explain] [--control] [--image [ROOT]]

A container is assembled from parts out of the host's /usr. Three submissions run in it: one is honest, one loops for
ever, one tries to get out: it reads a secret that was planted outside, connects to a listener on the host's loopback,
signals a process of the host, and writes outside. The judge then looks for itself whether anything has changed there.

Works as root and as an ordinary user. ``--control`` runs the third submission without the container, where all four
succeed: the proof that it is the container that stops them. ``--image`` takes the root from an image instead, made on
the spot of the interpreter and what it needs, or of ROOT, as debootstrap makes it with ``--include=python3``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import isolate
from isolate.images import Image, ImageRoot, Layer, Store

NOBODY = 65534
USER = 1000  # who a submission is inside

HONEST = """
import sys
print(sum(int(line) for line in sys.stdin))
"""

ENDLESS = """
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()  # away from whoever counts sessions and process groups
while True:
    pass
"""

HOSTILE = """
import os, signal, socket, sys
secret, port, pid, outside = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def read_secret():
    return open(secret).read()

def open_socket():
    socket.create_connection(("127.0.0.1", port), timeout=2).sendall(b"hello from inside")

def signal_process():
    os.kill(pid, signal.SIGUSR1)

def write_outside():
    open(os.path.join(outside, "was-here"), "w").write("x")

for attempt in (read_secret, open_socket, signal_process, write_outside):
    try:
        attempt()
        print(attempt.__name__, "SUCCEEDED")
    except OSError as error:
        print(attempt.__name__, "failed:", error.strerror or error)
"""


def image(store: Store, root: str | None, python: str) -> Image:
    """An image of a root file system, or of the host's interpreter with its modules and libraries."""
    if root is not None:
        return store.add(Image.empty() + Layer.of(root), "example/judge:1")
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"]
    library = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
    linked = subprocess.run(["ldd", python], capture_output=True, text=True, check=True).stdout.split()
    paths = [python, *(word for word in linked if word.startswith("/"))]
    for place, directories, names in os.walk(library):
        # Tests and the packages of the host are not needed.
        unwanted = {"test", "tests", "idlelib", "__pycache__", "site-packages", "dist-packages"}
        directories[:] = [name for name in directories if name not in unwanted]
        paths += [os.path.join(place, name) for name in names if name.endswith((".py", ".so"))]
    files = {path: Path(path).read_bytes() for path in paths if os.path.isfile(path)}
    return store.add(Image.empty() + Layer.files(files, mode=0o755), "example/judge:1")


def container(top: ImageRoot | None = None) -> isolate.Sandbox:
    """A root from the host's /usr or an image, every namespace new, an unprivileged id on the host, no capability."""
    host_uid, host_gid = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    links = [
        isolate.Symlink(os.readlink(path), path) if os.path.islink(path) else isolate.Bind(path)
        for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
        if os.path.lexists(path)
    ]
    system = [isolate.Bind("/usr"), *links] if top is None else [top]
    ids = isolate.IdMap.single(USER, USER, host_uid=host_uid, host_gid=host_gid)
    if top is not None and os.geteuid() == 0:
        ids = isolate.IdMap.unprivileged()  # an image's files belong to its root: an id that nobody has outside
    return isolate.Sandbox(
        isolate.UserNamespace(uid=USER, gid=USER, map=ids),
        isolate.MountNamespace(),
        isolate.PidNamespace(),
        isolate.NetNamespace(),
        isolate.IpcNamespace(),
        isolate.UtsNamespace(hostname="judge"),
        isolate.Root(
            *system,
            isolate.File("/etc/passwd", f"judge:x:{USER}:{USER}::/tmp:/bin/sh\n".encode()),
            isolate.Proc(),
            isolate.Dev(),
            isolate.Tmpfs("/tmp", size="16M"),
        ),
        isolate.Credentials(uid=USER, gid=USER),
        isolate.Capabilities.none(),
        isolate.Rlimits(nofile=64, core=0, as_="1G", fsize="16M"),
    )


class Bait:
    """What stands outside: a secret, a listener, a process, a directory that anybody may write to."""

    def __init__(self, directory: Path) -> None:
        self.secret = directory / "secret"
        self.secret.write_text("the answers to the exam\n")
        self.secret.chmod(0o644)
        self.outside = directory / "outside"
        self.outside.mkdir()
        self.outside.chmod(0o777)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.process = subprocess.Popen(["sleep", "60"])

    def arguments(self) -> list[str]:
        """What the hostile submission is told, so that it need not even search."""
        port = self.listener.getsockname()[1]
        return [str(self.secret), str(port), str(self.process.pid), str(self.outside)]

    def harm(self) -> list[str]:
        """What has happened outside."""
        found = []
        self.listener.settimeout(0.05)
        try:
            self.listener.accept()[0].close()
            found.append("somebody connected to the listener")
        except TimeoutError:
            pass
        if self.process.poll() is not None:
            found.append("the process was killed")
        if list(self.outside.iterdir()):
            found.append("a file was written outside")
        return found

    def close(self) -> None:
        """Take it away."""
        self.listener.close()
        self.process.kill()
        self.process.wait()


def interpreter() -> str:
    """A Python below /usr, which is all that the container shows of the host."""
    for candidate in (shutil.which("python3", path="/usr/bin:/usr/local/bin"), sys.executable):
        if candidate and os.path.realpath(candidate).startswith("/usr/"):
            return candidate
    raise SystemExit("no python3 below /usr: install Debian's package python3")


def control(python: str, bait: Bait) -> int:
    """The hostile submission without any container."""
    done = subprocess.run([python, "-c", HOSTILE, *bait.arguments()], capture_output=True, text=True, check=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        bait.process.wait(5)  # the signal that it sent has to arrive
    print(done.stdout, end="")
    harm = bait.harm()
    print("outside:", "; ".join(harm))
    return 0 if done.stdout.count("SUCCEEDED") == 4 and len(harm) == 3 else 1


def judge(python: str, bait: Bait, box: isolate.Sandbox, seconds: float) -> int:
    """Run the three, print the table; 0 if each ended as it should and nothing happened outside."""
    submissions = [
        ("honest", [python, "-c", HONEST], "1\n2\n39\n", isolate.Verdict.OK),
        ("endless", [python, "-c", ENDLESS], "", isolate.Verdict.TIMEOUT),
        ("hostile", [python, "-c", HOSTILE, *bait.arguments()], "", isolate.Verdict.OK),
    ]
    right = True
    print(f"{'submission':<12}{'verdict':<10}{'wall':>8}{'cpu':>9}{'memory':>10}  output")
    for name, command, given, expected in submissions:
        result = box.run(command, input=given, timeout=seconds, max_output="64K", text=True)
        lines = (result.stdout or "").strip().splitlines() or [""]
        figures = f"{result.wall_time:7.2f}s{result.cpu_time:8.2f}s{result.peak_memory / 2**20:7.1f}MiB"
        print(f"{name:<12}{result.verdict:<10}{figures}  {lines[0]}")
        for line in lines[1:]:
            print(" " * 51 + line)
        if result.stderr:
            print(result.stderr, file=sys.stderr, end="")
        right &= result.verdict is expected
        right &= lines[0] == "42" if name == "honest" else "SUCCEEDED" not in (result.stdout or "")
    harm = bait.harm()
    print("outside:", "; ".join(harm) or "the secret unread, no connection, the process alive, nothing written")
    return 0 if right and not harm else 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run three programs that nobody trusts.")
    parser.add_argument("--explain", action="store_true", help="print the container's steps and kernel calls")
    parser.add_argument("--control", action="store_true", help="run the hostile one without the container")
    parser.add_argument(
        "--image", nargs="?", const="", metavar="ROOT", help="the root is an image, of the interpreter or of ROOT"
    )
    parser.add_argument("--seconds", type=float, default=1, help="the limit of time for each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        box, python = container(), interpreter()
        if options.image is not None:
            store = Store(f"{directory}/store")
            box = container(ImageRoot(image(store, options.image or None, python), store=store))
        if options.explain:
            print(box.explain())
            return 0
        bait = Bait(Path(directory))
        try:
            return control(python, bait) if options.control else judge(python, bait, box, options.seconds)
        finally:
            bait.close()
            if options.image is not None:
                store.untag("example/judge:1")
                store.collect()  # whoever owns the files: then the directory can be removed


if __name__ == "__main__":
    sys.exit(main())
