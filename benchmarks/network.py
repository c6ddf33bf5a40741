"""What a network costs, beside a C program that makes the same calls, and beside other tools, in one run.

    python benchmarks/network.py [--rounds 40] [--json FILE]

Run as root; everything happens in network namespaces of the benchmark's own. Rows take turns.

    attach      a new network namespace, a veth pair with a port of a bridge, an address, a route, all up
                floor: two sends from C; isolate: the same with IPv6, a name, and the switch's rules; `ip -batch`; CNI's
                bridge with host-local; netavark
    publish     32 ports of one member, beside 10 members with one each and beside 1,000
    connect     to a published port, with 1,000 others published, beside a port that is not translated
    throughput  of one TCP connection, member to member, beside a bare veth pair and bridge
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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from isolate import NetNamespace, network
from isolate.engine import native
from isolate.kernel.constants import CLONE_NEWNET
from isolate.kernel.syscalls import number
from isolate.network import address, link
from isolate.network.hostlink import HostLink, Published
from isolate.network.members import Wish
from isolate.network.netlink import Socket
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


class Attach:
    """One row each: something that attaches a new namespace, and removes it."""

    def __init__(self, floor: Floor, directory: str) -> None:
        self.directory = directory
        self.machine = NetNamespace.create()
        self.number = 0
        self.lan = network.Network("10.98.0.0/16")
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
        wish = Wish(name=f"m{self.number}")

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
        assert self.floor.stdin is not None
        self.floor.stdin.close()
        self.floor.wait()
        self.lan.close()
        self.machine.close()


def attach(floor: Floor, directory: str, rounds: int) -> dict[str, float]:
    rows = Attach(floor, directory)
    wanted: dict[str, Callable[[], float]] = {"floor": rows.by_floor, "isolate": rows.by_isolate, "ip": rows.by_ip}
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
    return {name: statistics.median(times) for name, times in found.items() if times}


def publish(rounds: int) -> dict[str, float]:
    found: dict[str, float] = {}
    with NetNamespace.create() as machine, network.Network() as lan:
        host: HostLink = lan._host_link()
        others: list[Published] = []
        for members in (10, 1000):
            while len(others) < members:
                one = Published(host, network.Interface(lan, publish={20000 + len(others): 80}).publish)
                one.lead(lan.gateway + 1)
                others.append(one)
            ports = network.Interface(lan, publish={"8000-8031": "8000-8031"}).publish
            spent = []
            for _ in range(rounds):
                begin = time.perf_counter()
                published = Published(host, ports)
                published.lead(lan.gateway + 2)
                spent.append((time.perf_counter() - begin) * 1e3)
                published.close()
            found[f"beside {members}"] = statistics.median(spent)
        for one in others:
            one.close()
    machine.close()
    return found


def member(lan: network.Network, name: str, **options: Any) -> tuple[NetNamespace, str, network.Connection]:
    handle = NetNamespace.create()
    connection = network.connect(lan, handle, name=name, **options)
    return handle, str(connection.addresses[0]), connection


def connect(floor: Floor, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {"plain": [], "published": [], "member": []}
    with NetNamespace.create() as machine, network.Network() as lan, contextlib.ExitStack() as stack:
        handle, own, _ = member(lan, "web", publish={8080: 80})
        host: HostLink = lan._host_link()
        for number in range(1000):
            one = Published(host, network.Interface(lan, publish={20000 + number: 80}).publish)
            one.lead(lan.gateway + 9)
            stack.callback(one.close)
        bare, bare_own, close = wire()
        stack.callback(close)
        servers = []
        for space in (handle, bare):
            with space:
                servers.append(floor.start("serve", "80"))
                line(servers[-1].stdout)
        for _ in range(rounds):
            for name, place, port in (("plain", bare_own, 80), ("published", "127.0.0.1", 8080)):
                run = floor.start("connects", place, str(port), "300")
                found[name].append(float(line(run.stdout)))
                run.wait()
        for server in servers:
            server.kill()
            server.wait()
        handle.close()
    machine.close()
    assert own
    return {name: statistics.median(times) for name, times in found.items() if times}


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


def throughput(floor: Floor, rounds: int) -> dict[str, float]:
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
    return {name: statistics.median(rates) for name, rates in found.items()}


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
        }
    for title, row in figures.items():
        print(title)
        first = next(iter(row.values()))
        for name, value in row.items():
            print(f"  {name:12} {value:9.3f}  {value / first:6.2f}x")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    assert shutil.which("ip")


if __name__ == "__main__":
    main()
