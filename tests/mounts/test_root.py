"""Root: the old one is gone, the host's mounts stay, and an entry of a user's own has all that ours have."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import (
    Bind,
    Capabilities,
    ConflictError,
    Dev,
    Dir,
    File,
    MountNamespace,
    Overlay,
    PidNamespace,
    Proc,
    Root,
    Sandbox,
    Seccomp,
    SetupError,
    Symlink,
    Tmpfs,
    UserNamespace,
    syscalls,
)
from isolate.engine.plan import Phase, Register, Step, Target, call
from isolate.engine.plan import Test as Compare
from isolate.mounts import Building, Entry, TreeEntry
from isolate.seccomp import deny
from tests.mounts.conftest import SYSTEM, Shell, mount_table, mounts
from tests.mounts.test_pseudo import nested

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_nothing_of_the_old_root_is_left(shell: Shell) -> None:
    """Neither by path nor in the table of mounts."""
    entries = (Tmpfs("/tmp"), Dev(), File("/etc/f", "x"))
    table = mounts(shell, *entries)
    outside = set(table) - {"/", "/usr", "/tmp", "/etc/f", "/bin", "/lib", "/lib64"}
    assert all(name.startswith(("/dev", "/proc")) for name in outside), table
    result = shell("ls /; ls /.. ; cd /; pwd; cd ../../..; pwd; ls /proc/1/root 2>&1", Proc(), *entries)
    inside = {"bin", "dev", "etc", "lib", "lib64", "proc", "tmp", "usr"}
    assert set(str(result.stdout).split()) - {"/", "ls:"} >= {"usr", "tmp"}
    assert not set(str(shell("ls / /..", Proc(), *entries).stdout).split()) - inside - {"/:", "/..:"}


@pytest.mark.parametrize("sys_there", [True, False])
def test_the_scratch_needs_no_sys(sys_there: bool) -> None:
    """It is put aside on the old root's /sys; where there is none, on the old root itself, and goes all the same."""
    code = """
import os
from isolate import *
table = "cut -d' ' -f5 /proc/self/mountinfo; test -d /sys"
system = [Bind(d) for d in ("/usr", "/bin", "/lib", "/lib64")]
box = Sandbox(PidNamespace(), Root(*system, Proc(), Dev(), File("/f", "x")))
result = box.run(["sh", "-c", table], text=True)
print(os.path.isdir("/sys"), result.returncode, " ".join(sorted(set(result.stdout.split()) - {"/"})))
"""
    known = {"proc", "sys", "dev"}
    entries = [Bind(f"/{name}") for name in os.listdir("/") if name not in known and Path("/", name).is_dir()]
    old = Root(*entries, Proc(masked=(), read_only=()), Dev(), *([Dir("/sys")] if sys_there else []))
    box = Sandbox(UserNamespace(), old, Capabilities.all(), Seccomp(otherwise="allow"))
    result = box.run([sys.executable, "-c", code], text=True)
    there, status, *table = result.stdout.split()
    assert (there, status) == (str(sys_there), "1"), result
    assert {"/usr", "/dev", "/f"} <= set(table)
    assert all(place.startswith(("/usr", "/bin", "/lib", "/dev", "/proc", "/f")) for place in table), table


def test_the_hosts_mounts_stay(parts: tuple[Any, ...], place: Path) -> None:
    """While it runs and after. Other programs mount things too: what is ours is known by its name or its options."""

    def ours() -> list[str]:
        return [line for line in mount_table().splitlines() if str(place) in line or "nr_inodes=777" in line]

    entries = (Proc(), Dev(), Tmpfs("/tmp", inodes=777), File("/f", "x"), Bind(place, "/p"), Tmpfs("/p", inodes=777))
    box = Sandbox(Root(*SYSTEM, *entries), *parts)
    with box.spawn(["/bin/sleep", "60"]) as process:
        inside = Path(f"/proc/{process.pid}/mountinfo").read_text()
        assert inside.count("nr_inodes=777") == 2
        assert str(place)[1:] in inside
        assert ours() == []
    assert ours() == []


SPREAD = """
import subprocess
def ours(): return open("/proc/self/mountinfo").read().count("nr_inodes=777")
root = Root(Bind("/usr"), Bind("/lib"), Bind("/lib64"), Proc(), Dev(), File("/f", "x"), Tmpfs("/tmp", inodes=777))
mount = ["mount", "-t", "tmpfs", "-o", "nr_inodes=777", "none", "/tmp"]
for box in (Sandbox(root), Sandbox(root, UserNamespace()), Sandbox(MountNamespace(), Capabilities({"SYS_ADMIN"}))):
    before = open("/proc/self/mountinfo").read()
    assert box.run(["/usr/bin/true"] if root in box.parts else mount).ok
    print(ours(), open("/proc/self/mountinfo").read() == before)
subprocess.run(["unshare", "-m", "--propagation", "unchanged", *mount], check=True)
print(ours())
"""


def test_nothing_spreads_where_the_hosts_mounts_are_shared() -> None:
    """As systemd makes them. The control, a mount namespace that leaves propagation as it is, shows on the host."""
    done = nested("mount --make-rshared /; grep -q ' / .* shared:' /proc/self/mountinfo", SPREAD)
    assert done.stdout.split() == ["0", "True"] * 3 + ["1"], done.stderr


ESCAPE = """
import os
os.mkdir("/x")
os.chroot("/x")
for _ in range(50):
    os.chdir("..")
os.chroot(".")
print(*sorted(os.listdir("/")))
"""


@as_root
def test_the_way_out_of_a_chroot_leads_nowhere(place: Path) -> None:
    """With all that root may: the old root is not above the new one. Out of a chroot the same way leads."""
    if not os.path.exists("/usr/bin/python3"):
        pytest.skip("needs /usr/bin/python3")
    keep = Capabilities(Capabilities.of().permitted)
    inside = Sandbox(Root(*SYSTEM, read_only=False), keep).run(["/usr/bin/python3", "-c", ESCAPE], text=True)
    assert set(str(inside.stdout).split()) <= {"bin", "lib", "lib64", "usr", "x"}, inside.stderr
    assert "usr" in str(inside.stdout)
    control = subprocess.run(
        [sys.executable, "-c", f"import os; os.chroot({str(place)!r})\n{ESCAPE}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert control.stdout.split() == sorted(os.listdir("/"))


UNDERNEATH = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
taken = libc.umount2(b"/", 2)
libc.syscall({syscalls.number("setns")}, namespace, 0x20000)
print(taken, os.path.exists(sys.argv[1]))
"""


@as_root
def test_the_old_root_does_not_lie_under_the_new_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that root may: whoever takes the new root off, and enters its own mount namespace anew, is not there.

    In a user namespace the new root cannot be taken off; without one the kernel's first root file system (initramfs)
    may come up. The control has the old root under the new one: chroot in place of pivot_root.
    """
    (place / "canary").touch()

    def told(*parts: Any) -> str:
        box = Sandbox(Root(*SYSTEM, Proc()), Capabilities(Capabilities.of().permitted), *parts)
        return str(box.run(["/usr/bin/python3", "-c", UNDERNEATH, str(place / "canary")], text=True).stdout)

    assert told() == "0 False\n"
    assert told(UserNamespace()) == "-1 False\n"

    def without_pivot(name: str, *arguments: Any, **how: Any) -> Any:
        here = name == "pivot_root" and "label" in how
        return Compare(0, 1, label=how["label"]) if here else call(name, *arguments, **how)

    monkeypatch.setattr("isolate.mounts.root.call", without_pivot)
    assert told() == "0 True\n"


def test_each_run_begins_anew(parts: tuple[Any, ...]) -> None:
    box = Sandbox(Root(*SYSTEM, Dev(), Tmpfs("/tmp"), Overlay("/o", lower=["/usr/share"])), *parts)
    script = "for d in /tmp /dev/shm /o; do test -e $d/mark && echo $d; echo x > $d/mark; done; ls /tmp"
    for _ in range(3):
        assert box.run(["/bin/sh", "-c", script], text=True).stdout == "mark\n"


def test_the_root_is_small_and_read_only(shell: Shell) -> None:
    assert "Read-only file system" in str(shell("mkdir /x").stderr)
    assert shell("mkdir /x && echo text > /x/f && cat /x/f", read_only=False).stdout == "text\n"
    full = shell("head -c 2M /usr/bin/bash > /f", read_only=False)
    assert "No space left" in str(full.stderr)
    assert shell("head -c 1500K /usr/bin/bash > /f || head -c 1500K /dev/zero > /f", read_only=False, size="8M").ok
    assert str(shell("stat -c %a /", mode=0o711).stdout) == "711\n"


def test_a_tree_as_the_root(parts: tuple[Any, ...], place: Path) -> None:
    for name in ("usr", "tmp", "bin", "lib", "lib64"):
        place.joinpath(name).mkdir()
    binds = [Bind(f"/{name}") for name in ("usr", "bin", "lib", "lib64") if os.path.exists(f"/{name}")]

    def run(script: str, **how: Any) -> Any:
        box = Sandbox(Root(Bind(place, "/", **how), *binds, Tmpfs("/tmp")), *parts)
        return box.run(["/bin/sh", "-c", script], text=True)

    result = run("ls /; echo x > /new; echo y > /tmp/new")
    assert str(result.stdout).split() == ["bin", "lib", "lib64", "tmp", "usr"]
    assert str(result.stderr).count("Read-only file system") == 1
    assert run("echo x > /new", read_only=False).ok
    assert (place / "new").read_text() == "x\n"


def test_a_target_missing_in_something_read_only(parts: tuple[Any, ...], place: Path) -> None:
    """Read-only means that we do not write either."""
    with pytest.raises(SetupError) as caught:
        Sandbox(Root(Bind(place, "/"), Bind("/usr")), *parts).run(["/usr/bin/true"])
    assert (caught.value.errno, caught.value.path) == (30, "/usr")
    assert caught.value.cause
    assert os.listdir(place) == []


LIST = (
    "import isolate, os, isolate.diagnosis.setup\n"
    "b = isolate.Sandbox(isolate.Root(isolate.Bind('/usr'), isolate.Bind('/lib64'), isolate.Bind('/lib')))\n"
    "b.run(['/usr/bin/true'])\n"  # what Python loads late, it loads now
    "%s\n"
    "r = b.run(['/usr/bin/ls', '/', '/..'], text=True); print(r.stdout.split(), r.applied['Root'])\n"
)
LISTED = "['/:', 'lib', 'lib64', 'usr', '/..:', 'lib', 'lib64', 'usr']"


@as_root
def test_where_pivot_root_cannot_work() -> None:
    """On an initramfs roots cannot be swapped, EINVAL: then the new one covers the old, and the result tells."""
    keep = Capabilities(Capabilities.of().permitted)
    refuses = Sandbox(Seccomp(deny("pivot_root", errno="EINVAL"), otherwise="allow"), keep)
    code = LIST % ""
    covered = refuses.run([sys.executable, "-c", code], env=os.environ, text=True)
    assert covered.stdout == f"{LISTED} False\n", covered.stderr
    swapped = Sandbox(keep).run([sys.executable, "-c", code], env=os.environ, text=True)
    assert swapped.stdout == f"{LISTED} True\n", swapped.stderr


@as_root
def test_in_a_chroot(place: Path) -> None:
    """In one that is a mount point all is as ever; in a plain one propagation cannot be turned off, and nothing
    starts.
    """
    make = (
        f"for d in usr lib lib64 proc dev; do mkdir {place}/$d; mount --rbind /$d {place}/$d; done; touch {place}/old"
    )
    code = LIST % f"os.chroot('{place}')"
    whole = nested(f"mount --bind {place} {place}; {make}", code)
    assert whole.stdout == f"{LISTED} True\n", whole.stderr
    plain = nested(make.replace("mkdir", "mkdir -p"), code)
    assert "is no mount point" in plain.stderr
    assert plain.stdout == ""


def test_something_stacked_on_the_hosts_root() -> None:
    """umount2 takes what lies on top: the old root must go too, not only what the host had put on it."""
    code = (
        "import os\nw = [] if os.geteuid() == 0 and not os.environ.get('U') else [UserNamespace()]\n"
        "b = Sandbox(Root(Bind('/usr'), Bind('/lib64'), Bind('/lib'), Proc()), *w)\n"
        "print(*[l.split()[4] for l in b.run(['/usr/bin/cat', '/proc/self/mountinfo'], text=True).stdout.splitlines()])"
    )
    plain = nested("true", code)
    stacked = nested("mount -t tmpfs none /; mount -t tmpfs none /", code)
    assert plain.returncode == stacked.returncode == 0, stacked.stderr
    assert sorted(plain.stdout.split()) == sorted(stacked.stdout.split())
    assert "/sys" not in stacked.stdout.split()


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Root(Bind), TypeError, r"did you mean Bind\(...\)\?"),
        (lambda: Root("/usr"), TypeError, "not an entry"),  # type: ignore[arg-type]
        (lambda: Root(PidNamespace()), TypeError, "not an entry"),  # type: ignore[arg-type]
        (lambda: Root(Tmpfs("/tmp"), Bind("/usr", "/")), ConflictError, "only the first"),
        (lambda: Root(File("/", b"")), ConflictError, "only the first"),
        (lambda: Root(Proc("/")), ConflictError, "only the first"),
        (lambda: Root(Bind("/r", "/", optional=True)), ConflictError, "cannot be optional"),
        (lambda: Sandbox(Bind("/usr")), TypeError, "an entry of Root"),  # type: ignore[arg-type]
        (lambda: Root(size=0), ValueError, "size"),
        (lambda: Root(inodes=1), ValueError, "inodes"),
        (lambda: Root(mode=-1), ValueError, "mode"),
        (lambda: Sandbox(Root(), Root(Tmpfs("/t"))), ConflictError, "two parts say Root"),
    ],
)
def test_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_is_a_value() -> None:
    assert Root(Bind("/usr"), Tmpfs("/tmp")) == Root(Bind("/usr"), Tmpfs("/tmp"))
    assert Root(Bind("/usr"), Tmpfs("/tmp")) != Root(Tmpfs("/tmp"), Bind("/usr"))
    assert len({Root(), Root(), Root(size="2M")}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Bind('/usr')",
        "Bind('/a', '/b', read_only=False)",
        "Bind('/a,b\\udcff', '/b')",
        "Tmpfs('/tmp', size='1M', mode=0o700)",
        "Overlay('/', lower=['/a', '/b'])",
        "Proc()",
        "Proc('/p', subset='pid')",
        "Proc(masked=['/x'])",
        "Sys()",
        "Dev()",
        "Dev(shm=None)",
        "Mqueue()",
        "Dir('/d')",
        "Dir('/d', mode=0o700)",
        "Symlink('a', '/l')",
        "Mask('/m', optional=True)",
        "ReadOnly('/r')",
        "Root(Bind('/usr'), Proc(), size='2M', read_only=False)",
    ],
)
def test_prints_as_the_code_that_makes_it(text: str) -> None:
    value = eval(text, {name: getattr(isolate, name) for name in isolate.__all__})
    assert repr(value) == text


def test_brings_a_mount_namespace_unless_there_is_one() -> None:
    ours = MountNamespace(propagation="slave")
    box = Sandbox(Root(Tmpfs("/tmp")), ours, UserNamespace())
    assert "slave propagation" in box.explain()
    assert "private propagation" in Sandbox(Root(Tmpfs("/tmp")), UserNamespace()).explain()


# ---- explain -------------------------------------------------------------------------------------------------------


def test_explain_needs_nothing(place: Path) -> None:
    """No privileges, and not even the files."""
    code = (
        "from isolate import *\n"
        "print(Sandbox(Root(Overlay('/', lower=['/no/such']), Bind('/nor/this'), Tmpfs('/t', "
        "size='8K'), Proc(), Sys(), Dev(),"
        " Mqueue('/q'), File('/f', b'data'), Dir('/d'), Symlink('a', '/l'), Mask('/m'), ReadOnly('/r'))).explain())"
    )
    keywords: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/", **keywords
    )
    assert done.returncode == 0, done.stderr
    for words in (
        'open_tree(AT_FDCWD, "/nor/this", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE) = <tree>',
        "MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV",
        'fsconfig(<tmpfs>, FSCONFIG_SET_STRING, "size", "8192", 0)',
        "pivot_root",
        "umount2",
        "procfs on /proc",
        "cover /m",
        "RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS|RESOLVE_NO_SYMLINKS",
    ):
        assert words in done.stdout, words
    sources = done.stdout.index("/nor/this")
    assert sources < done.stdout.index("pivot_root") < done.stdout.index("execve")


# ---- an entry of one's own -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hosts:
    """A user's own entry: a file of its own, a directory beside it, by the public means alone."""

    names: tuple[str, ...]

    def steps_in(self, building: Building) -> Iterator[Step]:
        yield from File("/etc/hosts", "".join(f"127.0.0.1 {name}\n" for name in self.names)).steps_in(building)
        fd = Register("directory")
        yield Step(
            Phase.ROOT,
            "a directory of mine",
            (
                Target(building.root, b"/mine", fd, make="dir"),
                call("mkdirat", fd, b"inner", 0o700),
                call("close", fd),
            ),
            path=b"/mine",
        )


@dataclass(frozen=True)
class Fresh:
    """A user's own mount, which can also be the root."""

    target: str

    @property
    def place(self) -> bytes:
        return self.target.encode()

    def tree(self, building: Building) -> tuple[Register, list[Step]]:
        register, steps = Tmpfs("/", mode=0o700).tree(building)
        return register, list(steps)

    def steps_in(self, building: Building) -> Iterator[Step]:
        register, steps = self.tree(building)
        yield from steps
        yield Step(Phase.ROOT, "mine", (*building.attach(register, self.place), call("close", register)))


def test_entries_of_ones_own(shell: Shell, parts: tuple[Any, ...]) -> None:
    assert isinstance(Hosts(()), Entry)
    assert isinstance(Fresh("/"), TreeEntry)
    result = shell("cat /etc/hosts; ls /mine; stat -c %a /fresh", Hosts(("a", "b")), Fresh("/fresh"))
    assert result.stdout == "127.0.0.1 a\n127.0.0.1 b\ninner\n700\n", result.stderr
    box = Sandbox(Root(Fresh("/"), *SYSTEM), *parts)
    assert box.run(["/bin/sh", "-c", "echo x > /y && stat -c %a /"], text=True).stdout == "700\n"


def test_symlinks_made_earlier_are_followed_inside(shell: Shell) -> None:
    """/bin is a link to usr/bin: what is mounted on /bin/x lands in usr/bin."""
    assert shell("cat /real/f", Dir("/real"), Symlink("real", "/link"), File("/link/f", "text")).stdout == "text"
