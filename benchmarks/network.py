"""What a network costs, beside a C program that makes the same calls, and beside other tools, in one run.

    python benchmarks/network.py [--rounds 40] [--json FILE]

Run as root; everything happens in network namespaces of the benchmark's own. Rows take turns.

    attach      a new network namespace, a veth pair with a port of a bridge, an address, a route, all up
                floor: two sends from C; isolate: with IPv6, a name, and the switch's rules; same: the very requests of
                isolate, put together before and sent from C; `ip -batch`; CNI's bridge with host-local; netavark, which
                is what podman has
    publish     32 ports of one member, beside 10 members with one each and beside 1,000
    connect     to a published port, with 1,000 others published, beside the same wires routed on a machine without a
                rule, and beside a single wire
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
from typing import IO, TYPE_CHECKING, Any

from isolate import NetNamespace, PidNamespace, Sandbox, network
from isolate.engine import native
from isolate.kernel.constants import CLONE_NEWNET
from isolate.kernel.syscalls import number
from isolate.network import address, link
from isolate.network.hostlink import HostLink, Published
from isolate.network.members import Wish
from isolate.network.netlink import Failure, Socket
from isolate.thread.disposable import on_a_thread

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
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

    def exchange(self, data: bytes, count: int) -> list[Failure]:
        self.sent.append(data)
        return []


class Attach:
    """One row each: something that attaches a new namespace, and removes it."""

    def __init__(self, floor: Floor, directory: str) -> None:
        self.directory = directory
        self.machine = NetNamespace.create()
        self.number = 0
        self.lan = network.Network("10.98.0.0/16")
        self.twin = network.Network("10.92.0.0/16")
        switch = self.twin._switch
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

        def body() -> tuple[float, network.Connection]:
            begin = time.perf_counter()
            native.call(number("unshare"), CLONE_NEWNET)  # the launcher's part
            with Socket() as inside:
                place = self.lan.reserve(wish)
                self.lan._attach(place.member, inside)
            return (time.perf_counter() - begin) * 1e3, network.Connection(place)

        spent, connection = on_a_thread(body)
        connection.close()
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

    def by_netavark(self) -> float:
        self.number += 1
        name = f"isolate-bench-{os.getpid()}"
        own = f"10.96.0.{2 + self.number % 200}"
        net = {
            "name": "lan",
            "id": "0" * 64,
            "driver": "bridge",
            "network_interface": "nav9",
            "dns_enabled": False,
            "internal": True,
            "ipv6_enabled": False,
            "subnets": [{"gateway": "10.96.0.1", "subnet": "10.96.0.0/24"}],
        }
        data = json.dumps(
            {
                "container_id": f"{self.number:064x}",
                "container_name": "c",
                "networks": {"lan": {"interface_name": "eth0", "static_ips": [own]}},
                "network_info": {"lan": net},
            }
        )

        def run(command: str) -> None:
            config = ["--config", self.directory, "--rootless", "false"]
            subprocess.run(
                [str(NETAVARK), *config, command, f"/run/netns/{name}"],
                input=data,
                text=True,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

        def add() -> None:
            self._netns(name)
            run("setup")

        try:
            with self.machine:
                spent = timed(add)
                run("teardown")
        finally:
            subprocess.run(["ip", "netns", "del", name], check=False)
        return spent

    def close(self) -> None:
        for run in (self.floor, self.replaying):
            assert run.stdin is not None
            run.stdin.close()
            run.wait()
        self.lan.close()
        self.twin.close()
        self.machine.close()


def attach(floor: Floor, directory: str, rounds: int) -> dict[str, list[float]]:
    rows = Attach(floor, directory)
    wanted: dict[str, Callable[[], float]] = {
        "floor": rows.by_floor,
        "same": rows.by_same,
        "isolate": rows.by_isolate,
        "ip": rows.by_ip,
    }
    if CNI is not None:
        wanted["cni"] = rows.by_cni
    if NETAVARK is not None:
        wanted["netavark"] = rows.by_netavark
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(rounds):
        # In another order each time, and apart: the kernel takes namespaces away behind their end, under the same lock.
        for name, function in random.sample(list(wanted.items()), len(wanted)):
            try:
                found[name].append(function())
            except subprocess.CalledProcessError as error:
                print(f"{name}: {error} {error.stderr}", file=sys.stderr)
                del wanted[name]
            time.sleep(0.15)
    rows.close()
    return {name: times for name, times in found.items() if times}


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


def connect(floor: Floor, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"plain": [], "published": [], "one wire": []}
    with NetNamespace.create() as machine, network.Network() as lan, contextlib.ExitStack() as stack:
        handle, own, _ = member(lan, "web", publish={8080: 80})
        host: HostLink = lan._host_link()
        for number in range(1000):
            one = Published(host, network.Interface(lan, publish={20000 + number: 80}).publish)
            one.lead([lan.gateway + 9])
            stack.callback(one.close)
        other = NetNamespace.create()  # a machine without rules, whose kernel tracks no connection
        stack.callback(other.close)
        with other:
            bare, bare_own, close = wire()
            stack.callback(close)
            routed, routed_own, close = wires()
            stack.callback(close)
        servers = []
        for space in (handle, bare, routed):
            with space:
                servers.append(floor.start("serve", "80"))
                line(servers[-1].stdout)
        for _ in range(rounds):
            places = [
                ("plain", other, routed_own, 80),
                ("published", machine, "127.0.0.1", 8080),
                ("one wire", other, bare_own, 80),
            ]
            for name, there, place, port in random.sample(places, 3):
                with there:
                    run = floor.start("connects", place, str(port), "300")
                found[name].append(float(line(run.stdout)))
                run.wait()
        for server in servers:
            server.kill()
            server.wait()
        handle.close()
    machine.close()
    assert own
    return {name: times for name, times in found.items() if times}


def wire() -> tuple[NetNamespace, str, Callable[[], None]]:
    """A namespace with a plain wire to this one, by a bridge here: no rules."""
    handle = NetNamespace.create()
    index = bridge("br8", "10.95.0.1/24")
    with Socket() as sock:
        sock.batch([link.veth("b8", "eth0", handle.fd, master=index)])
    with handle, Socket() as inside:
        own = link.named(inside, "eth0").index
        inside.batch([address.add(own, ipaddress.ip_interface("10.95.0.2/24")), link.change(own, up=True)])
        inside.batch([address.route(None, index=own, via=ipaddress.ip_address("10.95.0.1"))])
    return handle, "10.95.0.2", handle.close


def wires() -> tuple[NetNamespace, str, Callable[[], None]]:
    """The way of a published port without any rule: a wire to a namespace that routes, a bridge there, and a wire."""
    middle, handle = NetNamespace.create(), NetNamespace.create()
    with Socket() as here, middle, Socket() as there, handle, Socket() as inside:
        here.batch([link.veth("c8", "up0", middle.fd)])
        outer, up = link.named(here, "c8").index, link.named(there, "up0").index
        here.batch([address.add(outer, ipaddress.ip_interface("10.93.0.1/24"))])
        there.batch([address.add(up, ipaddress.ip_interface("10.93.0.2/24")), link.change(up, up=True)])
        to, via = ipaddress.ip_network("10.93.1.0/24"), ipaddress.ip_address("10.93.0.2")
        here.batch([address.route(to, index=outer, via=via)])
        there.batch([link.bridge("br0")])
        switch = link.named(there, "br0").index
        there.batch([address.add(switch, ipaddress.ip_interface("10.93.1.1/24"))])
        there.batch([link.forwarding(up), link.forwarding(switch), link.veth("p0", "eth0", handle.fd, master=switch)])
        own = link.named(inside, "eth0").index
        inside.batch([address.add(own, ipaddress.ip_interface("10.93.1.2/24")), link.change(own, up=True)])
        inside.batch([address.route(None, index=own, via=ipaddress.ip_address("10.93.1.1"))])

    def close() -> None:
        handle.close()
        middle.close()

    return handle, "10.93.1.2", close


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
    with tempfile.TemporaryDirectory() as directory:
        floor = Floor(directory)
        figures = {
            "attach, ms": attach(floor, directory, options.rounds),
            "publish 32 ports, ms": publish(max(5, options.rounds // 2)),
            "connect, us": connect(floor, max(3, options.rounds // 4)),
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
