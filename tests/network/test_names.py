"""The resolver: what it answers, to whom, and that nothing that is sent to it ends it. dnspython is the oracle."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.network.names import Names, Query, answer, nameservers, parse, reverse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolate.network.address import Address

DB: list[Address] = [ipaddress.ip_address("10.88.0.2"), ipaddress.ip_address("fd00::2")]


def question(name: str, kind: int = 1, number: int = 7, flags: int = 0x100) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack(">6H", number, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    query = parse(data)
    if query is not None:
        assert parse(data[:12] + query.question) is not None
        assert answer(query, DB)[12 : 12 + len(query.question)] == query.question


@given(st.lists(st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=63), max_size=4))
def test_names_come_back(labels: list[str]) -> None:
    name = ".".join(labels)
    query = parse(question(name.upper()))
    assert query is not None
    assert query.name == name.lower()


def test_what_is_no_question() -> None:
    good = question("db")
    assert parse(good) is not None
    for bad in (
        good[:-1],
        good[:11],
        b"",
        question("db", flags=0x8100),
        question("db", flags=0x2800),
        good[:4] + b"\0\2" + good[6:],
        good[:12] + b"\xc0\x0c" + good[12:],
        good[:-2] + b"\0\3",
        good + bytes(5000),
        good[:12] + b"\x3f" + bytes(10),
    ):
        assert parse(bad) is None


def test_reverse_names() -> None:
    assert reverse("2.0.88.10.in-addr.arpa") == DB[0]
    assert reverse(DB[1].reverse_pointer) == DB[1]
    for bad in ("in-addr.arpa", "x.in-addr.arpa", "1.ip6.arpa", "db", "300.0.88.10.in-addr.arpa"):
        assert reverse(bad) is None


def test_dnspython_reads_the_answers() -> None:
    message = pytest.importorskip("dns.message")
    for kind, found in (("A", ["10.88.0.2"]), ("AAAA", ["fd00::2"]), ("MX", [])):
        wanted = message.make_query("DB.", kind)
        query = parse(wanted.to_wire())
        assert query is not None
        got = message.from_wire(answer(query, DB))
        assert wanted.is_response(got)
        assert [rr.to_text() for rrset in got.answer for rr in rrset] == found
    query = parse(message.make_query("nobody", "A").to_wire())
    assert query is not None
    assert message.from_wire(answer(query, None)).rcode() == 3


def test_the_hosts_resolvers(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# x\nsearch a\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\nnameserver 192.0.2.3\n"
    )
    assert nameservers(str(file)) == ["192.0.2.1", "fe80::1%eth0", "192.0.2.3"]
    assert nameservers(str(tmp_path / "none")) == []


class Answering:
    """A resolver at loopback, where everybody but 127.0.0.9 may ask for names outside."""

    def __init__(self, servers: list[str]) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.address = self.udp.getsockname()
        self.tcp = socket.create_server(self.address)
        self.names = Names(
            [self.udp, self.tcp],
            {"db": DB}.get,
            {DB[0]: "db"}.get,
            lambda peer: str(peer) != "127.0.0.9",
            servers,
        )

    def ask(self, data: bytes, source: str = "127.0.0.1") -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.settimeout(30)
            sock.sendto(data, self.address)
            return sock.recv(4096)

    def close(self) -> None:
        self.names.close()
        self.udp.close()
        self.tcp.close()


@pytest.fixture
def answering() -> Iterator[Answering]:
    found = Answering(["127.0.0.7"])
    yield found
    found.close()


def test_udp_and_tcp(answering: Answering) -> None:
    expected = answer(parse(question("db")) or Query(0, "", 0, b"", False), DB)
    assert answering.ask(question("db")) == expected
    with socket.create_connection(answering.address, 5) as sock:
        data = question("db")
        sock.sendall(len(data).to_bytes(2, "big") + data[:5])
        time.sleep(0.01)
        sock.sendall(data[5:] + len(data).to_bytes(2, "big") + data)
        got = b""
        while len(got) < 2 * (2 + len(expected)):
            got += sock.recv(4096)
        assert got == 2 * (len(expected).to_bytes(2, "big") + expected)


def test_nothing_that_is_sent_ends_it(answering: Answering) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for data in (b"", b"x", bytes(12), bytes(65000), question("db")[:-1], b"\xff" * 512):
            sock.sendto(data, answering.address)
    held = [socket.create_connection(answering.address, 5) for _ in range(80)]
    for sock in held[:40]:
        sock.sendall(b"\xff\xff" + bytes(20000))
    try:
        assert answering.ask(question("db"))[3] & 0xF == 0
    finally:
        for sock in held:
            sock.close()


def test_a_resolver_that_says_nothing_is_not_the_last_word() -> None:
    """The next one is asked while the client still waits, and first the next time: one that is silent, one that cannot
    be reached at all, one at whose port nothing listens."""
    try:
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind(("127.0.0.6", 53))
        good = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        good.bind(("127.0.0.7", 53))
    except OSError as error:
        pytest.skip(f"port 53 of 127.0.0.7 cannot be had: {error}")
    good.settimeout(30)

    def body(count: int) -> None:
        for _ in range(count):
            data, peer = good.recvfrom(4096)
            query = parse(data)
            assert query is not None
            good.sendto(answer(query, [ipaddress.ip_address("192.0.2.80")]), peer)

    try:
        for first in ("127.0.0.6", "fe80::1%no-such-link", "127.0.0.5"):
            answering = Answering([first, "127.0.0.7"])
            thread = threading.Thread(target=body, args=(2,))
            thread.start()
            try:
                for most in (4.5, 0.9):
                    begun = time.monotonic()
                    assert answering.ask(question("example.org")).endswith(socket.inet_aton("192.0.2.80")), first
                    assert time.monotonic() - begun < most or first != "127.0.0.6", first
                thread.join(30)
            finally:
                answering.close()
        answering = Answering(["127.0.0.5"])  # control: the last one's failure is told
        assert answering.ask(question("example.org"))[3] & 0xF == 2
        answering.close()
    finally:
        silent.close()
        good.close()


def test_questions_that_are_passed_on() -> None:
    """By a port of its own each, with a number of its own; answers that are not to it are not taken."""
    try:
        upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        upstream.bind(("127.0.0.7", 53))
    except OSError as error:
        pytest.skip(f"port 53 of 127.0.0.7 cannot be had: {error}")
    upstream.settimeout(30)
    answering = Answering(["127.0.0.7"])
    seen: list[tuple[int, int]] = []

    def body() -> None:
        for _ in range(2):
            data, peer = upstream.recvfrom(4096)
            seen.append((int.from_bytes(data[:2], "big"), peer[1]))
            query = parse(data)
            assert query is not None
            good = answer(query, [ipaddress.ip_address("192.0.2.80")])
            upstream.sendto(bytes([good[0] ^ 1]) + good[1:], peer)  # another number
            upstream.sendto(good, peer)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        for _ in range(2):
            got = answering.ask(question("example.org", number=99))
            assert got[:2] == b"\0\x63"
            assert got.endswith(socket.inet_aton("192.0.2.80"))
        thread.join(30)
        assert len({port for _, port in seen}) == 2
        # Who is limited gets no answer from outside, and members are never asked for there.
        assert answering.ask(question("example.org"), "127.0.0.9")[3] & 0xF == 3
        assert answering.ask(question("db"), "127.0.0.9")[3] & 0xF == 0
        upstream.settimeout(0.2)
        with pytest.raises(TimeoutError):
            upstream.recv(9)
    finally:
        answering.close()
        upstream.close()
