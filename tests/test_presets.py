"""The presets: what a program finds that nobody vouches for, what it does not reach, and what a caller changes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from isolate import (
    Bind,
    ConflictError,
    Credentials,
    Etc,
    IdMap,
    Landlock,
    NetNamespace,
    Result,
    Rlimits,
    Root,
    Sandbox,
    Seccomp,
    Tmpfs,
    UserNamespace,
    UtsNamespace,
    presets,
)
from isolate.engine.plan import Context
from isolate.landlock.part import landlock_abi
from isolate.seccomp import allow, deny

PYTHON = [Bind(path) for path in {sys.prefix, sys.base_prefix} if not path.startswith("/usr")]


def python(code: str, *entries: Any, **options: Any) -> Result[str]:
    box = presets.untrusted(*PYTHON, *entries, **options)
    return box.run([sys.executable, "-ISc", code], text=True, timeout=60)


# ---- /etc ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [presets.untrusted, presets.nested, presets.container])
def test_a_keyword_that_is_none(preset: Any) -> None:
    args = ["/srv"] if preset is presets.container else []
    for wrong, said in (
        ({"memory": "1G"}, "give limits=Limits(memory=..., pids=..., cpu=...)"),
        ({"timeout": 1}, "it is a keyword of run()"),
        ({"extras": []}, "did you mean 'extra'?"),
        ({"template": False}, "make the sandbox of the preset's parts"),
    ):
        with pytest.raises(
            TypeError, match=re.escape(f"{preset.__name__}: there is no keyword {next(iter(wrong))!r}; {said}")
        ):
            preset(*args, **wrong)


def test_a_container_of_a_name() -> None:
    with pytest.raises(ValueError, match=r"of an image give the image: container\(store.open\('debian:12'\)"):
        presets.container("debian:12")
    with pytest.raises(ValueError, match=r"an absolute path, not '\.'$"):
        presets.container(".")
    assert Sandbox(*presets.untrusted().parts, template=False).template is False


def test_who_the_program_is_and_where_localhost_is() -> None:
    code = (
        "import getpass, grp, os, pwd, socket\n"
        "print(getpass.getuser(), grp.getgrgid(os.getgid())[0], pwd.getpwnam('root').pw_uid, os.path.expanduser('~'))\n"
        "print(socket.gethostbyname('localhost'), socket.gethostbyname(socket.gethostname()))\n"
        "print(socket.getaddrinfo('localhost', 80, socket.AF_INET6)[0][4][0])"
    )
    assert python(code).stdout == "nobody nogroup 0 /tmp\n127.0.0.1 127.0.1.1\n::1\n"
    # The control: without these files.
    bare = presets.untrusted(*PYTHON)
    root = next(part for part in bare.parts if isinstance(part, Root))
    entries = [entry for entry in root.entries if not isinstance(entry, Etc)]
    box = Sandbox(*(Root(*entries) if part is root else part for part in bare.parts))
    assert "KeyError" in (box.run([sys.executable, "-ISc", code], text=True).stderr or "")


@pytest.mark.parametrize(
    ("parts", "user", "group"),
    [
        ((), None, None),
        ((UserNamespace(),), "root:x:0:0:root:/home/x:/bin/sh", "root:x:0:"),
        ((UserNamespace(uid=1000, gid=100),), "user:x:1000:100:user:/home/x:/bin/sh", "user:x:100:"),
        ((Credentials(uid=7, gid=8),), "user:x:7:8:user:/home/x:/bin/sh", "user:x:8:"),
    ],
)
def test_names_are_for_the_ids_inside(parts: tuple[Any, ...], user: str | None, group: str | None) -> None:
    context = Context((*parts, UtsNamespace(hostname="box")), euid=12, egid=13)
    files = Etc(home="/home/x", dns=True).files(context)
    assert (user or "user:x:12:13:user:/home/x:/bin/sh") in files["passwd"].splitlines()
    assert (group or "user:x:13:") in files["group"].splitlines()
    assert len({line.split(":")[2] for line in files["passwd"].splitlines()}) == len(files["passwd"].splitlines())
    assert "127.0.1.1\tbox" in files["hosts"]
    assert "hosts: files dns\n" in files["nsswitch.conf"]


def test_etc_is_a_value_that_refuses() -> None:
    for home in ("relative", "/a:b", "/a\nroot::0:0:::", 5):
        with pytest.raises(ValueError, match="home"):
            Etc(home=home)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dns"):
        Etc(dns="yes")  # type: ignore[arg-type]
    assert Etc() == Etc("/etc")
    assert repr(Etc(dns=True)) == "Etc(dns=True)"


@pytest.mark.skipif(shutil.which("javac") is None, reason="no javac here")
@pytest.mark.slow
def test_a_runtime_under_usr_finds_its_configuration() -> None:
    """Debian's javac does not start without /etc/java-*-openjdk."""
    script = "cd /tmp && echo 'class A { public static void main(String[] a) { System.out.println(42); } }' > A.java"
    done = presets.untrusted().run(["sh", "-c", f"{script} && javac A.java && java A"], text=True, timeout=120)
    assert done.stdout == "42\n", done


def test_certificates_are_there_and_no_secret() -> None:
    done = presets.untrusted().run(["sh", "-c", "ls /etc/ssl; cat /etc/shadow /etc/ssl/private/*"], text=True)
    if os.path.isdir("/etc/ssl/certs"):
        assert "certs" in (done.stdout or "")
    assert "private" not in (done.stdout or "")
    assert not done.ok


# ---- the host's network ----------------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Any:
    """An abstract socket of the host's, and its name without the NUL."""
    with socket.socket(socket.AF_UNIX) as server:
        name = f"isolate-test-{os.getpid()}"
        server.bind(b"\0" + name.encode())
        server.listen()
        yield name


REACH = "import socket; s = socket.socket(socket.AF_UNIX)\ntry: s.connect(chr(0) + {name!r}); print('reached')\n"
REACH += "except OSError as error: print(error.errno)"


def test_abstract_sockets_of_the_host_are_out_of_reach(listening: str) -> None:
    done = python(REACH.format(name=listening), network=True)
    if landlock_abi() >= 6:
        assert done.stdout == "1\n"
        assert done.applied["Landlock"] is True
    else:
        assert done.applied["Landlock"] is False  # said so
    # The control: the same sandbox without the scope.
    box = presets.untrusted(*PYTHON, network=True)
    naked = Sandbox(*(part for part in box.parts if not isinstance(part, Landlock)))
    reached = naked.run([sys.executable, "-ISc", REACH.format(name=listening)], text=True)
    assert reached.stdout == "reached\n"


def test_the_scope_takes_nothing_else_away() -> None:
    """Landlock denies links and renames between directories wherever it handles files: it handles none here."""
    code = (
        "import os, socket\nos.mkdir('/tmp/a'); os.mkdir('/tmp/b'); open('/tmp/a/f', 'w').close()\n"
        "os.rename('/tmp/a/f', '/tmp/b/g'); os.link('/tmp/b/g', '/tmp/a/h')\n"
        "a = socket.socket(socket.AF_UNIX); a.bind(chr(0) + 'mine'); a.listen()\n"
        "b = socket.socket(socket.AF_UNIX); b.connect(chr(0) + 'mine'); print('fine')"
    )
    assert python(code, network=True).stdout == "fine\n"


def test_an_unprivileged_network_is_the_callers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = (
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5); print('there')"
        )
        assert python(connect, network=True).stdout == "there\n"
        assert "refused" in (python(connect).stderr or "")


# ---- what a caller changes -------------------------------------------------------------------------------------------


def test_a_part_takes_the_place_of_the_presets_own() -> None:
    box = presets.untrusted(extra=[Rlimits(nofile=99), UtsNamespace(hostname="mine")])
    assert box.run(["sh", "-c", "ulimit -n; hostname"], text=True).stdout == "99\nmine\n"
    container = presets.container("/", extra=[NetNamespace(loopback=False)])
    assert sum(isinstance(part, NetNamespace) for part in container.parts) == 1
    with pytest.raises(ConflictError):
        presets.untrusted(extra=[Rlimits(), Rlimits()])


def test_a_policy_that_extends_the_presets_takes_its_place_and_any_other_stands_beside_it() -> None:
    def policies(*extra: Seccomp) -> list[Seccomp]:
        return [part for part in presets.untrusted(extra=extra).parts if isinstance(part, Seccomp)]

    debuggers = Seccomp.default() + allow("@debug")
    assert policies(debuggers) == [debuggers]
    other = Seccomp(deny("mkdir", "mkdirat"), otherwise="allow")
    assert policies(other) == [Seccomp.default(), other]
    assert policies(Seccomp.strict())[0] == Seccomp.default()
    assert Seccomp.default().extends(Seccomp.default())
    assert not Seccomp.default().extends(debuggers)
    assert not (Seccomp.default() - "ptrace" - "openat").extends(Seccomp.default())


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
def test_debuggers_work_where_they_are_given_back() -> None:
    args = ["strace", "-f", "-o", "/dev/null", "/bin/echo", "traced"]
    assert not presets.untrusted().run(args).ok
    assert presets.untrusted(extra=[Seccomp.default() + allow("@debug")]).run(args, text=True).stdout == "traced\n"


def test_the_command_line_names_the_ids_that_it_gives() -> None:
    args = [sys.executable, "-m", "isolate", "run", "--uid", "1234", "--", "/usr/bin/id", "-un"]
    assert subprocess.run(args, capture_output=True, text=True, check=True).stdout == "user\n"


def test_maps_and_entries_are_the_callers_to_choose() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name, "passwd").write_text("me:x:65534:65534::/:/bin/sh\n")
        os.chmod(name, 0o755)
        box = presets.untrusted(Bind(f"{name}/passwd", "/etc/passwd"), Tmpfs("/scratch"))
        assert box.run(["id", "-un"], text=True).stdout == "me\n"
    ids = IdMap.single(5, 6, host_uid=os.geteuid() or 65534, host_gid=os.getegid() or 65534)
    box = presets.untrusted(extra=[UserNamespace(uid=5, gid=6, map=ids)])
    assert box.run(["sh", "-c", "id -u; id -g; id -un"], text=True).stdout == "5\n6\nuser\n"
