"""Delay, loss, reorder, duplicates and damage by the kernel's netem, told by echoes. The VM lane's kernel has it."""

from __future__ import annotations

import socket
import statistics
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from isolate import network
from isolate.errors import UnsupportedError
from tests.network.hosts import host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.network.hosts import Host

pytestmark = [pytest.mark.root, pytest.mark.vm]


class Echoes(NamedTuple):
    """What came back: of each its number in the order of their coming, and how long it took."""

    numbers: list[int]
    seconds: list[float]


def checksum(message: bytes) -> int:
    """The Internet's (RFC 1071), of an even number of bytes."""
    total = sum(struct.unpack(f">{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(source: Host, target: str, count: int, *, interval: float = 0.0, patience: float = 1.0) -> Echoes:
    """As ping(8) does it: echo requests, and the answers to them (ICMP by a datagram socket needs a sysctl: raw)."""
    with source.net:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sent: dict[int, float] = {}
    numbers: list[int] = []
    seconds: list[float] = []

    def take(until: float) -> None:
        while len(numbers) < 4 * count:
            left = until - time.monotonic()
            if left <= 0:
                return
            sock.settimeout(left)
            try:
                packet = sock.recv(2048)
            except TimeoutError:
                return
            kind, _, _, name, number = struct.unpack_from(">BBHHH", packet, 20)
            if kind == 0 and name == 0x1507 and checksum(packet[20:]) == 0:  # a raw socket gets damaged ones as well
                numbers.append(number)
                seconds.append(time.monotonic() - sent[number])

    with sock:
        for number in range(count):
            message = struct.pack(">BBHHH", 8, 0, 0, 0x1507, number) + bytes(48)
            message = message[:2] + struct.pack(">H", checksum(message)) + message[4:]
            sent[number] = time.monotonic()
            sock.sendto(message, (target, 0))
            take(time.monotonic() + interval)
        take(time.monotonic() + patience)
    return Echoes(numbers, seconds)


@pytest.fixture
def pair() -> Iterator[tuple[network.Network, Host, Host]]:
    """Two members, on a kernel with netem."""
    with network.Network() as lan, host(lan, "a") as a, host(lan, "b") as b:
        try:
            lan.impair("a", delay=0.01).end()
        except UnsupportedError as error:
            pytest.skip(f"{error.cause}; {error.remedy}")
        ping(a, b.address, 1)  # they know each other's hardware address now
        yield lan, a, b


def test_delay(pair: tuple[network.Network, Host, Host]) -> None:
    lan, a, b = pair
    with lan.impair("a", delay=0.15):
        found = ping(a, b.address, 8)
        other = ping(b, a.address, 8)  # each way, whoever begins
    control = ping(a, b.address, 8)
    assert [sorted(each.numbers) for each in (found, other, control)] == [list(range(8))] * 3
    assert min(found.seconds) >= 0.3
    assert min(other.seconds) >= 0.3
    assert statistics.median(control.seconds) < 0.3
    print(f"round trip: {min(found.seconds):.3f} s with 0.15 s each way, {min(control.seconds):.4f} s without")


def test_jitter_spreads_the_delay(pair: tuple[network.Network, Host, Host]) -> None:
    lan, a, b = pair
    with lan.impair("a", delay=0.1, jitter=0.05):
        found = ping(a, b.address, 60, interval=0.002, patience=1.5)
    assert len(found.numbers) == 60
    assert max(found.seconds) - min(found.seconds) > 0.05
    assert min(found.seconds) >= 0.1


def test_loss(pair: tuple[network.Network, Host, Host]) -> None:
    lan, a, b = pair
    with lan.impair("a", delay=0.001, loss=0.3):  # with a delay: by netem, not by nftables. Both ways: 0.49 come back
        lost = ping(a, b.address, 400, interval=0.001)
    control = ping(a, b.address, 400, interval=0.001)
    assert 120 < len(lost.numbers) < 270
    assert len(control.numbers) == 400
    print(f"loss of 0.3 each way: {len(lost.numbers)} of 400 echoes came, {len(control.numbers)} without")


def test_reorder(pair: tuple[network.Network, Host, Host]) -> None:
    lan, a, b = pair
    with lan.impair("a", delay=0.05, reorder=0.3):  # three of ten go at once, and pass the others
        found = ping(a, b.address, 100, interval=0.002)
    with lan.impair("a", delay=0.05):
        control = ping(a, b.address, 100, interval=0.002)
    turned = sum(x > y for x, y in zip(found.numbers, found.numbers[1:], strict=False))
    assert turned > 5
    assert sorted(found.numbers) == control.numbers == list(range(100))
    print(f"reorder: {turned} of 100 echoes came before an earlier one, none without")


def test_duplicate(pair: tuple[network.Network, Host, Host]) -> None:
    lan, a, b = pair
    with lan.impair("a", duplicate=0.5):
        found = ping(a, b.address, 100, interval=0.002)
    control = ping(a, b.address, 100, interval=0.002)
    assert len(found.numbers) > 150
    assert len(control.numbers) == 100


def test_corrupt(pair: tuple[network.Network, Host, Host]) -> None:
    """One bit of a packet: its checksum is wrong then, and nobody answers."""
    lan, a, b = pair
    with lan.impair("a", corrupt=0.5):
        found = ping(a, b.address, 200, interval=0.002)
    control = ping(a, b.address, 200, interval=0.002)
    assert len(found.numbers) < 150
    assert len(control.numbers) == 200


def test_with_a_rate(pair: tuple[network.Network, Host, Host]) -> None:
    """Both hold: what netem lets through goes through the token bucket."""
    lan, _, b = pair
    with host(lan, "slow", rate="1M", burst=4096) as slow, lan.impair("slow", delay=0.1):
        found = ping(slow, b.address, 5)
        assert min(found.seconds) >= 0.2
        assert len(found.numbers) == 5
