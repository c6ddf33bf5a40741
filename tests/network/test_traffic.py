"""Rates, counters, captures and impairments of a member's port; and members that join while they run."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from isolate import MountNamespace, NetNamespace, PidNamespace, Sandbox, network
from isolate.errors import ConflictError, SetupError, UnsupportedError
from tests.network.hosts import connects, host, told, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.network.hosts import Host

pytestmark = pytest.mark.root


def throughput(source: Host, target: Host, size: int) -> float:
    """Bits a second of one connection."""
    with target.listen(9) as server:

        def body() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(1 << 16):
                    pass
                connection.sendall(b"1")

        thread = threading.Thread(target=body)
        thread.start()
        with source.net:
            client = socket.create_connection((target.address, 9), 20)
        client.settimeout(30)
        with client:
            begin = time.monotonic()
            client.sendall(bytes(size))
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b"1"
            seconds = time.monotonic() - begin
        thread.join()
    return 8 * size / seconds


@pytest.mark.parametrize("egress", [None, pytest.param(network.Egress(["10.0.0.0/8"]), marks=pytest.mark.slow)])
def test_a_rate_holds_both_ways(egress: network.Egress | None) -> None:
    with network.Network() as lan:
        with host(lan, "slow", rate="16M", burst="64K", egress=egress) as slow, host(lan, "fast") as fast:
            queues = told(NetNamespace(fd=lan.namespace), "tc", "-j", "qdisc")
            found = [q["options"] for q in queues if q["kind"] == "tbf"]
            assert [(q["rate"], q["burst"]) for q in found] == [(2_000_000, 65536)] * 2
            for source, target in ((slow, fast), (fast, slow)):
                found = [throughput(source, target, 1 << 20)]
                while found[-1] <= 4e6 and len(found) < 5:  # a busy machine only ever makes it slower
                    found.append(throughput(source, target, 1 << 20))
                assert found[-1] > 4e6
                assert max(found) < 24e6
            with host(lan, "other") as other:  # control
                assert until(lambda: throughput(other, fast, 1 << 20) > 50e6)


def test_counters() -> None:
    with network.Network() as lan, host(lan, "a") as a, host(lan, "b") as b:
        before = lan.stats("a")
        throughput(a, b, 1 << 20)
        after = lan.stats("a")
        assert after.sent_bytes - before.sent_bytes > 1 << 20
        assert after.received_bytes - before.received_bytes < 1 << 19
        # The kernel sends packets of its own (IPv6's), at any moment: what is read later is the same or more.
        inside = next(r for r in a.tell("ip", "-j", "-s", "link") if r["ifname"] == "eth0")["stats64"]
        own = a.process.interfaces()["eth0"].sent_bytes
        later = lan.stats("a")
        assert after.sent_bytes <= inside["tx"]["bytes"] <= own <= later.sent_bytes < after.sent_bytes + 4096
        with pytest.raises(ValueError, match="did you mean 'a'"):
            lan.stats("aa")


@pytest.mark.parametrize("egress", [None, network.Egress(["10.0.0.0/8"])])
def test_loss(egress: network.Egress | None) -> None:
    with network.Network() as lan, host(lan, "a", egress=egress) as a, host(lan, "b") as b:
        with b.listen(9, kind=socket.SOCK_DGRAM) as there, a.net:
            assert a.connects(lan.members["b"][0].compressed, 9) is False  # nobody listens by TCP: a reset, at once
            there.setblocking(False)
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

            rounds = itertools.count()

            def arrive(least: int) -> int:
                """Of a thousand: all that come, and they are waited for if there are not so many yet."""
                mark, count = b"%d" % next(rounds), 0

                def more() -> int:
                    nonlocal count
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            count += there.recv(9) == mark  # and not one of an earlier round
                    return count

                for number in range(1000):
                    client.sendto(mark, (b.address, 9))
                    if number % 100 == 99:
                        more()  # the receiver's buffer holds some hundred
                until(lambda: more() > least)
                time.sleep(0.05)
                return more()

            with client:
                assert arrive(900) > 900
                with lan.impair("a", loss=0.5) as impaired:
                    assert 300 < arrive(300) < 700
                    with lan.impair("b", loss=1):
                        assert arrive(-1) == 0
                    assert lan.impair("a", loss=0.1) is not impaired  # in the place of the other
                    assert arrive(700) > 700
                lan.impair("a", loss=0.1).end()
                assert arrive(900) > 900


def test_what_an_impairment_cannot_be() -> None:
    with network.Network() as lan, host(lan, "a") as a:
        for bad in ({}, {"loss": 2}, {"delay": -1}, {"jitter": 0.1}, {"loss": True}, {"duplicate": "1"}):
            with pytest.raises(ValueError, match="impair"):
                lan.impair("a", **bad)  # type: ignore[arg-type]
        try:
            impaired = lan.impair("a", delay=0.05, jitter=0.01, loss=0.01, duplicate=0.01, corrupt=0.01, reorder=0.1)
        except UnsupportedError as error:
            pytest.skip(f"{error.cause}; {error.remedy}")
        with impaired:
            (queue, *_) = told(NetNamespace(fd=lan.namespace), "tc", "-j", "qdisc", "show", "dev", "p0")
            assert queue["kind"] == "netem"
        assert a.address


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """The blocks of a pcapng file."""
    found, at = [], 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert struct.unpack_from("<I", data, at + size - 4) == (size,)
        found.append((kind, data[at + 8 : at + size - 4]))
        at += size
    return found


def test_capture(tmp_path: Path) -> None:
    file = tmp_path / "web.pcapng"
    with network.Network() as lan, host(lan, "web") as web, host(lan, "db") as db:
        with lan.capture("web", file) as capture:
            with db.listen(5432):
                assert web.connects(db.address, 5432)
            assert until(lambda: capture.packets > 3)
        assert not capture.truncated
        found = blocks(file.read_bytes())
        assert [kind for kind, _ in found[:2]] == [0x0A0D0D0A, 1]
        packets = [body[20:] for kind, body in found if kind == 6]
        assert len(packets) == capture.packets
        assert any(p[26:34] == socket.inet_aton(web.address) + socket.inet_aton(db.address) for p in packets)
        # The size is limited.
        with lan.capture("web", file, limit=4096) as capture:
            throughput(web, db, 1 << 16)
            assert until(lambda: capture.truncated)
        assert 4096 <= file.stat().st_size < 1 << 18
        with pytest.raises(FileNotFoundError):
            lan.capture("web", tmp_path / "no" / "file")
        with pytest.raises(ValueError, match="limit"):
            lan.capture("web", file, limit=1)


@pytest.mark.slow
def test_scapy_reads_a_capture(tmp_path: Path) -> None:
    scapy = pytest.importorskip("scapy.all")
    file = tmp_path / "web.pcapng"
    with network.Network() as lan, host(lan, "web") as web, host(lan, "db") as db:
        begin = time.time()
        with lan.capture("web", file, snap=64) as capture:
            throughput(web, db, 1 << 18)
            time.sleep(0.05)
        packets = scapy.rdpcap(str(file))
        assert len(packets) == capture.packets
        assert all(begin - 1 < float(packet.time) < time.time() + 1 for packet in packets)
        ours = [p for p in packets if p.haslayer("IP")]
        assert {(p["IP"].src, p["IP"].dst) for p in ours} == {(web.address, db.address), (db.address, web.address)}
        assert max(p.wirelen for p in ours) > 64


def test_join_and_leave_while_running() -> None:
    with network.Network() as lan, network.Network() as other, host(lan, "db") as db, host(other, "app") as app:
        with db.listen(5432):
            assert not app.connects(db.address, 5432, 0.3)
            with network.connect(lan, app.process, name="app", publish={8080: 80}) as connection:
                assert connection.device == "eth1"
                assert lan.members["app"] == connection.addresses
                assert app.connects(db.address, 5432)
                with app.listen(80, str(connection.addresses[0])):
                    assert connects("127.0.0.1", 8080)
            assert not app.connects(db.address, 5432, 0.3)
            assert [row["ifname"] for row in app.tell("ip", "-j", "link")] == ["lo", "eth0"]
        with NetNamespace.create() as handle, network.connect(lan, handle, device="x0"):
            assert [row["ifname"] for row in told(handle, "ip", "-j", "link")] == ["lo", "x0"]
        handle.close()
        with Sandbox(PidNamespace(), NetNamespace()).spawn(["sleep", "60"]) as process:
            with network.connect(lan, process.pid):
                pass
            process.kill()
            process.wait()
            with pytest.raises(SetupError, match=r"ended|no such process") as caught:
                network.connect(lan, process)
            assert caught.value.errno in (errno.ESRCH, errno.ENOENT)
        with pytest.raises(TypeError, match="connect takes"):
            network.connect(lan, NetNamespace())
        assert lan.members.keys() == {"db"}
    assert os.getpid()


def test_a_container_joins_and_leaves() -> None:
    with network.Network() as lan, host(lan, "db") as db, db.listen(5432):
        code = f"import socket; socket.create_connection(({db.address!r}, 5432), 20)"
        with Sandbox(PidNamespace(), MountNamespace(), NetNamespace()).open() as container:
            assert container.run(["python3", "-c", code]).returncode == 1
            connection = container.connect(lan, name="app")
            assert lan.members["app"] == connection.addresses
            assert container.run(["python3", "-c", code]).returncode == 0
            connection.close()
            assert container.run(["python3", "-c", code]).returncode == 1
            container.connect(lan, name="app")
        assert list(lan.members) == ["db"]
        with Sandbox(PidNamespace(), MountNamespace(), network.Interface(lan, name="own")).open() as container:
            assert container.run(["python3", "-c", code]).returncode == 0
            assert set(lan.members) == {"db", "own"}
        assert list(lan.members) == ["db"]
        with (
            Sandbox(PidNamespace(), MountNamespace()).open() as container,
            pytest.raises(ConflictError, match="host's"),
        ):
            container.connect(lan)
