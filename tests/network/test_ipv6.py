"""IPv6 beyond the switch: egress, the way out by a host that forwards it, published ports at IPv6 addresses."""

from __future__ import annotations

import errno
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import NetNamespace, network
from isolate.errors import ConflictError, SetupError
from tests.network.hosts import Outside, connects, host, told
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from tests.network.hosts import Host

pytestmark = pytest.mark.root


def forwarding(on: bool) -> None:
    """Of the test's own network namespace."""
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text(f"{int(on)}\n")


def test_egress() -> None:
    with network.Network() as lan, host(lan, "db") as db, host(lan, "other") as other:
        rules = network.Egress(["db:5432", f"[{other.address6}]:7000-7002", "later:80"])
        with host(lan, "web", egress=rules) as web, host(lan, "free") as free:
            at, there = db.address6, other.address6
            with db.listen(5432, at), db.listen(5433, at), other.listen(7001, there), web.listen(80, web.address6):
                assert web.connects(at, 5432)
                assert web.connects(there, 7001)
                assert not web.connects(at, 5433)
                assert free.connects(at, 5433)  # control: one without limits
                assert free.connects(web.address6, 80)  # it is reached by the others, and answers
            with host(lan, "later") as later, later.listen(80, later.address6):
                assert web.connects(later.address6, 80)
            switch = told(NetNamespace(fd=lan.namespace), "nft", "-j", "list", "set", "inet", "isolate", "reach_ports6")
            (found,) = (row["set"] for row in switch["nftables"] if "set" in row)
            assert len(found["elem"]) == 2  # and the one that has left is out


def test_what_is_sent_to_a_new_address_arrives_at_once() -> None:
    """The kernel's own route for it is made by a worker, which on a busy machine is too late for a first answer."""
    with network.Network() as lan, host(lan, "a") as a, host(lan, "b", egress=network.Egress(["a"])) as b:
        gateway = str(lan.nameservers[1])
        for net, own in ((a.net, a.address6), (b.net, b.address6), (NetNamespace(fd=lan.namespace), gateway)):
            rows = told(net, "ip", "-j", "-6", "route", "show", "table", "local", own)
            assert [row["dev"] for row in rows if row["protocol"] == "static"] == ["br0" if own == gateway else "eth0"]


def test_a_limited_member_sends_as_nobody_else() -> None:
    with network.Network() as lan, host(lan, "db") as db, host(lan, "web", egress=network.Egress(["db"])) as web:
        assert lan.subnet6 is not None
        with db.net:
            seen = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            seen.bind((db.address6, 9))

        def arrives(source: str, patience: float) -> bool:
            with web.net, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
                sock.bind((source, 0))
                sock.sendto(b"x", (db.address6, 9))
            seen.settimeout(patience)
            try:
                return seen.recv(9) == b"x"
            except TimeoutError:
                return False

        with seen:
            assert arrives(web.address6, 30)  # control
            assert not arrives(str(lan.subnet6[77]), 0.3)


def test_out_by_a_host_that_forwards(machine: NetNamespace) -> None:
    with Outside(machine) as outside, outside.listen(80, outside.address6):
        with network.Network(uplink="host") as lan, host(lan, "a") as a:  # control: a host that does not
            assert not lan.uplink6
            with a.net, pytest.raises(OSError) as caught:
                socket.create_connection((outside.address6, 80), 1)
            assert caught.value.errno == errno.ENETUNREACH  # at once: clients take IPv4 then
        forwarding(True)
        with network.Network(uplink="host") as lan, host(lan, "a") as a:
            assert lan.uplink6
            assert a.connects(outside.address6, 80)
            with host(lan, "limited", egress=network.Egress([f"[{outside.address6}]:80"])) as limited:
                assert limited.connects(outside.address6, 80)
                with outside.listen(81, outside.address6):
                    assert a.connects(outside.address6, 81)
                    assert not limited.connects(outside.address6, 81)
            # The host itself and its other addresses are out of reach, and nothing comes in.
            with machine:
                server = socket.create_server(("2001:db8:9::1", 99), family=socket.AF_INET6)
            with server, a.listen(9, a.address6):
                assert outside.connects("2001:db8:9::1", 99)  # control
                assert not a.connects("2001:db8:9::1", 99, 0.3)
                assert not outside.connects(a.address6, 9)
        with network.Network() as lan, host(lan, "a") as a:
            assert not lan.uplink6
            assert not a.connects(outside.address6, 80)


def published(lan: network.Network, web: Host) -> None:
    """TCP and UDP at the IPv6 loopback, and at IPv4's beside it."""
    with web.listen(80) as server, web.listen(53, kind=socket.SOCK_DGRAM) as names:

        def body() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"hello")
            data, peer = names.recvfrom(99)
            names.sendto(data.upper(), peer)

        thread = threading.Thread(target=body)
        thread.start()
        for place in ("::1", "127.0.0.1"):
            with socket.create_connection((place, 8080), 20) as client:
                assert client.recv(9) == b"hello"
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.settimeout(30)
            client.sendto(b"who", ("::1", 5353))
            assert client.recv(9) == b"WHO"
        thread.join()


PUBLISH = {"[::1]:8080": 80, "[::1]:5353/udp": 53, 8080: 80}


def test_published_at_ipv6_addresses() -> None:
    with network.Network() as lan:
        with host(lan, "web", publish=PUBLISH) as web:
            published(lan, web)
            with pytest.raises(SetupError, match="in use"):
                network.Interface(lan, publish={"[::1]:8080": 1}).network.reserve(
                    network.Interface(lan, publish={"[::1]:8080": 1}).wish()
                )
        assert not connects("::1", 8080)
        for where, words in (("::1:80", "brackets"), ("[fe80::1%lo]:80", "whole"), ("[::x]:80", "host")):
            with pytest.raises(ValueError, match=words):
                network.Interface(lan, publish={where: 80})
        with pytest.raises(ConflictError, match="twice"):
            network.Interface(lan, publish={"[::1]:80": 1, "[::]:80": 1})
        assert str(network.Publish(80, 80, address="0::1")) == "[::1]:80/tcp"


def test_who_is_connected_is_found() -> None:
    """The kernel joins the group of those who are asked for by an address a little later: nobody waits for that."""
    with network.Network() as lan:
        for _ in range(10):
            handle = NetNamespace.create()
            with network.connect(lan, handle) as connection, handle:
                group = f"ff02{'0' * 18}01ff{connection.addresses[1].packed[-3:].hex()}"
                with open("/proc/thread-self/net/igmp6", encoding="ascii") as file:
                    assert group in file.read()
            handle.close()


def test_an_address_that_goes_with_another() -> None:
    """IPv6 addresses are given out beside those of IPv4, also where one of them was asked for before."""
    with network.Network() as lan:
        assert lan.subnet6 is not None
        with host(lan, "a", address6=str(lan.subnet6[9])):
            with pytest.raises(ConflictError, match="taken by the member a"):
                lan.reserve(network.Interface(lan, address=str(lan.subnet[9])).wish())
            both = network.Interface(lan, address=str(lan.subnet[9]), address6=str(lan.subnet6[10]))
            place = lan.reserve(both.wish())
            assert [str(each) for each in place.member.addresses] == [str(lan.subnet[9]), str(lan.subnet6[10])]
            place.close()


def test_published_ports_lead_to_ipv6_first() -> None:
    with network.Network() as lan, host(lan, "web", publish={"[::1]:8080": 80, 8080: 80}) as web:

        def reached(server: socket.socket, place: str, port: int = 8080) -> str:
            """What the server has as its own address."""
            with socket.create_connection((place, port), 20):
                connection, _ = server.accept()
                with connection:
                    return str(connection.getsockname()[0])

        with web.listen(80) as four:
            assert reached(four, "::1") == web.address  # nobody listens at the other
            with web.listen(80, web.address6) as six:
                assert reached(six, "::1") == web.address6
                assert reached(four, "127.0.0.1") == web.address
        with socket.create_connection(("::1", 8080), 20) as client:
            assert client.recv(9) == b""  # nobody listens at all: it ends
    with network.Network(ipv6=False) as lan, host(lan, "web", publish={"[::1]:8081": 80}) as web:
        with web.listen(80) as four:
            assert reached(four, "::1", 8081) == web.address


def test_published_datagrams_lead_to_ipv6_first() -> None:
    def asked(server: socket.socket, place: str, count: int = 3) -> None:
        """Datagrams of as many clients arrive there, and are answered, the second one's again."""
        for number in range(count):
            with socket.socket(socket.AF_INET6 if ":" in place else socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(30)
                client.connect((place, 5353))
                for _ in range(2):
                    client.send(b"%d" % number)
                    data, sender = server.recvfrom(99)
                    assert data == b"%d" % number
                    server.sendto(data * 2, sender)
                    assert client.recv(99) == data * 2

    with network.Network() as lan:
        with host(lan, "web", publish={"[::1]:5353/udp": 53, "5353/udp": 53}) as web:
            with web.listen(53, kind=socket.SOCK_DGRAM) as four:
                asked(four, "::1", 20)  # nobody listens at the other, which few are told
                asked(four, "127.0.0.1")
        with host(lan, "web", publish={"[::1]:5353/udp": 53, "5353/udp": 53}) as web:
            with web.listen(53, kind=socket.SOCK_DGRAM) as four:
                with web.listen(53, web.address6, kind=socket.SOCK_DGRAM) as six:
                    asked(six, "::1")
                    asked(four, "127.0.0.1")
    with network.Network(ipv6=False) as lan, host(lan, "web", publish={"[::1]:5353/udp": 53}) as web:
        with web.listen(53, kind=socket.SOCK_DGRAM) as four:
            asked(four, "::1")


def test_only_where_it_is_published(machine: NetNamespace) -> None:
    with Outside(machine) as outside, network.Network() as lan:
        publish = {"[2001:db8:9::1]:8080": 80, "[::1]:8081": 80}
        with host(lan, "web", publish=publish) as web, web.listen(80):
            assert outside.connects("2001:db8:9::1", 8080)
            assert not outside.connects("2001:db8:9::1", 8081)
            assert not connects("::1", 8080)
            assert connects("::1", 8081)


def of_an_ordinary_user() -> None:
    """Egress, and published ports, in a network of one's own user namespace."""
    from isolate import PidNamespace, Sandbox, UserNamespace

    code = (
        "import socket, sys\n"
        "for port in (80, 81):\n"
        "    try:\n"
        "        print(socket.create_connection((sys.argv[1], port), 20).recv(9))\n"
        "    except OSError:\n"
        "        print('refused')\n"
    )
    serve = (
        "import socket, threading\n"
        "def run(port):\n"
        "    server = socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "    print(port, flush=True)\n"
        "    while True:\n"
        "        connection, _ = server.accept()\n"
        "        connection.sendall(b'hello')\n"
        "        connection.close()\n"
        "for port in (80, 81):\n"
        "    threading.Thread(target=run, args=(port,)).start()\n"
    )
    with network.Network() as lan:
        parts = [PidNamespace(), UserNamespace()]
        db = Sandbox(*parts, network.Interface(lan, name="db", publish={"[::1]:8086": 80}))
        with db.spawn(["python3", "-c", serve], stdout=-1) as process:
            assert process.stdout is not None
            assert sorted([process.stdout.readline(), process.stdout.readline()]) == [b"80\n", b"81\n"]
            six = str(lan.members["db"][1])
            free = Sandbox(*parts, network.Interface(lan)).run(["python3", "-c", code, six], text=True)
            assert free.stdout == "b'hello'\nb'hello'\n", free.stderr
            limited = Sandbox(*parts, network.Interface(lan, egress=network.Egress(["db:80"])))
            assert limited.run(["python3", "-c", code, six], text=True).stdout == "b'hello'\nrefused\n"
            with socket.create_connection(("::1", 8086), 20) as client:
                assert client.recv(9) == b"hello"


def test_an_ordinary_user() -> None:
    root = Path(__file__).parents[2]
    as_ordinary_user(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from tests.network.test_ipv6 import of_an_ordinary_user as test; test()"
    )


THROUGH = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", 3128), 20)
target = f"six.example.org:{sys.argv[1]}"
sock.sendall(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n".encode())
head = sock.recv(999)
print(head.split()[1].decode())
if b" 200 " in head:
    sock.sendall(b"hello")
    print(sock.recv(99).decode())
"""


def test_domains_by_ipv6() -> None:
    """A name with IPv6 addresses alone, and one whose IPv6 address does not answer."""
    from isolate import PidNamespace, Sandbox

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]

        def body() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(connection.recv(99).upper())

        thread = threading.Thread(target=body)
        thread.start()
        for addresses, private, wanted in (
            (["::1"], ["::1/128"], "200\nHELLO\n"),
            (["::2", "::1"], ["::/126"], "200\nHELLO\n"),
            (["::1"], [], "502\n"),  # loopback, unless it is allowed
            (["::ffff:127.0.0.1", "fd00::1", "fe80::1", "2002:7f00:1::", "64:ff9b::7f00:1"], [], "502\n"),
        ):
            part = network.Domains(
                "six.example.org", port=port, tls=False, private=private, resolve=lambda name, port, a=addresses: a
            )
            box = Sandbox(PidNamespace(), part)
            result = box.run(["python3", "-c", THROUGH, str(port)], text=True, timeout=30)
            assert result.stdout == wanted, (addresses, result.stderr)
        thread.join()
