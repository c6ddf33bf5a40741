"""A network and its members: what they have, whom they reach, and what is gone when it ends."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from isolate import (
    Bind,
    Etc,
    File,
    MountNamespace,
    NetNamespace,
    PidNamespace,
    Root,
    Sandbox,
    UserNamespace,
    network,
    presets,
)
from isolate.errors import ConflictError, SetupError, UnsupportedError
from isolate.network import address, link
from isolate.network.members import Wish
from isolate.network.netlink import Message, Socket
from tests.network.hosts import connects, host, ruleset, told, until
from tests.ordinary import as_ordinary_user

pytestmark = pytest.mark.root


def test_members_reach_one_another_and_nobody_else() -> None:
    with network.Network() as lan, network.Network() as other:
        assert not lan.subnet.overlaps(other.subnet)
        with host(lan, "db") as db, host(lan, "web") as web, host(other, "web") as stranger:
            with db.listen(5432), db.listen(5432, db.address6), stranger.listen(5432):
                assert web.connects(db.address, 5432)
                assert web.connects(db.address6, 5432)
                # Not from another network, not from this program's; nor the other way round.
                assert not stranger.connects(db.address, 5432, 0.3)
                assert not connects(db.address, 5432, 0.3)
                assert not web.connects(stranger.address, 5432, 0.3)
            with socket.create_server(("127.0.0.1", 0)) as ours:
                assert connects(*ours.getsockname())
                assert not web.connects(*ours.getsockname())


def test_a_member_is_what_ip_tells() -> None:
    with network.Network("10.99.7.0/24", ipv6="fd00:99::/64", mtu=1400) as lan:
        wanted = {"address": "10.99.7.77", "address6": "fd00:99::77", "mac": "02:00:00:00:00:07", "mtu": 1300}
        routes = {"192.0.2.0/24": "10.99.7.1", "198.51.100.0/24": None}
        with host(lan, "db", device="net7", routes=routes, **wanted) as db:
            (device,) = (row for row in db.tell("ip", "-j", "addr") if row["ifname"] == "net7")
            assert device["address"] == wanted["mac"]
            assert device["mtu"] == 1300
            assert {"UP", "LOWER_UP"} <= set(device["flags"])
            own = {(a["local"], a["prefixlen"]) for a in device["addr_info"] if a["scope"] == "global"}
            assert own == {("10.99.7.77", 24), ("fd00:99::77", 64)}
            assert {(r["dst"], r.get("gateway")) for r in db.tell("ip", "-j", "route")} == {
                ("10.99.7.0/24", None),
                ("192.0.2.0/24", "10.99.7.1"),
                ("198.51.100.0/24", "10.99.7.1"),
            }
            ports = told(NetNamespace(fd=lan.namespace), "ip", "-j", "-d", "link", "show", "master", "br0")
            assert [row["ifname"] for row in ports if row["ifname"] != "s0"] == ["p75"]
            assert lan.members == {"db": [ipaddress.ip_address("10.99.7.77"), ipaddress.ip_address("fd00:99::77")]}
        assert lan.members == {}


def test_rules_are_what_nft_tells_and_nobody_elses() -> None:
    with network.Network() as lan, host(lan, "db"), host(lan, "web", egress=network.Egress(["db:5432"])) as web:
        switch = NetNamespace(fd=lan.namespace)
        rows = told(switch, "nft", "-j", "list", "sets")["nftables"]
        sets = {(row["set"]["family"], row["set"]["name"]): row["set"] for row in rows if "set" in row}
        assert [e["concat"][1] for e in sets["bridge", "members4"]["elem"]] == [str(lan.members["db"][0])]
        assert [e["concat"][1] for e in sets["inet", "members4"]["elem"]] == [web.address]
        (element,) = sets["inet", "reach_ports4"]["elem"]
        assert element["concat"] == [web.address, str(lan.members["db"][0]), "tcp", 5432]
        with pytest.raises(Exception, match="returned non-zero"):
            told(switch, "nft", "-j", "add", "rule", "inet", "isolate", "forward", "accept")


NAMES = """
import socket
for name in ("db", "DB.", "store", "web"):
    print(sorted({a[4][0] for a in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)}))
print(socket.gethostbyaddr(socket.gethostbyname("db"))[0])
try:
    socket.getaddrinfo("nobody", 80)
except socket.gaierror as error:
    print(error)
"""


def test_names() -> None:
    with network.Network() as lan, host(lan, "db", aliases=["store"]) as db:
        box = Sandbox(PidNamespace(), MountNamespace(), network.Interface(lan, name="web"))
        result = box.run(["python3", "-c", NAMES], text=True)
        lines = result.stdout.splitlines()
        assert lines[0] == lines[1] == lines[2] == str(sorted([db.address, db.address6])), result.stderr
        assert lines[4] == "db"
        assert "not known" in lines[5]
        # Control: without it the host's file is there.
        bare = Sandbox(MountNamespace()).run(["cat", "/etc/resolv.conf"])
        assert bare.stdout == Path("/etc/resolv.conf").read_bytes()


ASKS = "import socket\ntry: print(socket.gethostbyname(%r))\nexcept OSError as error: print(error)"


def test_names_in_a_preset() -> None:
    """The preset's own ``nsswitch.conf`` asks name servers if a part says which: it asked the files alone."""
    with network.Network() as lan, host(lan, "db") as db:
        box = presets.untrusted(network.Interface(lan))
        assert box.run(["python3", "-c", ASKS % "db"], text=True).stdout == f"{db.address}\n"
        assert "not known" in box.run(["python3", "-c", ASKS % "nobody"], text=True).stdout
    # A client that knows no proxy asks the stub resolver of Domains.
    box = presets.untrusted() + network.Domains("good.example")
    assert box.run(["python3", "-c", ASKS % "good.example"], text=True).stdout.startswith("198.18.")
    # Control: a preset without a network asks nobody, nor one that is told so.
    shown = presets.untrusted().run(["cat", "/etc/nsswitch.conf"], text=True).stdout
    assert "hosts: files\n" in shown
    quiet = Sandbox(UserNamespace(), Root(Bind("/"), Etc(dns=False), File("/etc/resolv.conf", "")))
    asking = Sandbox(UserNamespace(), Root(Bind("/"), Etc(), File("/etc/resolv.conf", "")))
    for box, line in ((quiet, "hosts: files\n"), (asking, "hosts: files dns\n")):
        assert line in box.run(["/usr/bin/cat", "/etc/nsswitch.conf"], text=True).stdout


def test_egress_is_what_is_listed() -> None:
    with network.Network() as lan, host(lan, "db") as db, host(lan, "cache") as cache:
        rules = network.Egress(["db:5432", "later", f"{cache.address}:7000-7002"])
        with host(lan, "web", egress=rules) as web, host(lan, "free") as free:
            with db.listen(5432), db.listen(5433), cache.listen(7001), cache.listen(7003), web.listen(80):
                assert web.connects(db.address, 5432)
                assert web.connects(cache.address, 7001)
                assert not web.connects(db.address, 5433)
                assert not web.connects(cache.address, 7003)
                # Control: one without limits reaches both; and it is reached by the others, and answers.
                assert free.connects(db.address, 5433)
                assert free.connects(cache.address, 7003)
                assert free.connects(web.address, 80)
            with host(lan, "later") as later, later.listen(9):
                assert web.connects(later.address, 9)
                gone = later.address
            with pytest.raises(ValueError, match="no member"):
                lan.stats("later")
            # The address is nobody's that it may reach, also when another has it.
            with host(lan, "new", address=gone) as new, new.listen(9):
                assert free.connects(gone, 9)
                assert not web.connects(gone, 9)


def test_rules_that_overlap() -> None:
    """Networks in one another, ranges of ports in part, a name beside its address, twice the same."""
    with network.Network() as lan, host(lan, "db") as db, host(lan, "other") as other:
        net = str(lan.subnet)
        rules = [f"{db.address}:80-90", "db:85-95", "later:90-99", f"{net}:93", "db:80", "db:80", f"{other.address}"]
        rules += [f"{net}:7/udp", "db:6-8/udp", f"{lan.subnet[9]}:90-95", "other"]
        with host(lan, "web", egress=network.Egress(rules)) as web, host(lan, "x", ingress=network.Ingress(rules)):
            listening = [db.listen(port) for port in (79, 80, 90, 92, 93, 95, 96)]
            reached = [port for port in (79, 80, 90, 92, 93, 95, 96) if web.connects(db.address, port, 10)]
            assert reached == [80, 90, 92, 93, 95]
            with other.listen(5), host(lan, "later", address=str(lan.subnet[9])) as later:
                assert web.connects(other.address, 5, 10)
                listening += [later.listen(port) for port in (89, 90, 93, 99)]
                assert [port for port in (89, 90, 93, 99) if web.connects(later.address, port, 10)] == [90, 93, 99]
            with host(lan, "new", address=str(lan.subnet[9])) as new:  # has what is listed by address, not by name
                listening += [new.listen(port) for port in (93, 99)]
                assert [port for port in (93, 99) if web.connects(new.address, port, 10)] == [93]
            for each in listening:
                each.close()


def test_what_a_port_sends_bears_its_own_addresses() -> None:
    with network.Network() as lan, host(lan, "db") as db, host(lan, "liar") as liar, db.listen(9, kind=2) as there:
        alias = str(lan.subnet[200])
        with liar.net:
            for address in (liar.address, alias):
                if address == alias:
                    liar.tell("ip", "-j", "addr", "add", f"{alias}/24", "dev", "eth0")
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.bind((address, 0))
                    sock.sendto(address.encode(), (db.address, 9))
        assert there.recv(99) == liar.address.encode()
        there.settimeout(0.3)
        with pytest.raises(TimeoutError):
            there.recv(99)


def test_several_interfaces() -> None:
    with network.Network() as one, network.Network() as two, host(one, "a") as a, host(two, "b") as b:
        box = Sandbox(PidNamespace(), network.Interface(one, name="router"), network.Interface(two, name="router"))
        code = "import socket\nfor place in %r: print(socket.create_connection((place, 9), 20).getsockname()[0])"
        with a.listen(9), b.listen(9):
            result = box.run(["python3", "-c", code % [a.address, b.address]], text=True)
        used = [ipaddress.ip_address(word) for word in result.stdout.split()]
        assert len(used) == 2, result.stderr
        assert used[0] in one.subnet
        assert used[1] in two.subnet


def test_an_index_inside_that_another_device_has() -> None:
    """A sandbox's own first device is 2; where that is taken the kernel chooses."""
    with network.Network() as lan, NetNamespace.create() as net, Socket() as inside:
        for name, device in (("a", "eth0"), ("b", "eth1")):
            place = lan.reserve(Wish(name=name, device=device, index=2))
            lan._attach(place.member, inside)
        indexes = [link.named(inside, device).index for device in ("eth0", "eth1")]
        assert indexes[0] == 2
        assert indexes[1] not in (0, 1, 2)
        given = {(each.index, str(each.interface.ip)) for each in address.addresses(inside)}
        for index, name in zip(indexes, ("a", "b"), strict=True):
            assert {(index, str(each)) for each in lan.members[name]} <= given
    net.close()


def test_what_is_bridged_is_not_filtered_as_if_it_were_routed() -> None:
    """The bridge has rules of its own; the kernel's br_netfilter would have each connection tracked as well."""
    files = [Path(f"/proc/sys/net/bridge/bridge-nf-call-{kind}tables") for kind in ("ip", "ip6", "arp")]
    if not files[0].exists():
        pytest.skip("this kernel has no br_netfilter, or it is not loaded")
    for ipv6 in (None, False):
        with network.Network(ipv6=ipv6) as lan:
            with NetNamespace(fd=lan.namespace):
                assert [file.read_text() for file in files] == ["0\n"] * 3
            with NetNamespace.create():
                assert [file.read_text() for file in files] == ["1\n"] * 3  # control: the kernel's own values


def test_a_member_that_left_leaves_nothing() -> None:
    with network.Network() as lan:
        switch = NetNamespace(fd=lan.namespace)
        before = ruleset(switch)
        for _ in range(3):
            with host(lan, "db"), host(lan, "web", egress=network.Egress(["db"])):
                assert len(lan.members) == 2
        assert ruleset(switch) == before
        own = {"lo", "br0", "s0", "s1"}
        assert until(lambda: {row["ifname"] for row in told(switch, "ip", "-j", "link")} == own)


def test_who_has_ended_leaves_before_it_is_closed() -> None:
    with network.Network() as lan:
        address = str(lan.subnet[9])
        options: dict[str, Any] = {"name": "db", "aliases": ["sql"], "address": address, "publish": {18080: 80}}
        box = Sandbox(PidNamespace(), network.Interface(lan, **options, egress=network.Egress(["db:1"])))
        with box.spawn(["cat"], stdin=-1) as first:
            with pytest.raises(ConflictError, match="'db' already"):  # control: it has not ended
                box.run(["true"])
            assert first.stdin is not None
            first.stdin.close()
            assert first.wait() == 0
            assert lan.members == {}
            with host(lan, **options) as second, second.listen(80):
                assert connects("127.0.0.1", 18080, 20)
                first.close()  # what it had is another's now
                assert lan.members["db"][0] == ipaddress.ip_address(address)
                assert connects("127.0.0.1", 18080, 20)
                assert second.connects(second.address, 80, 20)
        assert not connects("127.0.0.1", 18080)


def test_bad_input_is_refused() -> None:
    for subnet in ("10.0.0.1/24", "10.0.0.0/31", "10.0.0.0/4", "127.0.0.0/24", "224.0.0.0/24", "fd00::/64", "x", 7):
        with pytest.raises((ValueError, TypeError), match="subnet"):
            network.Network(subnet)  # type: ignore[arg-type]
    for bad in ({"mtu": 9}, {"ipv6": "10.0.0.0/24"}, {"uplink": "nat"}, {"mtu": 600, "ipv6": "fd00::/64"}):
        with pytest.raises(ValueError):
            network.Network("10.99.0.0/24", **bad)  # type: ignore[arg-type]
    with network.Network("10.99.0.0/29", ipv6=False) as lan:
        with pytest.raises(ConflictError, match="overlaps"):
            network.Network("10.99.0.0/16")
        for options, words in (
            ({"name": "a_b"}, "hyphen"),
            ({"name": "10.0.0.1"}, "host name"),
            ({"name": "-a"}, "host name"),
            ({"address": "10.98.0.1"}, "not in the network"),
            ({"address": "10.99.0.1"}, "gateway"),
            ({"address6": "fd00::1"}, "no IPv6"),
            ({"publish": {0: 80}}, "1 to 65535"),
            ({"publish": {"8000-8010": 80}}, "as many"),
            ({"publish": {"80/sctp": 80}}, "no protocol"),
            ({"publish": {"[fe80::1%lo]:80": 80}}, "whole"),
            ({"publish": {"8000-8010": "9000-9010", 8005: 1}}, "twice"),
            ({"publish": {"0.0.0.0:80": 80, 80: 81}}, "twice"),
            ({"rate": "20"}, "8000"),
            ({"rate": "fast"}, "bits per second"),
            ({"burst": "64K"}, "no rate"),
            ({"mac": "01:00:00:00:00:00"}, "group"),
            ({"mac": "02"}, "mac"),
            ({"mtu": 1501}, "mtu"),
            ({"device": "lo"}, "device"),
            ({"device": "a" * 16}, "device"),
            ({"routes": {"10.0.0.1/8": None}}, "routes"),
        ):
            with pytest.raises(ValueError, match=words):
                network.Interface(lan, **options)  # type: ignore[arg-type]
        for to in ("db:0", "db:http", "10.0.0.1/8:80", "10.0.0:80", "db:80/icmp", "db/tcp", "*:80", ":80"):
            with pytest.raises(ValueError):
                network.Egress([to])
        with pytest.raises(TypeError, match="list"):
            network.Egress("db:80")
        with pytest.raises(TypeError, match="Network"):
            network.Interface("10.0.0.0/24")  # type: ignore[arg-type]
        with pytest.raises(ConflictError, match="joined"), open("/proc/self/ns/net") as file:
            Sandbox(NetNamespace(fd=file.fileno()), network.Interface(lan)).run(["true"])


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_a_kernel_without_a_kind_of_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself answers: it is asked for a kind that none has."""
    whole = getattr(link, kind)

    def without(*args: Any, **options: Any) -> Message:
        message: Message = whole(*args, **options)
        return message._replace(body=message.body.replace(kind.encode() + b"\0", b"x" * len(kind) + b"\0"))

    with monkeypatch.context() as patch:
        patch.setattr(link, kind, without)
        with pytest.raises(UnsupportedError, match=f"make the {kind}") as caught:
            network.Network()
    assert caught.value.errno == errno.EOPNOTSUPP
    assert "Unknown device type" in str(caught.value.cause)
    assert "doctor" in str(caught.value.remedy)
    network.Network().close()  # control


@pytest.mark.slow
def test_a_kernel_without_nf_tables() -> None:
    """A filter answers as such a kernel does."""
    code = """
from isolate import Seccomp, network
from isolate.errors import UnsupportedError
from isolate.seccomp import arg, deny
network.Network().close()  # control
tables = (arg(0) == 16) & (arg(2) == 12)
Seccomp(deny("socket", when=tables, errno="EPROTONOSUPPORT"), otherwise="allow").enter()
try:
    network.Network()
except UnsupportedError as error:
    print(error.cause, error.remedy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "without nf_tables" in done.stdout, done.stderr
    assert "modprobe nf_tables" in done.stdout


def test_what_is_taken_is_refused_before_anything_starts() -> None:
    with network.Network("10.99.0.0/29", ipv6=False) as lan, host(lan, "a", address="10.99.0.4"):
        for options, words in (({"name": "a"}, "named 'a'"), ({"address": "10.99.0.4"}, "taken by the member a")):
            with pytest.raises(ConflictError, match=words):
                Sandbox(network.Interface(lan, **options)).run(["true"])  # type: ignore[arg-type]
        box = Sandbox(network.Interface(lan))
        members = [box.spawn(["sleep", "60"]) for _ in range(4)]
        with pytest.raises(SetupError, match="give out an address") as caught:
            box.run(["true"])
        assert caught.value.errno == errno.EADDRNOTAVAIL
        assert "larger" in str(caught.value)
        for member in members:
            member.close()
        assert until(lambda: box.run(["true"]).returncode == 0)
    with pytest.raises(ValueError, match="open"):
        box.run(["true"])


def members_of_an_ordinary_user() -> None:
    """Also run as one: the network belongs to a user namespace of theirs."""
    inside = [UserNamespace()] if os.geteuid() else []
    code = (
        "import socket; s = socket.create_server(('', 80)); u = socket.socket(type=socket.SOCK_DGRAM)\n"
        "u.bind(('', 53)); print('up', flush=True)\n"
        "for _ in range(2):\n c, _ = s.accept(); c.sendall(b'hello'); c.close()\n"
        "c, _ = s.accept(); c.sendall(bytes(1 << 20)); c.shutdown(1); assert len(c.makefile('rb').read()) == 99999\n"
        "data, peer = u.recvfrom(9); u.sendto(data.upper(), peer); s.accept()"
    )
    client = "import socket; print(socket.create_connection(('db', 80), 20).recv(9).decode())"
    before = set(threading.enumerate())  # of others, which may be on their way out
    with network.Network() as lan:
        published = {8080: 80, "5353/udp": 53}
        server = Sandbox(PidNamespace(), network.Interface(lan, name="db", publish=published), *inside)
        with server.spawn(["python3", "-c", code], stdout=-1) as process:
            assert process.stdout is not None
            assert process.stdout.read(3) == b"up\n"
            box = Sandbox(PidNamespace(), MountNamespace(), network.Interface(lan), *inside)
            result = box.run(["python3", "-c", client], text=True)
            assert result.stdout == "hello\n", result.stderr
            assert lan.stats("db").received_bytes > 0
            for wanted in (b"hello", bytes(1 << 20)):  # by its port on the host
                with socket.create_connection(("127.0.0.1", 8080), 20) as sock, sock.makefile("rb") as file:
                    assert file.read(1) == wanted[:1]
                    if len(wanted) > 9:
                        sock.sendall(bytes(99999))
                        sock.shutdown(socket.SHUT_WR)
                    assert file.read() == wanted[1:]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(30)
                sock.sendto(b"names", ("127.0.0.1", 5353))
                assert sock.recv(9) == b"NAMES"
            assert not connects("127.0.0.1", 80)
        assert not connects("127.0.0.1", 8080)
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("isolate-")]


def test_an_ordinary_user() -> None:
    members_of_an_ordinary_user()
    root = Path(__file__).parents[2]
    as_ordinary_user(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from tests.network.test_network import members_of_an_ordinary_user as test; test()"
    )


def test_nobody_but_the_switch_is_a_router_or_another() -> None:
    """Router advertisements, redirects, and neighbour advertisements for others' addresses stay at the port."""
    with network.Network() as lan, host(lan, "victim") as victim, host(lan, "liar") as liar:
        with victim.net:
            seen = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        with liar.net:
            sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        own, other = (socket.inet_pton(socket.AF_INET6, a) for a in (liar.address6, str(lan.subnet6[9])))  # type: ignore[index]

        def arrives(message: bytes, patience: float = 0.3) -> bool:
            """This very one: the kernel sends such messages, too."""
            sender.sendto(message, (victim.address6, 0))
            seen.settimeout(patience)
            try:
                while True:
                    found = seen.recv(999)
                    if found[:2] + found[4:] == message[:2] + message[4:]:  # the kernel puts the checksum in
                        return True
            except TimeoutError:
                return False

        with seen, sender:
            assert arrives(bytes([136, 0, 0, 0, 0x60, 0, 0, 0]) + own, 30)  # control: of its own address
            assert not arrives(bytes([136, 0, 0, 0, 0x60, 0, 0, 0]) + other)
            assert not arrives(bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8))
            assert not arrives(bytes([137, 0, 0, 0, 0, 0, 0, 0]) + other + own)
            assert arrives(bytes([200, 0, 0, 0]), 30)  # control: anything else


def test_every_way_to_start() -> None:
    import asyncio

    from isolate import Pool, presets

    with network.Network() as lan:
        box = presets.untrusted() + network.Interface(lan)
        assert "netlink socket" in box.explain()
        box.check()
        code = "print(open('/etc/resolv.conf').read().split()[1])"
        wanted = f"{lan.gateway}\n".encode()
        assert box.run(["python3", "-c", code]).stdout == wanted
        assert asyncio.run(box.arun(["python3", "-c", code])).stdout == wanted
        with Pool(box, size=1) as pool:
            assert [pool.run(["python3", "-c", code]).stdout for _ in range(2)] == [wanted] * 2
        with box.spawn(["sleep", "60"]) as process, process.exec(["python3", "-c", code], stdout=-1) as further:
            assert further.stdout is not None
            assert further.stdout.read() == wanted
            assert further.wait() == 0
        assert lan.members == {}
