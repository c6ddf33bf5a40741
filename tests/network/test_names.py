"""The resolver: what it answers, to whom, and that nothing that is sent to it ends it. dnspython is the oracle."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate import network
from isolate.network import names
from isolate.network.dns import Query, answer, parse, reverse, shortened
from isolate.network.names import Names, nameservers
from isolate.network.taken import Taken
from tests.network.hosts import host

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
    assert nameservers(str(tmp_path / "none")) == ["127.0.0.1"]


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
    with socket.create_connection(answering.address, 20) as sock:
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
    held = [socket.create_connection(answering.address, 20) for _ in range(80)]
    for sock in held[:40]:
        sock.sendall(b"\xff\xff" + bytes(20000))
    try:
        assert answering.ask(question("db"))[3] & 0xF == 0
    finally:
        for sock in held:
            sock.close()


def test_a_resolver_that_says_nothing_is_not_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
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
                for turn in (1.0, 20.0):  # the silent one is asked in the first; the other may need time
                    monkeypatch.setattr(names, "_TURN", turn)
                    assert answering.ask(question("example.org")).endswith(socket.inet_aton("192.0.2.80")), first
                thread.join(30)
            finally:
                answering.close()
        silent.setblocking(False)
        assert silent.recv(4096)  # the silent one was asked the first time
        with pytest.raises(BlockingIOError):
            silent.recv(4096)
        answering = Answering(["127.0.0.5"])  # control: the last one's failure is told
        assert answering.ask(question("example.org"))[3] & 0xF == 2
        answering.close()
    finally:
        silent.close()
        good.close()


@pytest.mark.usefixtures("patient")
def test_a_resolver_that_cannot_tell_is_not_the_last_word() -> None:
    """As in the C library: the next one is asked, and the first stays the first. What the last one says is told."""
    codes = {"127.0.0.6": 2, "127.0.0.7": 0}
    asked: list[str] = []
    socks = {}
    try:
        for own in codes:
            socks[own] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            socks[own].bind((own, 53))
    except OSError as error:
        for sock in socks.values():
            sock.close()
        pytest.skip(f"port 53 of {own} cannot be had: {error}")

    def body(own: str, sock: socket.socket) -> None:
        while True:
            data, peer = sock.recvfrom(4096)
            if not data:
                return
            asked.append(own)
            query = parse(data)
            assert query is not None
            found = [] if codes[own] else [ipaddress.ip_address("192.0.2.80")]
            sock.sendto(answer(query, found, codes[own]), peer)

    threads = [threading.Thread(target=body, args=item) for item in socks.items()]
    for thread in threads:
        thread.start()
    answering = Answering(list(codes))
    try:
        for _ in range(2):
            assert answering.ask(question("example.org")).endswith(socket.inet_aton("192.0.2.80"))
        assert asked == ["127.0.0.6", "127.0.0.7"] * 2
        for codes["127.0.0.7"] in (2, 4, 5):
            assert answering.ask(question("example.org"))[3] & 0xF == codes["127.0.0.7"]
        del asked[:]
        for codes["127.0.0.6"] in (0, 3):  # control: what the first one knows is told, also that there is no such name
            assert answering.ask(question("example.org"))[3] & 0xF == codes["127.0.0.6"]
        assert asked == ["127.0.0.6"] * 2
    finally:
        answering.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            for own in codes:
                end.sendto(b"", (own, 53))
        for thread in threads:
            thread.join(30)
        for sock in socks.values():
            sock.close()


class Resolver:
    """A resolver of the host's, at 127.0.0.7: it answers by UDP that there is more, and by TCP in pieces."""

    def __init__(self, records: int, *, tcp: str = "answers") -> None:
        self.answers: list[Address] = [ipaddress.ip_address("192.0.2.80")] * records
        self.asked: list[str] = []
        self.threads: list[threading.Thread] = []
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.listening: socket.socket | None = None
        try:
            self.udp.bind(("127.0.0.7", 53))
            if tcp != "refuses":
                self.listening = socket.create_server(("127.0.0.7", 53))
        except OSError as error:
            self.close()
            pytest.skip(f"port 53 of 127.0.0.7 cannot be had: {error}")
        self.how = tcp
        bodies = ((self._udp, self.udp), (self._tcp, self.listening))
        self.threads = [threading.Thread(target=body, args=(sock,)) for body, sock in bodies if sock is not None]
        for thread in self.threads:
            thread.start()

    def whole(self, data: bytes) -> bytes:
        """The answer."""
        query = parse(data)
        assert query is not None
        return answer(query, self.answers)

    def _udp(self, sock: socket.socket) -> None:
        while True:
            try:
                data, peer = sock.recvfrom(4096)
            except OSError:
                return
            if not data:  # it was shut down
                return
            self.asked.append("udp")
            query = parse(data)
            assert query is not None
            found = self.whole(data)
            with contextlib.suppress(OSError):
                sock.sendto(found if len(found) <= query.room else shortened(query, found), peer)

    def _tcp(self, sock: socket.socket) -> None:
        while True:
            try:
                connection, _ = sock.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self.asked.append("tcp")
                data = connection.recv(4098)
                found = self.whole(data[2:])
                if self.how == "another":  # not the answer to what was asked
                    found = bytes([found[0] ^ 1]) + found[1:]
                whole = len(found).to_bytes(2, "big") + found
                if self.how == "half":
                    whole = whole[: len(whole) // 2]
                for at in range(0, len(whole), 9001):
                    connection.sendall(whole[at : at + 9001])

    def close(self) -> None:
        for sock in (self.udp, self.listening):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(30)
        for sock in (self.udp, self.listening):
            if sock is not None:
                sock.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver on a busy machine may take its time."""
    monkeypatch.setattr(names, "_TURN", 20.0)


def by_tcp(place: tuple[str, int], *messages: bytes) -> list[bytes]:
    """Answers to questions by one connection."""
    with socket.create_connection(place, 30) as sock, sock.makefile("rb") as file:
        sock.sendall(b"".join(len(message).to_bytes(2, "big") + message for message in messages))
        return [file.read(int.from_bytes(file.read(2), "big")) for _ in messages]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("records", [100, 4000])
def test_an_answer_that_is_larger_than_a_datagram(records: int) -> None:
    """By UDP a client is told that there is more, by TCP it gets it, and the resolver is asked the same way."""
    resolver, answering = Resolver(records), Answering(["127.0.0.7"])
    try:
        asked = question("example.org", number=99)
        got = answering.ask(asked)
        assert (len(got), got[2] & 2, got[:2]) == (len(asked), 2, b"\0\x63")  # truncated, with the question
        assert resolver.asked == ["udp"]
        first, second = by_tcp(answering.address, asked, question("db", number=100))
        if first[:2] != b"\0\x63":  # what is known here comes earlier
            first, second = second, first
        assert first == resolver.whole(asked)
        assert len(first) > 16 * records
        assert second.endswith(DB[0].packed)
        assert resolver.asked == ["udp", "tcp"]
    finally:
        answering.close()
        resolver.close()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["refuses", "another", "half"])
def test_a_resolver_that_does_not_answer_by_tcp(how: str) -> None:
    resolver, answering = Resolver(3, tcp=how), Answering(["127.0.0.7"])
    try:
        asked = question("example.org", number=99)
        assert by_tcp(answering.address, asked) == [resolver.whole(asked)]
        assert resolver.asked == (["udp"] if how == "refuses" else ["tcp", "udp"])
    finally:
        answering.close()
        resolver.close()


def test_room_for_an_answer_by_udp() -> None:
    """As much as the client says, and no more than what goes through any network."""
    message = pytest.importorskip("dns.message")
    resolver, answering = Resolver(40), Answering(["127.0.0.7"])
    try:
        for room, whole in ((None, False), (600, False), (1232, True), (4096, True)):
            wanted = message.make_query("example.org", "A", use_edns=False if room is None else 0, payload=room or 0)
            got = message.from_wire(answering.ask(wanted.to_wire()))
            assert wanted.is_response(got)
            assert (bool(got.answer), bool(got.flags & 0x200)) == (whole, not whole)
        resolver.answers = resolver.answers * 4
        wanted = message.make_query("example.org", "A", use_edns=0, payload=4096)
        got = message.from_wire(answering.ask(wanted.to_wire()))
        assert got.flags & 0x200
        assert not got.answer
    finally:
        answering.close()
        resolver.close()


def test_one_client_leaves_room_for_the_others() -> None:
    """A resolver that says nothing: so many questions of one client wait for it, and another's is still passed on."""
    try:
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind(("127.0.0.7", 53))
    except OSError as error:
        pytest.skip(f"port 53 of 127.0.0.7 cannot be had: {error}")
    answering = Answering(["127.0.0.7"])
    try:
        with socket.create_connection(answering.address, 30, ("127.0.0.2", 0)) as sock:
            many = [question(f"n{number}.example.org", number=number) for number in range(70)]
            sock.sendall(b"".join(len(each).to_bytes(2, "big") + each for each in many))
            silent.settimeout(30)
            answered = sock.recv(4096)  # those beyond the bound are told at once
            assert answered[2:4] == b"\0\x40"
            assert answered[5] & 0xF == 2
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.settimeout(30)
                other.sendto(question("other.example.org"), answering.address)
                while b"other" not in silent.recv(4096):
                    pass
    finally:
        answering.close()
        silent.close()


def test_all_resolvers_leave_the_caller_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound of the whole process a question is answered with a failure at once, and nothing is opened."""
    try:
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind(("127.0.0.7", 53))
    except OSError as error:
        pytest.skip(f"port 53 of 127.0.0.7 cannot be had: {error}")
    taken = Taken()
    monkeypatch.setattr(names, "_TAKEN", taken)
    answering = Answering(["127.0.0.7"])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(30)
            sock.sendto(question("first.example.org"), answering.address)
            silent.settimeout(30)
            assert b"first" in silent.recv(4096)  # control: it is passed on
            assert taken._count == 1
            with monkeypatch.context() as patch:
                patch.setattr(Taken, "take", lambda self: "too many")
                sock.sendto(question("second.example.org"), answering.address)
                assert sock.recv(4096)[3] & 0xF == 2
        with contextlib.suppress(BlockingIOError):
            silent.setblocking(False)
            assert b"second" not in silent.recv(4096)
    finally:
        answering.close()
        silent.close()
    assert taken._count == 0


@pytest.mark.usefixtures("patient")
def test_a_member_asks_by_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("the network of a member is joined")
    resolver = Resolver(300)
    monkeypatch.setattr("isolate.network.handle.nameservers", lambda: ["127.0.0.7"])
    try:
        with network.Network(uplink="host") as lan, host(lan, "web") as web:
            asked = question("example.org", number=99)
            with web.net:
                assert by_tcp((str(lan.gateway), 53), asked) == [resolver.whole(asked)]
            with host(lan, "limited", egress=network.Egress(["web"])) as limited, limited.net:
                assert by_tcp((str(lan.gateway), 53), asked)[0][3] & 0xF == 3
            assert resolver.asked == ["tcp"]
    finally:
        resolver.close()


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
