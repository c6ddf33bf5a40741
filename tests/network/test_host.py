"""What passes between a network and its host: published ports, the way out, and nothing else."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import threading

import pytest

from isolate import NetNamespace, PidNamespace, Sandbox, network
from isolate.errors import SetupError
from isolate.network import conntrack, link
from isolate.network.netlink import NETFILTER, Socket
from isolate.network.switch import Switch
from tests.network.hosts import HERE, Host, Outside, connects, host, told, until

pytestmark = pytest.mark.root


def test_published_ports_lead_to_the_member() -> None:
    wanted = {8080: 80, "127.0.0.1:5353/udp": 53, "7000-7003": "9000-9003"}
    with network.Network() as lan, host(lan, "web", publish=wanted) as web:
        with web.listen(80) as server, web.listen(9002), web.listen(53, kind=socket.SOCK_DGRAM) as names:
            assert connects("127.0.0.1", 8080)
            assert connects("127.0.0.1", 7002)
            assert not connects("127.0.0.1", 7001)  # nobody listens there
            assert not connects("127.0.0.1", 80)
            assert not connects("127.0.0.2", 8080)
            server.accept()[0].close()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(30)
                client.sendto(b"hello", ("127.0.0.1", 5353))
                data, peer = names.recvfrom(9)
                names.sendto(data.upper(), peer)
                assert client.recvfrom(9) == (b"HELLO", ("127.0.0.1", 5353))
    assert not connects("127.0.0.1", 8080)
    assert until(lambda: [row["ifname"] for row in told(HERE, "ip", "-j", "link")] == ["lo"])


def test_a_client_of_udp_follows_the_port() -> None:
    """Also one that has sent before there was a member, and one that goes on while the port leads to another."""
    with network.Network() as lan, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.settimeout(30)
        for name in ("one", "two"):
            client.sendto(b"too early", ("127.0.0.1", 5353))
            with (
                host(lan, name, publish={"5353/udp": 53}) as member,
                member.listen(53, kind=socket.SOCK_DGRAM) as there,
            ):
                client.sendto(b"hello", ("127.0.0.1", 5353))
                _, peer = there.recvfrom(9)
                there.sendto(name.encode(), peer)
                assert client.recv(9) == name.encode()


def tracked(port: int) -> set[str]:
    """Where UDP is sent to at that port, of all that the kernel tracks in this network."""
    found = set()

    def look(to: bytes, at: int, _: bytes) -> bool:
        if at == port:
            found.add(str(ipaddress.ip_address(to)))
        return False

    with Socket(NETFILTER) as sock:
        conntrack.forget(sock, 17, look)
    return found


@pytest.mark.parametrize("publish", ["5353/udp", "0.0.0.0:5353/udp"])
def test_what_is_sent_elsewhere_at_the_same_port_is_left_alone(outside: Outside, publish: str) -> None:
    """A table that tracks connections has answers of others find their way."""
    with outside.listen(5353, kind=socket.SOCK_DGRAM), network.Network() as lan:
        with host(lan, "first", publish={8080: 80}):  # from now on the machine tracks connections
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", (outside.address, 5353))
                client.sendto(b"x", ("127.0.0.1", 5353))
                assert tracked(5353) == {outside.address, "127.0.0.1"}
                with host(lan, "names", publish={publish: 53}):
                    assert tracked(5353) == {outside.address}
                    client.sendto(b"x", ("127.0.0.1", 5353))
                    assert tracked(5353) == {outside.address, "127.0.0.1"}
                assert tracked(5353) == {outside.address}


def test_a_port_that_is_in_use_is_refused_before_anything_starts() -> None:
    with network.Network() as lan, socket.create_server(("127.0.0.1", 8080)):
        box = Sandbox(network.Interface(lan, name="web", publish={8079: 1, 8080: 80}))
        with pytest.raises(SetupError, match=r"127\.0\.0\.1:8080/tcp.*\n.*in use.*\n.*another") as caught:
            box.run(["true"])
        assert caught.value.errno == errno.EADDRINUSE
        assert lan.members == {}
        socket.create_server(("127.0.0.1", 8079)).close()  # given back
        with pytest.raises(SetupError, match="no such address"):
            Sandbox(network.Interface(lan, publish={"203.0.113.1:80": 80})).run(["true"])
    with network.Network() as one, network.Network() as two, host(one, "a", publish={8080: 80}):
        with pytest.raises(SetupError, match="in use"):
            Sandbox(network.Interface(two, publish={8080: 80})).run(["true"])


def test_nothing_of_the_host_is_reached_by_the_wire() -> None:
    with network.Network(uplink="host") as lan, network.Network(uplink="host") as other:
        with host(lan, "web", publish={8080: 80}) as web, host(other, "b", publish={"0.0.0.0:8081": 81}) as b:
            ends = [row["local"] for row in _addresses() if row["local"].startswith("169.254.")]
            assert len(ends) == 2
            with web.listen(80), b.listen(81), socket.create_server(("0.0.0.0", 9999)):
                assert connects("127.0.0.1", 8080)
                assert connects("127.0.0.1", 8081)
                for address in (*ends, "127.0.0.1"):
                    assert connects(address, 9999)
                    for port in (9999, 8080, 8081):
                        assert not web.connects(address, port, 0.1), (address, port)
                # Nor the other network by its end of the wire, whatever port of it leads somewhere.
                for end in ends:
                    there = end.rpartition(".")[0] + "." + str(int(end.rpartition(".")[2]) + 1)
                    for port in range(1, 4):
                        assert not web.connects(there, port, 0.1), (there, port)


def _accepted(server: socket.socket) -> str:
    """Where the next connection comes from."""
    connection, peer = server.accept()
    connection.close()
    return str(peer[0])


def _addresses() -> list[dict[str, str]]:
    rows = told(HERE, "ip", "-j", "-4", "addr")
    return [a for row in rows for a in row["addr_info"]]


def test_packets_that_name_loopback_on_the_wire_are_dropped() -> None:
    """The host's end takes packets for 127.0.0.1, since answers to published ports are such (CVE-2020-8558)."""
    with network.Network(uplink="host") as lan, host(lan, "liar", publish={8080: 80}) as liar:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
            here.bind(("127.0.0.1", 9999))
            here.settimeout(0.3)
            peer = bytes.fromhex(_mac_of_the_host().replace(":", ""))
            with NetNamespace(fd=lan.namespace) as switch, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                end = next(row for row in told(switch, "ip", "-j", "link") if row["ifname"] == "up0")
                raw.bind(("up0", 0x800))
                packet = _packet(liar.address, "127.0.0.1", 9999, b"x")
                frame = peer + bytes.fromhex(end["address"].replace(":", "")) + b"\x08\x00" + packet
                raw.send(frame)
                with pytest.raises(TimeoutError):
                    here.recv(9)
                # Control: without the rules it comes in.
                table = lan._host_link().table
                assert table is not None
                lan._host_link().rules([table.flush("forged"), table.flush("input")])
                here.settimeout(30)
                raw.send(frame)
                assert here.recv(9) == b"x"


def _packet(source: str, destination: str, port: int, data: bytes) -> bytes:
    """UDP over IPv4."""
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        28 + len(data),
        1,
        0,
        64,
        17,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    words = sum(struct.unpack(">10H", head))
    head = head[:10] + struct.pack(">H", ~(words % 0xFFFF) & 0xFFFF) + head[12:]
    return head + struct.pack(">4H", 1234, port, 8 + len(data), 0) + data


def _mac_of_the_host() -> str:
    rows = told(HERE, "ip", "-j", "link")
    return next(str(row["address"]) for row in rows if row["ifname"].startswith("isou"))


def test_the_way_out(outside: Outside) -> None:
    rules = network.Egress(["192.0.2.9:443"])
    with network.Network(uplink="host") as lan, network.Network() as closed:
        with host(lan, "free") as free, host(lan, "limited", egress=rules) as limited, host(closed, "c") as inside:
            with outside.listen(443) as server, outside.listen(80):
                assert free.connects(outside.address, 80)
                assert limited.connects(outside.address, 443)
                assert not limited.connects(outside.address, 80, 0.3)
                assert not inside.connects(outside.address, 443, 0.3)
                # It sees the host's address, and its own connections to the host's end lead nowhere.
                assert _accepted(server) == "192.0.2.1"
                with free.listen(5000):
                    assert not outside.connects("192.0.2.1", 5000, 0.3)
                    assert not outside.connects(free.address, 5000, 0.3)


def test_forwarding_is_as_it_was(outside: Outside) -> None:
    with Socket() as sock:
        assert not link.forwards(sock, "eth9")
        with network.Network(uplink="host") as one:
            assert link.forwards(sock, "eth9")
            with network.Network(uplink="host"):
                one.close()
                assert link.forwards(sock, "eth9")
        assert not link.forwards(sock, "eth9")
        # One that forwarded before goes on.
        sock.batch([link.forwarding("eth9")])
        with network.Network(uplink="host"):
            pass
        assert link.forwards(sock, "eth9")


def test_published_for_others(outside: Outside) -> None:
    with network.Network() as lan, host(lan, "web", publish={"192.0.2.1:80": 80, 8080: 80}) as web:
        with web.listen(80) as server:
            assert outside.connects("192.0.2.1", 80)
            assert _accepted(server) == outside.address
            assert not outside.connects("192.0.2.1", 8080, 0.3)
            assert connects("192.0.2.1", 80)
            assert connects("127.0.0.1", 8080)
            # It answers, and opens nothing itself.
            with outside.listen(7):
                assert not web.connects(outside.address, 7, 0.3)


def test_members_may_be_started_from_any_network(machine: NetNamespace) -> None:
    with network.Network() as lan, NetNamespace():  # a thread that is elsewhere meanwhile
        with host(lan, "web", publish={8080: 80}) as web, web.listen(80):
            assert not connects("127.0.0.1", 8080)
            with machine:
                assert connects("127.0.0.1", 8080)
    with machine:
        assert until(lambda: len(told(machine, "ip", "-j", "link")) == 1)


def test_threads_join_and_leave_at_once() -> None:
    with network.Network() as lan:
        box = Sandbox(PidNamespace(), network.Interface(lan, egress=network.Egress(["10.0.0.0/8"])))
        failed: list[BaseException] = []

        def body(number: int) -> None:
            try:
                for _ in range(5):
                    box.run(["true"])
                    with host(lan, f"m{number}", publish={9000 + number: 80}):
                        pass
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=body, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert lan.members == {}


def test_a_member_of_two_networks(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have a way out. The first one is taken, and who came by a port of the second is answered by the second."""
    first, second = network.Network(uplink="host"), network.Network(uplink="host")
    with first, second, host(second, "other") as other, outside.listen(80):
        for right in (True, False):
            if not right:  # control: answers leave by the first
                monkeypatch.setattr(Switch, "_ways_back", lambda *args: None)
            parts = network.Interface(first), network.Interface(second, name="b", publish={"0.0.0.0:8080": 80})
            with Sandbox(PidNamespace(), *parts).spawn(["sleep", "60"]) as process:
                member = Host(process, second, "b")
                with member.listen(80, "0.0.0.0"):
                    assert outside.connects("192.0.2.1", 8080, 20 if right else 0.5) is right
                    assert other.connects(member.address, 80)
                assert member.connects(outside.address, 80)


def test_a_running_member_joins_a_second_network(outside: Outside) -> None:
    with network.Network(uplink="host") as first, network.Network(uplink="host") as second:
        with host(first, "a") as a, host(second, "b") as b, b.listen(80), outside.listen(80):
            for _ in range(2):
                with network.connect(second, a.process):
                    assert a.connects(b.address, 80)
                    assert a.connects(outside.address, 80)
                assert not a.connects(b.address, 80, 0.3)
            assert a.connects(outside.address, 80)
