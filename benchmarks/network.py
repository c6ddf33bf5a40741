"""What a network costs, beside a C program that makes the same calls, and beside other tools, in one run.

    python benchmarks/network.py [--rounds 40] [--json FILE]

Run as root; everything happens in namespaces of the benchmark's own, of networks and of mounts. Rows take turns.

    attach      a new network namespace, a veth pair with a port of a bridge, an address, a route, all up
                floor: two sends from C; same: the very requests of isolate, put together before and sent from C;
                isolate: of a network with a way out (NAT), IPv6 and names, with the switch's rules; `ip -batch`; CNI's
                bridge with host-local; netavark, which is what podman has: with a way out and names, as podman's own
                default network, and of an internal network without names. Three times: each row 0.15 s after
                another, on processors that have slept meanwhile; the same, on processors that have run other programs
                meanwhile, which give way to all others (SCHED_IDLE); and ours and C's in a row
    start       a container that runs a program which does nothing, with such a network and without: isolate, podman
    publish     32 ports of one member, beside 10 members with one each and beside 1,000
    connect     to a published port, with 1,000 others published, beside the same wires routed on machines without a
                rule; of these wires also with connections tracked in both networks that they pass, and translated in
                both by rules of nft's; beside a single wire; and a port that netavark publishes, of one network less
    throughput  of one TCP connection, member to member, beside a bare veth pair and bridge
    proxy       a connection and its TLS handshake with a server on this host: direct, and by Domains

Of each row the median; "quiet", the tenth part from the better end; and how many times the first row's that is. Other
programs of the machine take the kernel's lock of networks (RTNL) as well, and then every row waits for them.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from isolate import NetNamespace, PidNamespace, Sandbox, network, presets
from isolate.engine import native
from isolate.kernel.constants import CLONE_NEWNET, CLONE_NEWNS
from isolate.kernel.syscalls import number
from isolate.network import address, link
from isolate.network.hostlink import HostLink, Published
from isolate.network.members import Wish
from isolate.network.netlink import Failure, Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
CGROUPS = Path("/sys/fs/cgroup")
CNI = next((path for path in ("/usr/lib/cni", "/opt/cni/bin") if os.path.exists(f"{path}/bridge")), None)
NETAVARK = next((p for p in ("/usr/lib/podman/netavark", "/usr/libexec/podman/netavark") if os.path.exists(p)), None)


class Floor:
    """The C program."""

    def __init__(self, directory: str) -> None:
        self.path = f"{directory}/floor"
        subprocess.run(["cc", "-O2", "-o", self.path, str(HERE / "network_floor.c")], check=True)

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([self.path, *args], stdout=subprocess.PIPE, text=True, **options)


def line(file: IO[str] | None) -> str:
    assert file is not None
    return file.readline()


def timed(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return (time.perf_counter() - begin) * 1e3


def bridge(name: str, at: str) -> int:
    """A bridge in this network."""
    with Socket() as sock:
        sock.batch([link.bridge(name)])
        index = link.named(sock, name).index
        sock.batch([address.add(index, ipaddress.ip_interface(at)), link.change(1, up=True)])
    return index


class Recorder(Socket):
    """A netlink socket that keeps what it is to send, as if all were well."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def exchange(self, data: bytes, count: int, *, framed: bool = False) -> list[Failure]:
        self.sent.append(data)
        return []


def netavark_config(
    name: str, subnet: int, own: str, number: int, *, internal: bool, ports: list[dict[str, Any]] | None = None
) -> str:
    """What podman gives netavark. A network that is not internal has a way out, and its names are answered for."""
    net = {
        "name": name,
        "id": f"{subnet:064x}",
        "driver": "bridge",
        "network_interface": f"nav{subnet}",
        "dns_enabled": not internal,
        "internal": internal,
        "ipv6_enabled": False,
        "subnets": [{"gateway": f"10.{subnet}.0.1", "subnet": f"10.{subnet}.0.0/24"}],
    }
    wanted = {"interface_name": "eth0", "static_ips": [own], "aliases": [f"c{number}"]}
    told = {
        "container_id": f"{number:064x}",
        "container_name": f"c{number}",
        "networks": {name: wanted},
        "network_info": {name: net},
    }
    return json.dumps({**told, "port_mappings": ports} if ports else told)


def netavark(directory: str, command: str, netns: str, data: str) -> None:
    assert NETAVARK is not None
    names = ["--aardvark-binary", f"{os.path.dirname(NETAVARK)}/aardvark-dns"]
    subprocess.run(
        [NETAVARK, "--config", directory, "--rootless", "false", *names, command, f"/run/netns/{netns}"],
        input=data,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


class Attach:
    """One row each: something that attaches a new namespace, and removes it."""

    def __init__(self, floor: Floor, directory: str) -> None:
        self.directory = directory
        self.machine = NetNamespace.create()
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.number = 0
        self.unshare = (number("unshare"), CLONE_NEWNET, 0, 0, 0, 0, 0)
        self.staying: list[bool] = []
        with self.machine:
            self.lan = network.Network("10.98.0.0/16", uplink="host")
            self.twin = network.Network("10.92.0.0/16", uplink="host")
        switch = self.twin._switch
        # Each request by itself, so that they can be recorded.
        switch._plainly = lambda plug, inside: False  # type: ignore[method-assign]
        fds = switch.route.fileno(), switch.filters.fileno()
        self.replaying = floor.start("replay", *map(str, fds), stdin=subprocess.PIPE, pass_fds=fds)
        with self.machine:
            self.index = bridge("br9", "10.99.0.1/16")
            self.floor = floor.start("attach", str(self.index), stdin=subprocess.PIPE)
        self.config = f"{directory}/cni.json"
        ipam = {"type": "host-local", "subnet": "10.97.0.0/16", "dataDir": f"{directory}/ipam"}
        self.cni = {"cniVersion": "0.4.0", "name": "lan", "type": "bridge", "bridge": "cni9", "ipam": ipam}

    def by_floor(self) -> float:
        assert self.floor.stdin is not None
        self.floor.stdin.write("\n")
        self.floor.stdin.flush()
        return float(line(self.floor.stdout)) / 1e3

    def by_isolate(self) -> float:
        self.number += 1
        wish = Wish(name=f"m{self.number}", index=2)  # as Interface has it

        # On this thread, as a start attaches its sandbox on the caller's: C's process and its thread are old, too.
        begin = time.perf_counter()
        native.lib.iso_call(*self.unshare)  # the launcher's part
        try:
            with Socket() as inside:
                place = self.lan.reserve(wish)
                self.lan._attach(place.member, inside)
                spent = (time.perf_counter() - begin) * 1e3
        finally:
            native.call(number("setns"), self.home, CLONE_NEWNET)
        network.Connection(place).close()
        return spent

    def by_same(self) -> float:
        """What isolate sends, from C."""
        self.number += 1
        switch = self.twin._switch
        route, filters, inside = Recorder(), Recorder(), Recorder()
        real = switch.route, switch.filters
        place = self.twin.reserve(Wish(name=f"m{self.number}", index=2))
        with contextlib.ExitStack() as stack:
            for each in (route, filters, inside):
                stack.enter_context(each)
            switch.route, switch.filters = route, filters
            try:
                self.twin._attach(place.member, inside)
            finally:
                switch.route, switch.filters = real
        assert place.member.plug is not None
        (wire,), (rules,), (addresses,) = route.sent, filters.sent, inside.sent
        offset = wire.rindex(struct.pack("=HH", 8, 28)) + 4  # IFLA_NET_NS_FD
        words = [place.member.plug.port, str(offset), wire.hex(), rules.hex(), addresses.hex()]
        assert self.replaying.stdin is not None
        self.replaying.stdin.write(" ".join(words) + "\n")
        self.replaying.stdin.flush()
        spent = float(line(self.replaying.stdout)) / 1e3
        network.Connection(place).close()
        return spent

    def _netns(self, name: str) -> str:
        subprocess.run(["ip", "netns", "add", name], check=True)
        return f"/run/netns/{name}"

    def by_ip(self) -> float:
        self.number += 1
        name = f"isolate-bench-{os.getpid()}"
        outer = (
            f"netns add {name}\nlink add i{self.number} type veth peer name eth0 netns {name}\n"
            f"link set i{self.number} master br9 up\n"
        )
        inner = "address add 10.99.9.9/16 dev eth0\nlink set eth0 up\nroute add default via 10.99.0.1\n"

        def run() -> None:
            subprocess.run(["ip", "-batch", "-"], input=outer, text=True, check=True)
            subprocess.run(["ip", "-n", name, "-batch", "-"], input=inner, text=True, check=True)

        try:
            with self.machine:
                return timed(run)
        finally:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def by_cni(self) -> float:
        self.number += 1
        name = f"isolate-bench-{os.getpid()}"
        env = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": f"c{self.number}",
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(CNI),
            "PATH": os.environ["PATH"],
        }
        data = json.dumps(self.cni)

        def run(**more: str) -> None:
            subprocess.run(
                [f"{CNI}/bridge"], input=data, text=True, env={**env, **more}, check=True, stdout=subprocess.DEVNULL
            )

        def add() -> None:
            self._netns(name)
            run()

        try:
            with self.machine:
                spent = timed(add)
                run(CNI_COMMAND="DEL")
        finally:
            subprocess.run(["ip", "netns", "del", name], check=False)
        return spent

    def by_netavark(self, *, default: bool = True) -> float:
        """The bridge is there already, and so is what answers for names: another container stays."""
        self.number += 1
        name = f"isolate-bench-{os.getpid()}"
        number = self.number

        def add() -> None:
            self._netns(name)
            self.netavark("setup", name, number, default=default)

        try:
            with self.machine:
                if default not in self.staying:
                    self._netns(f"{name}-{default}")
                    self.netavark("setup", f"{name}-{default}", 0, default=default)
                    self.staying.append(default)
                spent = timed(add)
                self.netavark("teardown", name, number, default=default)
        finally:
            subprocess.run(["ip", "netns", "del", name], check=False)
        return spent

    def by_netavark_internal(self) -> float:
        return self.by_netavark(default=False)

    def netavark(self, command: str, netns: str, number: int, *, default: bool) -> None:
        subnet = 90 if default else 96
        own = f"10.{subnet}.0.{2 + number % 200}"
        data = netavark_config("default" if default else "internal", subnet, own, number, internal=not default)
        netavark(self.directory, command, netns, data)

    def close(self) -> None:
        for run in (self.floor, self.replaying):
            assert run.stdin is not None
            run.stdin.close()
            run.wait()
        with self.machine:
            for default in self.staying:
                name = f"isolate-bench-{os.getpid()}-{default}"
                self.netavark("teardown", name, 0, default=default)
                subprocess.run(["ip", "netns", "del", name], check=False)
        self.lan.close()
        self.twin.close()
        self.machine.close()
        os.close(self.home)


OTHER = """
import os, random
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    words = [str(random.random()) for _ in range(200_000)]
    words.sort()
    dict.fromkeys(words)
"""


@contextlib.contextmanager
def others() -> Iterator[None]:
    """A program for each processor that wants all of it, of its caches too, and gives way to everybody at once."""
    running = [subprocess.Popen([sys.executable, "-c", OTHER]) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def taking_turns(wanted: dict[str, Callable[[], float]], rounds: int, pause: float) -> dict[str, list[float]]:
    """What each row took, in another order each time."""
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(rounds):
        for name, function in random.sample(list(wanted.items()), len(wanted)):
            try:
                found[name].append(function())
            except subprocess.CalledProcessError as error:
                print(f"{name}: {error} {error.stderr}", file=sys.stderr)
                del wanted[name]
            # The kernel takes namespaces away behind their end, under the lock that the next row needs.
            time.sleep(pause)
    return {name: times for name, times in found.items() if times}


def attach(floor: Floor, directory: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Each apart, on processors that have slept, and on those that have run other programs; ours and C's in a row."""
    rows = Attach(floor, directory)
    wanted: dict[str, Callable[[], float]] = {
        "floor": rows.by_floor,
        "same": rows.by_same,
        "isolate": rows.by_isolate,
        "ip": rows.by_ip,
    }
    warm = {name: wanted[name] for name in ("floor", "same", "isolate")}
    if CNI is not None:
        wanted["cni"] = rows.by_cni
    if NETAVARK is not None:
        wanted["netavark"] = rows.by_netavark
        wanted["netavark internal"] = rows.by_netavark_internal
    apart = taking_turns(wanted, rounds, 0.15)
    with others():
        beside = taking_turns(wanted, rounds, 0.15)
    in_a_row = taking_turns(warm, rounds * 4, 0)
    rows.close()
    return {"attach, ms": apart, "attach among others, ms": beside, "attach in a row, ms": in_a_row}


class Podman:
    """Podman with files of its own, in this network."""

    def __init__(self, directory: str, root: str) -> None:
        place = f"{directory}/podman"
        places = [f"--{option}={place}/{option}" for option in ("root", "runroot", "tmpdir", "network-config-dir")]
        os.makedirs(f"{place}/network-config-dir")
        plain = ["--storage-driver=vfs", "--events-backend=none", "--network-backend=netavark"]
        self.command = ["podman", *places, *plain, "--runtime=runc", "--cgroup-manager=cgroupfs"]
        self.root = root
        self._run("network", "create", "lan")
        self.run("lan")

    def _run(self, *args: str) -> None:
        subprocess.run([*self.command, *args], check=True, capture_output=True)

    def run(self, net: str) -> None:
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        self._run("run", "--rm", f"--network={net}", "--log-driver=none", *limits, "--rootfs", self.root, "/bin/true")


def start(directory: str, rounds: int) -> dict[str, list[float]]:
    root = f"{directory}/root"
    for each in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
        os.makedirs(f"{root}/{each}")
    shutil.copy(shutil.which("busybox") or "/bin/true", f"{root}/bin/true")
    groups = set(CGROUPS.glob("*/libpod_parent"))
    found: dict[str, list[float]] = {}
    with NetNamespace.create() as machine, network.Network(uplink="host") as lan:
        boxes = {
            "isolate, none": presets.container(root),
            "isolate": presets.container(root, network=network.Interface(lan, name="web")),
        }
        wanted: dict[str, Callable[[], object]] = {
            name: lambda box=box: box.run(["/bin/true"], check=True)  # type: ignore[misc]
            for name, box in boxes.items()
        }
        if shutil.which("podman"):
            try:
                podman = Podman(directory, root)
                wanted["podman, none"] = lambda: podman.run("none")
                wanted["podman"] = lambda: podman.run("lan")
            except subprocess.CalledProcessError as error:
                print(f"podman: {error} {error.stderr}", file=sys.stderr)
        for _ in range(rounds):
            for name, function in random.sample(list(wanted.items()), len(wanted)):
                found.setdefault(name, []).append(timed(function))
                time.sleep(0.15)
    machine.close()
    time.sleep(0.5)  # the last of podman's processes end
    for group in set(CGROUPS.glob("*/libpod_parent")) - groups:
        for below, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(below)
    return {name: found[name] for name in wanted if name in found}


def publish(rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with NetNamespace.create() as machine, network.Network() as lan:
        host: HostLink = lan._host_link()
        others: list[Published] = []
        for members in (10, 1000):
            while len(others) < members:
                one = Published(host, network.Interface(lan, publish={20000 + len(others): 80}).publish)
                one.lead([lan.gateway + 1])
                others.append(one)
            ports = network.Interface(lan, publish={"8000-8031": "8000-8031"}).publish
            spent = []
            for _ in range(rounds):
                begin = time.perf_counter()
                published = Published(host, ports)
                published.lead([lan.gateway + 2])
                spent.append((time.perf_counter() - begin) * 1e3)
                published.close()
            found[f"beside {members}"] = spent
        for one in others:
            one.close()
    machine.close()
    return found


def member(lan: network.Network, name: str, **options: Any) -> tuple[NetNamespace, str, network.Connection]:
    handle = NetNamespace.create()
    connection = network.connect(lan, handle, name=name, **options)
    return handle, str(connection.addresses[0]), connection


class Way(NamedTuple):
    """A way to a server: where its clients are, its address and port there, and the server's network."""

    there: NetNamespace
    address: str
    port: int
    server: NetNamespace


def connect(floor: Floor, directory: str, rounds: int) -> dict[str, list[float]]:
    ways: dict[str, Way] = {}
    with NetNamespace.create() as machine, network.Network() as lan, contextlib.ExitStack() as stack:
        handle, _, _ = member(lan, "web", publish={8080: 80})
        host: HostLink = lan._host_link()
        for number in range(1000):
            one = Published(host, network.Interface(lan, publish={20000 + number: 80}).publish)
            one.lead([lan.gateway + 9])
            stack.callback(one.close)
        ways["plain"] = wires(stack)
        ways["published"] = Way(machine, "127.0.0.1", 8080, handle)
        if shutil.which("nft"):
            ways["tracked"] = wires(stack, TRACKED, TRACKED)
            ways["translated"] = wires(stack, TRANSLATED_HERE, TRANSLATED_THERE)
        if NETAVARK is not None:
            try:
                ways["netavark"] = published_by_netavark(directory, stack)
            except subprocess.CalledProcessError as error:
                print(f"netavark: {error} {error.stderr}", file=sys.stderr)
        ways["one wire"] = wire(stack)
        servers = []
        for way in ways.values():
            with way.server:
                servers.append(floor.start("serve", "80"))
                line(servers[-1].stdout)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in random.sample(list(ways.items()), len(ways)):
                with way.there:
                    run = floor.start("connects", way.address, str(way.port), "300")
                found[name].append(float(line(run.stdout)))
                run.wait()
        for server in servers:
            server.kill()
            server.wait()
        handle.close()
    machine.close()
    return found


#: Rules of nft's: a network that tracks connections, and two that lead one on, the first from its own loopback.
TRACKED = """
table ip t {
 chain sent { type filter hook output priority 0; ct state established accept; }
 chain passed { type filter hook forward priority 0; ct state established accept; }
}
"""
TRANSLATED_HERE = """
table ip t {
 chain sent { type nat hook output priority -100; tcp dport 8080 dnat to 10.93.0.2:81; }
 chain left { type nat hook postrouting priority 100; oifname "c8" masquerade; }
}
"""
TRANSLATED_THERE = """
table ip t {
 chain came { type nat hook prerouting priority -100; tcp dport 81 dnat to 10.93.1.2:80; }
}
"""


def nft(rules: str) -> None:
    text = rules.replace("{ ", "{\n").replace("; }", ";\n}").replace(" }", "\n}")
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def published_by_netavark(directory: str, stack: contextlib.ExitStack) -> Way:
    there = NetNamespace.create()
    stack.callback(there.close)
    name = f"isolate-bench-{os.getpid()}-published"
    ports = [{"container_port": 80, "host_ip": "127.0.0.1", "host_port": 8080, "protocol": "tcp", "range": 1}]
    data = netavark_config("published", 91, "10.91.0.2", 1, internal=False, ports=ports)
    with there, Socket() as sock:
        sock.batch([link.change(1, up=True)])
        subprocess.run(["ip", "netns", "add", name], check=True)
        netavark(directory, "setup", name, data)

    def close() -> None:
        with there:
            netavark(directory, "teardown", name, data)
            subprocess.run(["ip", "netns", "del", name], check=True)

    stack.callback(close)
    server = NetNamespace(path=f"/run/netns/{name}")
    return Way(there, "127.0.0.1", 8080, server)


def wire(stack: contextlib.ExitStack) -> Way:
    """A namespace with a plain wire to another, by a bridge there: no rules."""
    there, handle = NetNamespace.create(), NetNamespace.create()
    stack.callback(there.close)
    stack.callback(handle.close)
    with there:
        index = bridge("br8", "10.95.0.1/24")
        with Socket() as sock:
            sock.batch([link.veth("b8", "eth0", handle.fd, master=index)])
    with handle, Socket() as inside:
        own = link.named(inside, "eth0").index
        inside.batch([address.add(own, ipaddress.ip_interface("10.95.0.2/24")), link.change(own, up=True)])
        inside.batch([address.route(None, index=own, via=ipaddress.ip_address("10.95.0.1"))])
    return Way(there, "10.95.0.2", 80, handle)


def wires(stack: contextlib.ExitStack, rules_here: str = "", rules_there: str = "") -> Way:
    """The way of a published port: a wire to a namespace that routes, a bridge there, and a wire."""
    machine, middle, handle = NetNamespace.create(), NetNamespace.create(), NetNamespace.create()
    for each in (machine, middle, handle):
        stack.callback(each.close)
    with machine, Socket() as here, middle, Socket() as there, handle, Socket() as inside:
        here.batch([link.change(1, up=True), link.veth("c8", "up0", middle.fd)])
        outer, up = link.named(here, "c8").index, link.named(there, "up0").index
        here.batch([address.add(outer, ipaddress.ip_interface("10.93.0.1/24"))])
        there.batch([address.add(up, ipaddress.ip_interface("10.93.0.2/24")), link.change(up, up=True)])
        to, via = ipaddress.ip_network("10.93.1.0/24"), ipaddress.ip_address("10.93.0.2")
        here.batch([address.route(to, index=outer, via=via), link.change(outer, ipv4={link.ROUTE_LOCALNET: 1})])
        there.batch([link.bridge("br0")])
        switch = link.named(there, "br0").index
        there.batch([address.add(switch, ipaddress.ip_interface("10.93.1.1/24"))])
        there.batch([link.forwarding(up), link.forwarding(switch), link.veth("p0", "eth0", handle.fd, master=switch)])
        own = link.named(inside, "eth0").index
        inside.batch([address.add(own, ipaddress.ip_interface("10.93.1.2/24")), link.change(own, up=True)])
        inside.batch([address.route(None, index=own, via=ipaddress.ip_address("10.93.1.1"))])
    for net, rules in ((machine, rules_here), (middle, rules_there)):
        if rules:
            with net:
                nft(rules)
    if "dnat" in rules_here:
        return Way(machine, "127.0.0.1", 8080, handle)
    return Way(machine, "10.93.1.2", 80, handle)


def throughput(floor: Floor, rounds: int) -> dict[str, list[float]]:
    """Gigabits a second."""
    found: dict[str, list[float]] = {"bare": [], "isolate": []}
    pairs = {}
    with NetNamespace.create() as machine, network.Network() as lan:
        index = bridge("br7", "10.94.0.1/24")
        bare = []
        for number in (2, 3):
            handle = NetNamespace.create()
            with Socket() as sock:
                sock.batch([link.veth(f"b{number}", "eth0", handle.fd, master=index)])
            with handle, Socket() as inside:
                own = link.named(inside, "eth0").index
                inside.batch([address.add(own, ipaddress.ip_interface(f"10.94.0.{number}/24"))])
                inside.batch([link.change(own, up=True)])
            bare.append((handle, f"10.94.0.{number}"))
        pairs["bare"] = bare
        pairs["isolate"] = [member(lan, name)[:2] for name in ("a", "b")]
        for _ in range(rounds):
            for name, ((source, _), (target, own_address)) in pairs.items():
                with target:
                    sink = floor.start("sink", "9")
                    line(sink.stdout)
                with source:
                    floor.start("send", own_address, "9", "0.5").wait()
                found[name].append(float(line(sink.stdout)) * 8 / 1e9)
                sink.wait()
        for each in pairs.values():
            for handle, _ in each:
                handle.close()
    machine.close()
    return found


SERVER = """
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
context.num_tickets = 0
server = socket.create_server(("127.0.0.1", 0), backlog=64)
print(server.getsockname()[1], flush=True)
def serve(sock):
    try:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(tls.recv(1))
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
CLIENT = """
import socket, ssl, sys, time
certificate, port, count, proxy = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), len(sys.argv) > 4
name = "server.example.org"
context = ssl.create_default_context(cafile=certificate)
for _ in range(count):
    begin = time.perf_counter()
    if proxy:
        sock = socket.create_connection(("127.0.0.1", 3128))
        sock.sendall(f"CONNECT {name}:{port} HTTP/1.1\\r\\nHost: {name}:{port}\\r\\n\\r\\n".encode())
        assert b" 200 " in sock.recv(4096)
    else:
        sock = socket.create_connection(("127.0.0.1", port))
    with context.wrap_socket(sock, server_hostname=name) as tls:
        tls.sendall(b"x")
        assert tls.recv(1) == b"x"
        print((time.perf_counter() - begin) * 1e3)
"""


def proxy(directory: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds until the first byte has come back."""
    certificate, key = f"{directory}/certificate", f"{directory}/key"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key]
    subject = ["-subj", "/CN=server.example.org", "-addext", "subjectAltName=DNS:server.example.org"]
    subprocess.run([*request, "-out", certificate, *subject], check=True, capture_output=True)
    found: dict[str, list[float]] = {"direct": [], "Domains": []}
    with NetNamespace.create() as machine:
        command = [sys.executable, "-c", SERVER, certificate, key]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        port = int(line(server.stdout))
        part = network.Domains(
            "server.example.org", port=port, private=["127.0.0.0/8"], resolve=lambda name, port: ["127.0.0.1"]
        )
        boxes = {"direct": Sandbox(PidNamespace()), "Domains": Sandbox(PidNamespace(), part)}
        for _ in range(rounds):
            for name, box in random.sample(list(boxes.items()), 2):
                more = ["proxy"] if name == "Domains" else []
                done = box.run([sys.executable, "-c", CLIENT, certificate, str(port), "20", *more], text=True)
                found[name] += [float(word) for word in str(done.stdout).split()[1:]]  # the first one of each is cold
        server.kill()
        server.wait()
    machine.close()
    return found


#: What each is to cost at most (of throughput: at least), as shares of another row.
GOALS = (
    ("attach, ms", "isolate", "floor", 1.3),
    ("attach, ms", "isolate", "same", 1.3),
    ("attach in a row, ms", "isolate", "floor", 1.3),
    ("attach in a row, ms", "isolate", "same", 1.3),
    ("attach among others, ms", "isolate", "floor", 1.3),
    ("attach among others, ms", "isolate", "same", 1.3),
    ("attach among others, ms", "isolate", "cni", 1 / 5),
    ("attach among others, ms", "isolate", "netavark", 1 / 15),
    ("attach, ms", "isolate", "cni", 1 / 5),
    ("attach, ms", "isolate", "netavark", 1 / 15),
    ("publish 32 ports, ms", "beside 1000", "beside 10", 2.0),
    ("connect, us", "published", "plain", 1.5),
    ("throughput, Gbit/s", "isolate", "bare", 0.95),
    ("connect with TLS, ms", "Domains", "direct", 1.5),
)


def quiet(title: str, values: list[float]) -> float:
    """What a machine with nothing else to do gives: the tenth part from the better end."""
    ordered = sorted(values, reverse="bit/s" in title)
    return ordered[len(ordered) // 10]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    native.call(number("unshare"), CLONE_NEWNS)  # `ip netns` and podman mount what they leave
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "isolate-bench", "/run"], check=True)
    with tempfile.TemporaryDirectory() as directory:
        floor = Floor(directory)
        figures = {
            **attach(floor, directory, options.rounds),
            "start, ms": start(directory, max(3, options.rounds // 8)),
            "publish 32 ports, ms": publish(max(5, options.rounds // 2)),
            "connect, us": connect(floor, directory, max(3, options.rounds // 4)),
            "throughput, Gbit/s": throughput(floor, max(3, options.rounds // 4)),
            "connect with TLS, ms": proxy(directory, max(3, options.rounds // 8)),
        }
    for title, row in figures.items():
        print(f"{title:24} {'median':>9} {'quiet':>9}")
        first = quiet(title, next(iter(row.values())))
        for name, values in row.items():
            best = quiet(title, values)
            print(f"  {name:22} {statistics.median(values):9.3f} {best:9.3f}  {best / first:6.2f}x")
    print("goals, by the quiet figures")
    for title, name, other, share in GOALS:
        row = figures[title]
        if name in row and other in row:
            ratio = quiet(title, row[name]) / quiet(title, row[other])
            held = ratio >= share if "bit/s" in title else ratio <= share
            print(f"  {title:24} {name} of {other}: {ratio:.3f} (goal {share:.3f}) {'held' if held else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    assert shutil.which("ip")


if __name__ == "__main__":
    main()
