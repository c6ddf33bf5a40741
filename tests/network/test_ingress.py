"""What a member takes connections from: as listed, by members, addresses and its own ports, in both families."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import NetNamespace, PidNamespace, Sandbox, UserNamespace, network
from isolate.network import Egress, Ingress, link
from isolate.network.netlink import Socket
from tests.network.hosts import connects, host, ruleset, told
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from tests.network.hosts import Host

pytestmark = pytest.mark.root


def both(host: Host, db: Host, port: int) -> list[bool]:
    """Whether it connects by IPv4 and by IPv6."""
    return [host.connects(at, port, 10) for at in (db.address, db.address6)]


def test_ingress_is_what_is_listed() -> None:
    with network.Network() as lan, host(lan, "web") as web, host(lan, "other") as other:
        rules = Ingress(["web:5432", "later:5432", f"{other.address}:7000-7002", "*:80"])
        with host(lan, "db", ingress=rules) as db, host(lan, "open") as free:
            listening = [
                each.listen(port, at)
                for each in (db, free)
                for at in (each.address, each.address6)
                for port in (5432, 5433, 7001, 80)
            ]
            assert both(web, db, 5432) == [True, True]
            assert both(other, db, 5432) == [False, False]
            assert both(web, db, 5433) == [False, False]
            assert both(other, db, 7001) == [True, False]  # one family was listed
            assert both(web, db, 7001) == [False, False]
            assert both(web, db, 80) == both(other, db, 80) == [True, True]
            # Control: one without limits is reached at each; and the limited one opens connections, and is answered.
            assert [both(other, free, port) for port in (5432, 5433, 7001)] == [[True, True]] * 3
            assert both(db, free, 5433) == [True, True]
            # A name that comes later; its address is nobody's once it has left, also when another has it.
            with host(lan, "later") as later:
                assert both(later, db, 5432) == [True, True]
                gone = later.address
            with host(lan, "new", address=gone) as new:
                assert both(new, db, 5432) == [False, False]
                assert both(new, free, 5432) == [True, True]
            for each in listening:
                each.close()


def test_a_refusal_is_told_at_once() -> None:
    """By a reset: the kernel sends few ICMP errors, and a connection that is being made takes them a second later."""
    with network.Network() as lan, host(lan, "web") as web, host(lan, "limited", egress=Egress(["web:80"])) as limited:
        with host(lan, "db", ingress=Ingress(["web:80"])) as db, host(lan, "free") as free:
            for at, port in ((db, 81), (free, 80)):
                sender = web if at is db else limited
                for address in (at.address, at.address6):
                    with at.listen(port, address):
                        assert [refusal(sender, address, port) for _ in range(8)] == [errno.ECONNREFUSED] * 8
                        # Control: somebody listens there, and whom nothing limits gets in.
                        assert free.connects(address, port, 10) is (at is free)
            with db.listen(80), db.listen(80, db.address6):
                assert [refusal(web, address, 80) for address in (db.address, db.address6)] == [0, 0]
            with limited.net, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1)
                sock.connect((free.address, 80))
                with pytest.raises(OSError, match="No route to host"):  # ICMP, of what is no connection
                    asked(sock)


def asked(sock: socket.socket) -> None:
    """Until there is an answer, or its error: the kernel sends few messages of ICMP, perhaps not the first."""
    for _ in range(20):
        sock.send(b"x")
        with contextlib.suppress(TimeoutError):
            sock.recv(1)
            return


def refusal(host: Host, address: str, port: int) -> int:
    """The error of a connection; 0 is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.net, socket.socket(family) as sock:
        sock.settimeout(20)
        return sock.connect_ex((address, port))


def test_it_is_reached_when_the_bridge_was_empty_in_between() -> None:
    """A bridge without a carrier forgets for whom it answers. One port of it has one for good."""
    with network.Network() as lan, host(lan, "db", ingress=Ingress(["*:80"])) as db:
        with db.listen(80), db.listen(80, db.address6):
            for _ in range(3):
                with host(lan, "web") as web:
                    assert both(web, db, 80) == [True, True]
                link.settle(lan._switch.route, "br0")  # the kernel notices it now, and not a second later


def test_it_is_reached_after_the_only_wire_was_down() -> None:
    """No later member has the bridge told anew for whom it answers."""
    with network.Network() as lan, host(lan, "db", ingress=Ingress(["*:80"])) as db, host(lan, "web") as web:
        with db.listen(80), web.net, Socket() as inside:
            assert connects(db.address, 80, 10)
            for _ in range(3):
                (own,) = (each.index for each in link.links(inside) if each.name == "eth0")
                inside.batch([link.change(own, up=False)])  # a program inside could, with CAP_NET_ADMIN
                port = next(each.name for each in link.links(lan._switch.route) if each.name.startswith("p"))
                for name in (port, "br0"):  # the kernel notices it now, and not a second later
                    link.settle(lan._switch.route, name)
                inside.batch([link.change(own, up=True)])
                link.settle(lan._switch.route, port)
                assert connects(db.address, 80, 10)


def test_the_bridge_has_a_carrier_before_anybody_comes() -> None:
    """By a port that no frame leaves by."""
    with network.Network() as lan:
        switch = NetNamespace(fd=lan.namespace)
        (bridge,) = told(switch, "ip", "-j", "link", "show", "br0")
        assert "LOWER_UP" in bridge["flags"]
        with host(lan, "web"):
            rows = told(switch, "ip", "-j", "-d", "link", "show", "master", "br0")
            ports = {row["ifname"]: row["linkinfo"]["info_slave_data"] for row in rows}
            sends = {
                name: [port[key] for key in ("flood", "mcast_flood", "bcast_flood", "learning")]
                for name, port in ports.items()
            }
            assert sends == {"s0": [False] * 4, "p0": [True] * 4}  # control: a member's port


def test_both_ends_have_a_say() -> None:
    with network.Network() as lan:
        with (
            host(lan, "db", ingress=Ingress(["web", "cache"])) as db,
            host(lan, "web", egress=Egress(["db:5432"])) as web,
            host(lan, "cache", egress=Egress(["web"])) as cache,
            host(lan, "other", egress=Egress(["db"])) as other,
            db.listen(5432),
            db.listen(5433),
        ):
            assert web.connects(db.address, 5432, 10)
            assert not web.connects(db.address, 5433, 10)  # its egress does not list it
            assert not cache.connects(db.address, 5432, 10)  # db would take it
            assert not other.connects(db.address, 5432, 10)  # its egress lists it, db's ingress does not


def test_datagrams_and_what_has_no_ports() -> None:
    with network.Network() as lan, host(lan, "web") as web, host(lan, "other") as other:
        with host(lan, "db", ingress=Ingress(["web", "other:9/udp"])) as db, db.listen(9, kind=2) as there:

            def arrives(sender: Host, protocol: int = 0) -> bool:
                """By UDP, or by packets of a protocol that this kernel knows nothing of."""
                kind = socket.SOCK_RAW if protocol else socket.SOCK_DGRAM
                with sender.net, socket.socket(socket.AF_INET, kind, protocol) as sock:
                    sock.sendto(b"" if protocol else b"x", (db.address, 0 if protocol else 9))
                try:
                    return bool((raw if protocol else there).recv(99))
                except TimeoutError:
                    return False

            assert arrives(web)
            assert arrives(other)
            with db.net:
                raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
            with raw:
                raw.settimeout(20)
                assert arrives(web, 253)
                raw.settimeout(0.3)
                assert not arrives(other, 253)  # a header without a port is no way around


def test_published_ports_and_none_at_all() -> None:
    with network.Network() as lan, host(lan, "web") as web:
        with host(lan, "db", ingress=Ingress(), publish={18080: 80}) as db, db.listen(80):
            assert not web.connects(db.address, 80, 10)
            assert connects("127.0.0.1", 18080)


def test_told_and_refused() -> None:
    with network.Network() as lan, host(lan, "web"):
        switch = NetNamespace(fd=lan.namespace)
        before = ruleset(switch)
        with host(lan, "db", ingress=Ingress(["web:80", "*"])):
            assert [row["ingress"] for row in lan.tell()["members"]] == [None, ["web:80", "*"]]
        assert ruleset(switch) == before
        for bad in ("web:0", "10.0.0.1/8:80", "web:80/icmp", ":80", "*/tcp", "*.a:80"):
            with pytest.raises(ValueError, match="Ingress: source"):
                Ingress([bad])
        with pytest.raises(TypeError, match="list"):
            Ingress("web:80")
        with pytest.raises(ValueError, match="0/0:443"):
            Egress(["*:80"])
        Egress(["0.0.0.0/0:443", "[::/0]:443"])
        with pytest.raises(ValueError, match="scheme"):
            Egress(["http://db"])
        with pytest.raises(TypeError, match=r"Ingress\(\["):
            network.Interface(lan, ingress=["web:80"])  # type: ignore[arg-type]


def ingress_of_an_ordinary_user() -> None:
    """Also run as one."""
    inside = [UserNamespace()] if os.geteuid() else []
    code = "import socket\ns = socket.create_server(('', 80)); print('up', flush=True)\nwhile True: s.accept()"
    client = (
        "import socket, sys\ntry: socket.create_connection((sys.argv[1], 80), 10); print(1)\nexcept OSError: print(0)"
    )
    with network.Network() as lan:
        server = Sandbox(PidNamespace(), network.Interface(lan, name="db", ingress=Ingress(["web:80"])), *inside)
        with server.spawn(["python3", "-c", code], stdout=-1) as process:
            assert process.stdout is not None
            assert process.stdout.read(3) == b"up\n"
            address = str(lan.members["db"][0])
            for name, reached in (("web", "1\n"), ("other", "0\n")):
                box = Sandbox(PidNamespace(), network.Interface(lan, name=name), *inside)
                assert box.run(["python3", "-c", client, address], text=True).stdout == reached


def test_an_ordinary_user() -> None:
    ingress_of_an_ordinary_user()
    root = Path(__file__).parents[2]
    as_ordinary_user(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from tests.network.test_ingress import ingress_of_an_ordinary_user as test; test()"
    )
