"""Networks with a name, joined by other programs; the command line; the pytest fixture."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from isolate import PidNamespace, Sandbox, network
from isolate.errors import SetupError
from isolate.network.shared import _address, names
from isolate.tools.cli import main
from tests.network.hosts import connects, host, until
from tests.tools.test_pytest_plugin import outcome

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def test_another_program_joins() -> None:
    with network.Network(name="lan") as lan:
        assert names() == ["lan"]
        theirs = network.find("lan")  # as another program has it: nothing but the name
        assert (theirs.subnet, theirs.subnet6, theirs.mtu) == (lan.subnet, lan.subnet6, lan.mtu)
        with host(lan, "db") as db, db.listen(5432):
            wanted = network.Interface(
                theirs, name="web", publish={8080: 80}, egress=network.Egress(["db:5432"]), rate="50M"
            )
            box = Sandbox(PidNamespace(), wanted)
            code = f"import socket; socket.create_connection(({db.address!r}, 5432), 30); print('in')"
            assert box.run(["python3", "-c", code]).stdout == b"in\n"
            assert until(lambda: list(lan.members) == ["db"]), "the owner has seen that it has left"
            with box.spawn(["sleep", "60"]):
                (web,) = [m for m in theirs.tell()["members"] if m["name"] == "web"]
                assert web["published"] == ["127.0.0.1:8080/tcp"]
                assert web["egress"] == ["db:5432"]
                assert theirs.members == lan.members
                assert sorted(theirs.members) == ["db", "web"]
                with pytest.raises(SetupError, match="named 'web' already"):
                    box.run(["true"])
            assert until(lambda: list(lan.members) == ["db"])
            for bad in ({"address": "10.0.0.1"}, {"nmae": "x"}, {"publish": [["x", 1]]}):
                with pytest.raises(SetupError, match="its owner says"):
                    _asks("lan", {"ask": "join", "options": bad})
        with pytest.raises(SetupError, match="another network has the name"):
            network.Network(name="lan")
    assert names() == []
    with pytest.raises(SetupError, match=r"errno 2\)\n.*no network with a name\n.*net create"):
        network.find("lan")
    with pytest.raises(ValueError, match="host name"):
        network.Network(name="a/b")


def _asks(name: str, wanted: object) -> None:
    from isolate.network.shared import _asked

    _asked(name, wanted).close()  # type: ignore[arg-type]


def test_nonsense_at_the_door() -> None:
    with network.Network(name="lan") as lan:
        before = len(os.listdir("/proc/self/fd"))
        for data in (b"", b"x", b"[]", b"{}" * 9, b"\xff", b'{"ask": "attach"}', b'{"ask": 7}', b"9" * 70000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, open("/dev/null") as file:
                sock.settimeout(30)
                sock.connect(_address("lan"))
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", file.fileno()))]
                sock.sendmsg([data], rights if data else [])
                answer = sock.recv(1 << 16)
                assert not answer or json.loads(answer)["name"] == "lan"
        assert until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert lan.members == {}


def test_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "isolate", "net", "create", "lan", "--subnet", "10.99.0.0/24"]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "lan 10.99.0.0/24\n"
        assert main(["net", "ls"]) == 0
        assert capfd.readouterr().out.splitlines()[1].split() == ["lan", "10.99.0.0/24", "-", "0", str(owner.pid)]
        assert main(["run", "--net", "lan", "--name", "web", "--", "ip", "-br", "-4", "address"]) == 0
        assert "10.99.0.2/24" in capfd.readouterr().out
        assert main(["net", "inspect", "lan"]) == 0
        assert json.loads(capfd.readouterr().out)["subnet"] == "10.99.0.0/24"
    finally:
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(30) == 0
        assert owner.stdout is not None
        owner.stdout.close()
    assert main(["net", "ls", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == []
    for words in (
        ["--net", "host", "--publish", "80:80"],
        ["--publish", "80"],
        ["--publish", "0:80"],
        ["--name", "x"],
        ["--net", "user", "--name", "x"],
        ["--net", "a b"],
    ):
        assert main(["run", *words, "--", "true"]) == 2, words
    assert main(["run", "--net", "nobody", "--", "true"]) == 125
    assert "no network with a name" in capfd.readouterr().err


def test_a_published_port_of_the_command_line() -> None:
    code = "import socket; s = socket.create_server(('', 80)); print('up', flush=True); s.accept()[0].sendall(b'in')"
    command = [sys.executable, "-m", "isolate", "run", "--publish", "8080:80", "--", "python3", "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    with socket.create_connection(("127.0.0.1", 8080), 30) as sock:
        assert sock.recv(9) == b"in"
    assert process.wait(30) == 0
    process.stdout.close()
    assert not connects("127.0.0.1", 8080)


LAN = """
import socket, pytest

def test_hosts(lan):
    a, b = lan.hosts("a", "b")
    slow = lan.host("slow", rate="8M")
    with a.net:
        server = socket.create_server((a.address, 80))
    with server:
        code = "import socket; print(socket.create_connection(('a', 80), 20).getpeername()[0])"
        result = b.run(["python3", "-c", code], text=True)
        assert result.stdout.split() == [a.address], result.stderr
        with slow.spawn(["true"]) as process:
            assert process.wait() == 0
    with lan.impair("b", loss=1):
        assert lan.stats("a").received_bytes > 0

@pytest.mark.parametrize("fails", [True, False])
def test_captured(lan, fails):
    a, b = lan.hosts("a", "b")
    with a.net, pytest.raises(ConnectionRefusedError):
        socket.create_connection((b.address, 9), 20)
    assert not fails
"""


def test_the_fixture(tmp_path: Path) -> None:
    counts, text = outcome(LAN, tmp_path, f"--isolate-capture={tmp_path}/kept")
    assert counts == {"passed": 2, "failed": 1}, text
    (kept,) = (tmp_path / "kept").iterdir()
    assert "True" in kept.name
    assert {file.name for file in kept.iterdir()} == {"a.pcapng", "b.pcapng"}


ORDINARY = """
def test_hosts(lan):
    a, b = lan.hosts("a", "b")
    code = "import socket; print(socket.gethostbyname('a'))"
    assert b.run(["python3", "-c", code], text=True).stdout.split() == [a.address]
    assert lan.stats("b").sent_bytes > 0
"""


@pytest.mark.slow
def test_the_fixture_as_an_ordinary_user(tmp_path: Path) -> None:
    counts, text = outcome(ORDINARY, tmp_path, uid=65534)
    assert counts == {"passed": 1}, text
