"""Ways around ``Domains`` by other protocols than its proxy's: QUIC, ICMP, link-local and metadata addresses, DNS by
hand, redirects, unix and abstract sockets, AF_VSOCK. Each beside a control that gets through without the part. As root
and as an ordinary user, whose programs run the functions of this module that are no tests."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    Bind,
    Capabilities,
    MountNamespace,
    NetNamespace,
    PidNamespace,
    Sandbox,
    Seccomp,
    UserNamespace,
    presets,
)
from isolate.network import Connect, Domains
from isolate.network.netlink import Socket
from isolate.network.proxy.events import Log
from tests.network.hosts import give
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
METADATA, LINK_LOCAL = "169.254.169.254", "169.254.7.7"


def base() -> list[Any]:
    return [PidNamespace()] + ([UserNamespace()] if os.geteuid() else [])


def also_as_a_user(call: str) -> None:
    """Call a function of this module as an ordinary user, in the network of the thread."""
    root = str(Path(__file__).parents[2])
    as_ordinary_user(
        f"import sys; sys.path.insert(0, {root!r})\nfrom tests.network import test_domains_others as t\nt.{call}"
    )


def serve(sock: socket.socket) -> None:
    """Answer whatever comes with SECRET."""
    stream = sock.type == socket.SOCK_STREAM

    def body() -> None:
        with contextlib.suppress(OSError):
            while True:
                if stream:
                    connection, _ = sock.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(4096)
                        connection.sendall(b"SECRET")
                else:
                    _, peer = sock.recvfrom(4096)
                    if peer is None:  # it was shut down
                        return
                    sock.sendto(b"SECRET", peer)

    threading.Thread(target=body, daemon=True).start()


@pytest.fixture
def ports(machine: NetNamespace) -> Iterator[dict[str, Any]]:
    """Servers of the machine, which has the addresses of a cloud's metadata service and of a link."""
    with Socket() as sock:
        give(sock, 1, f"{METADATA}/32", f"{LINK_LOCAL}/32", "fe80::7/64")
    made = {
        "metadata": socket.create_server((METADATA, 80)),
        "local": socket.create_server((LINK_LOCAL, 0)),
        "local6": socket.create_server(("fe80::7%lo", 0, 0, 1), family=socket.AF_INET6),
        "abstract": socket.socket(socket.AF_UNIX),
        "quic": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "dns": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    }
    made["abstract"].bind(f"\0isolate-test-{os.getpid()}")
    made["abstract"].listen()
    for name in ("quic", "dns"):
        made[name].bind((LINK_LOCAL, 443 if name == "quic" else 53))
    for each in made.values():
        serve(each)
    told = {name: each.getsockname()[1] for name, each in made.items() if name.startswith("local")}
    yield {**told, "abstract": f"\0isolate-test-{os.getpid()}"}
    for each in made.values():
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


FUNCTIONS = f"""
import socket, struct
def stream(family, place):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(place)
        sock.sendall(b"x")
        return sock.recv(99)
def datagram(place, data):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(data, place)
        return sock.recv(99)
def echo():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(struct.pack(">BBHHH", 8, 0, 0xf7ff, 0, 0), ("{LINK_LOCAL}", 0))
        while True:
            if sock.recv(99)[20] == 0:
                return b"SECRET"
QUIC = b"\\xc0\\0\\0\\0\\1\\x08abcdefgh\\0\\0\\x44\\xd0" + bytes(1180)  # the head of an Initial packet
QUESTION = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\\4data\\4evil\\7example\\0" + struct.pack(">HH", 16, 1)
"""
TRY = """
for name, attempt in ATTEMPTS.items():
    try:
        print(name, attempt())
    except Exception as error:
        print(name, type(error).__name__)
"""


def attempts(ports: dict[str, Any], patience: float) -> str:
    """``patience``: so many seconds for an answer."""
    return f"""
PATIENCE = {patience}
{FUNCTIONS}
ATTEMPTS = {{
    "metadata": lambda: stream(socket.AF_INET, ("{METADATA}", 80)),
    "link-local": lambda: stream(socket.AF_INET, ("{LINK_LOCAL}", {ports["local"]})),
    "link-local-6": lambda: stream(socket.AF_INET6, ("fe80::7", {ports["local6"]}, 0, 1)),
    "abstract": lambda: stream(socket.AF_UNIX, {ports["abstract"]!r}),
    "quic": lambda: datagram(("{LINK_LOCAL}", 443), QUIC),
    "dns": lambda: datagram(("{LINK_LOCAL}", 53), QUESTION),
    "echo": echo,
}}
{TRY}"""


def other_protocols(ports: dict[str, Any]) -> None:
    part = Domains("good.example", resolve=lambda name, port: [LINK_LOCAL])
    command = [sys.executable, "-I", "-c", attempts(ports, 1)]
    raw = Capabilities({"NET_RAW"})  # as far as a program could come
    for parts in ((part,), (Connect("good.example:443"),)):
        held = Sandbox(*base(), raw, *parts).run(command, timeout=60, text=True)
        assert len(str(held.stdout).splitlines()) == 7, held.stderr
        assert "SECRET" not in str(held.stdout)
    command = [sys.executable, "-I", "-c", attempts(ports, 20)]
    control = Sandbox(*base(), raw).run(command, timeout=60, text=True)
    reached = [line.split()[0] for line in str(control.stdout).splitlines() if "SECRET" in line]
    # In the machine's network a raw socket is not an ordinary user's to have.
    assert len(reached) == (7 if os.geteuid() == 0 else 6), control.stdout
    assert os.geteuid() == 0 or "echo" not in reached


def test_other_protocols(ports: dict[str, Any]) -> None:
    other_protocols(ports)


def test_other_protocols_as_a_user(ports: dict[str, Any]) -> None:
    also_as_a_user(f"other_protocols({ports!r})")


def unix_socket() -> None:
    with tempfile.TemporaryDirectory() as directory:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{directory}/socket")
            server.listen()
            serve(server)
            code = f"import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('{directory}/socket')\n"
            code += "s.sendall(b'x')\nprint(s.recv(9))"
            part = Domains("good.example")
            os.chmod(directory, 0o755)
            os.chmod(f"{directory}/socket", 0o777)
            box = presets.untrusted() + part
            for tried, reached in ((box, False), (box + Bind(directory), True)):
                done = tried.run(["/usr/bin/python3", "-I", "-c", code], timeout=30, text=True)
                assert ("SECRET" in str(done.stdout)) is reached, done.stderr
            server.shutdown(socket.SHUT_RDWR)
        assert Path(directory).exists()


def test_a_unix_socket_is_the_file_systems(machine: object) -> None:
    unix_socket()
    also_as_a_user("unix_socket()")


VSOCK = "import socket\ntry:\n    print(socket.socket(40, 1))\nexcept OSError as error:\n    print(error.errno)"


def vsock() -> None:
    command = [sys.executable, "-I", "-c", VSOCK]
    for part in (Domains("good.example"), Connect("good.example:443")):
        for more in ((), (Seccomp(otherwise="allow"),)):
            assert Sandbox(*base(), part, *more).run(command, text=True).stdout == "97\n"  # EAFNOSUPPORT
    assert "family=40" in str(Sandbox(*base(), NetNamespace()).run(command, text=True).stdout)


def test_vsock(machine: object) -> None:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        pytest.skip("this kernel has no AF_VSOCK")
    vsock()
    also_as_a_user("vsock()")


REDIRECTED = """
import os, urllib.request
os.environ["http_proxy"] = "http://127.0.0.1:3128"
try:
    print(urllib.request.urlopen("http://good.example/").read())
except Exception as error:
    print(error)
"""


def test_a_redirect_is_asked_for_anew(machine: object) -> None:
    redirect()
    also_as_a_user("redirect()")


def redirect() -> None:
    import asyncio

    whole = asyncio.open_connection
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]

    def body() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    evil = b"Host: evil.example" in connection.recv(4096)
                    text = b"200 OK\r\n" if evil else b"302 Found\r\nLocation: http://evil.example/\r\n"
                    connection.sendall(b"HTTP/1.1 " + text + b"Content-Length: 6\r\n\r\nSECRET")

    threading.Thread(target=body, daemon=True).start()

    async def elsewhere(host: Any = None, number: Any = None, **said: Any) -> Any:
        return await whole(host, port if number == 80 else number, **said)

    said: dict[str, Any] = {"port": 80, "private": ["127.0.0.0/8"], "resolve": lambda name, port: ["127.0.0.1"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "open_connection", elsewhere)
        for names, reached in ((["good.example"], False), (["good.example", "evil.example"], True)):
            box = Sandbox(*base(), MountNamespace(), Domains(*names, **said))
            done = box.run([sys.executable, "-I", "-c", REDIRECTED], timeout=30, text=True)
            assert ("SECRET" in str(done.stdout)) is reached, (done.stdout, done.stderr)
            assert reached or "403" in str(done.stdout)
    server.shutdown(socket.SHUT_RDWR)
    server.close()


ASK = """
import socket
for name in ("good.example", "evil.example"):
    with socket.create_connection(("127.0.0.1", 3128), 20) as sock:
        sock.sendall(f"CONNECT {name}:443 HTTP/1.1\\r\\nHost: {name}:443\\r\\n\\r\\n".encode())
        print(sock.recv(999).split()[1].decode())
"""


def test_the_result_tells_what_was_asked(machine: object) -> None:
    part = Domains("good.example", resolve=lambda name, port: ["127.0.0.1"])
    box = Sandbox(PidNamespace(), part)
    result = box.run([sys.executable, "-I", "-c", ASK], timeout=30, text=True)
    assert result.stdout == "502\n403\n", result.stderr
    wanted = [("connect", "good.example", 443, False), ("http", "evil.example", 443, False)]
    assert [(e.via, e.name, e.port, e.allowed) for e in result.asked] == wanted
    assert "loopback" in result.asked[0].refused
    assert [row["name"] for row in json.loads(result.json())["asked"]] == ["good.example", "evil.example"]
    with box.spawn([sys.executable, "-I", "-c", ASK]) as process:
        again = process.result()
    assert len(again.asked) == len(process.result().asked) == 2
    assert Sandbox(PidNamespace()).run(["true"]).asked == ()


def test_what_a_program_was_told_is_in_its_result(machine: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noted before the program has the answer, however late the proxy's thread goes on."""
    before = Log.add

    def late(*args: Any, **said: Any) -> None:
        time.sleep(0.1)
        before(*args, **said)

    monkeypatch.setattr(Log, "add", late)
    for resolve, answers in ((lambda name, port: ["127.0.0.1"], "200\n403\n"), (lambda name, port: [], "502\n403\n")):
        with socket.create_server(("127.0.0.1", 443)):
            part = Domains("good.example", resolve=resolve, private=["127.0.0.0/8"], tls=False)
            result = Sandbox(PidNamespace(), part).run([sys.executable, "-I", "-c", ASK], timeout=30, text=True)
        assert result.stdout == answers, result.stderr
        assert [e.name for e in result.asked] == ["good.example", "evil.example"]
