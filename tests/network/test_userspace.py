"""A way out without privileges: pasta and slirp4netns, what they reach, what they do not, and when they end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from isolate import Capabilities, MountNamespace, PidNamespace, Sandbox, UserNamespace, attach, network
from isolate.errors import ConflictError, SetupError, UnsupportedError
from isolate.network import ruleset, way
from isolate.network.nft import Table
from tests.fence import Fence
from tests.network.hosts import Outside, connects, until
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.root
CLIENT = """
import socket, sys
for place in sys.argv[1:]:
    address, _, port = place.partition(":")
    try:
        patience = 20 if place == sys.argv[1] else 0.5  # the first one answers
        print(socket.create_connection((address, int(port)), patience).recv(9).decode())
    except OSError as error:
        print("no")
"""
SERVER = "import socket; s = socket.create_server(('', 80)); print('up', flush=True); s.accept()[0].sendall(b'inside')"


def serve(sock: socket.socket) -> None:
    """Greet everybody."""

    def body() -> None:
        try:
            while True:
                with sock.accept()[0] as connection:
                    connection.sendall(b"outside")
        except OSError:
            return

    threading.Thread(target=body, daemon=True).start()


def test_the_way_out(helper: str, outside: Outside) -> None:
    with outside.listen(80) as there, socket.create_server(("127.0.0.1", 80)) as here:
        there.settimeout(None)
        serve(there)
        serve(here)
        for parts in ([], [UserNamespace()]):
            box = Sandbox(PidNamespace(), MountNamespace(), network.Userspace(helper=helper), *parts)
            places = [f"{outside.address}:80", "127.0.0.1:80", f"{way.GATEWAY}:80"]
            result = box.run(["python3", "-c", CLIENT, *places], text=True)
            assert result.stdout.split() == ["outside", "no", "no"], result.stderr
            assert b"10.0.2.3" in box.run(["cat", "/etc/resolv.conf"]).stdout
        assert connects("127.0.0.1", 80)  # control
        here.shutdown(socket.SHUT_RDWR)
        there.shutdown(socket.SHUT_RDWR)


BY_THE_DEVICE = """
import socket, sys
kept = []
for place in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    sock, stream = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family)
    for each in (sock, stream):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tap0\\0")
    kept.append(stream)
    stream.setblocking(False)
    stream.connect_ex((place, 80))
    try:
        sock.sendto(place.encode(), (place, 80))
        print("sent")
    except OSError as error:
        print(error.errno)
print("end", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def told(box: Sandbox, *command: str) -> Iterator[list[str]]:
    """The words that a program prints before "end". It then waits, so that what it sent arrives before it is gone."""
    with box.spawn(["python3", "-c", *command], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        data = b""
        while not data.endswith(b"end\n"):
            more = process.stdout.read(1)
            assert more, data
            data += more
        yield data.decode().split()[:-1]


def test_loopback_by_the_device(helper: str, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is bound to a device sends by it what is for loopback, and needs no capability for that."""
    places = ["127.0.0.1", "127.1.2.3"] + ["::1"] * (helper == "pasta")
    families = [socket.AF_INET6 if ":" in place else socket.AF_INET for place in places]
    with contextlib.ExitStack() as stack:
        taking = [stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for family in families]
        listening = [stack.enter_context(socket.socket(family)) for family in families]
        for place, sock, stream in zip(places, taking, listening, strict=True):
            sock.bind((place, 80))
            stream.bind((place, 80))
            stream.listen()
        there = stack.enter_context(outside.listen(80, kind=socket.SOCK_DGRAM))
        box = Sandbox(PidNamespace(), network.Userspace(helper=helper))
        with told(box, BY_THE_DEVICE, *places, outside.address) as words:
            assert words == [str(errno.EPERM)] * len(places) + ["sent"]
            assert there.recv(99) == outside.address.encode()  # and what was sent before it would have arrived
            for each in (*taking, *listening):
                each.setblocking(False)
                with pytest.raises(BlockingIOError):
                    each.recv(99) if each in taking else each.accept()
        # Control: without the rules all of it arrives.
        monkeypatch.setattr(ruleset, "own_loopback", lambda: [Table("isolate", owner=False).create()])
        with told(box, BY_THE_DEVICE, *places) as words:
            assert words == ["sent"] * len(places)
            for place, sock, stream in zip(places, taking, listening, strict=True):
                sock.settimeout(30)
                assert sock.recv(99) == place.encode()
                stream.settimeout(30)
                stream.accept()[0].close()


BY_HAND = """
import socket, struct, sys
words = struct.unpack(">10H", head := struct.pack(">BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0,
                      socket.inet_aton("10.0.2.100"), socket.inet_aton("127.0.0.1")))
total = sum(words); total = (total & 0xFFFF) + (total >> 16)
packet = head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:] + struct.pack(">HHHH", 5000, 80, 9, 0) + b"x"
socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).sendto(packet, ("tap0", 0x0800, 0, 0, b"\\2\\0\\0\\0\\0\\1"))
print("end", flush=True)
sys.stdin.read()
"""


def test_packets_of_its_own_making(helper: str, outside: Outside) -> None:
    for cap in ("NET_RAW", "NET_ADMIN"):
        for caps in (Capabilities({cap}), Capabilities(bounding={cap})):
            with pytest.raises(ConflictError, match=rf"CAP_{cap} .*Network\(uplink='user'\).*raw_packets=True"):
                Sandbox(network.Userspace(helper=helper), caps)
    Sandbox(network.Userspace(helper=helper), Capabilities({"NET_BIND_SERVICE"}))
    with pytest.raises(TypeError, match="raw_packets"):
        network.Userspace(raw_packets="yes")  # type: ignore[arg-type]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:  # control: what it is refused for
        here.bind(("127.0.0.1", 80))
        here.settimeout(30)
        box = Sandbox(
            PidNamespace(), network.Userspace(helper=helper, raw_packets=True), Capabilities({"NET_RAW", "NET_ADMIN"})
        )
        with told(box, BY_HAND):
            assert here.recv(9) == b"x"


def test_a_further_program_with_packets_of_its_own(helper: str, outside: Outside) -> None:
    caps = Capabilities({"NET_RAW"})
    refused = r"CAP_NET_RAW .*raw_packets=True"
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 17)"
    for free in (False, True):
        box = Sandbox(PidNamespace(), network.Userspace(helper=helper, raw_packets=free))
        with box.open() as container, box.spawn(["sleep", "60"]) as process, attach(process) as there:
            starts = [lambda: container.with_parts(caps).run(["python3", "-c", code])]
            starts.append(lambda: there.sandbox(caps).run(["python3", "-c", code]))
            for start in starts:
                if free:  # control: with the capability it works
                    assert start().ok
                else:
                    with pytest.raises(ConflictError, match=refused):
                        start()
            assert not container.run(["python3", "-c", code]).ok
            with process.exec(["python3", "-c", code], stderr=subprocess.DEVNULL) as further:
                assert further.wait() == 1  # it has the first program's capabilities
            # Whoever does not join the network may have them.
            assert there.sandbox(caps, only=["pid"]).run(["true"]).ok


def test_published_ports(helper: str, outside: Outside) -> None:
    before = set(os.listdir("/tmp"))
    box = Sandbox(PidNamespace(), network.Userspace(helper=helper, publish={8080: 80}))
    with box.spawn(["python3", "-c", SERVER], stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == b"up\n"
        with socket.create_connection(("127.0.0.1", 8080), 20) as sock:
            assert sock.recv(9) == b"inside"
        with pytest.raises(SetupError, match="in use"):
            box.run(["true"])
    assert until(lambda: not connects("127.0.0.1", 8080))
    with box.spawn(["true"]) as first:
        assert first.wait() == 0
        assert box.run(["true"]).ok  # the port is free, although the first one is not closed
    left = set(os.listdir("/tmp")) - before
    assert not [name for name in left if name.startswith("isolate-") and "api" in name]


def test_it_ends_with_its_owner(helper: str, outside: Outside) -> None:
    def program(begin: object, end: object) -> None:
        Sandbox(PidNamespace(), network.Userspace(helper=helper)).run(["true"])
        with Sandbox(PidNamespace(), network.Userspace(helper=helper)).spawn(["sleep", "60"]):
            os.write(writing, b"1")
            signal.pause()

    reading, writing = os.pipe()
    fence = Fence(program, asks=False)
    assert os.read(reading, 1) == b"1"
    fence.kill()
    outcome = fence.drive()
    os.close(reading)
    os.close(writing)
    assert outcome.gone is not None, outcome.left


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ({"helper": "ssh"}, {"mtu": 1}, {"publish": {0: 1}}):
        with pytest.raises(ValueError):
            network.Userspace(**bad)  # type: ignore[arg-type]
    with network.Network() as lan, pytest.raises(ConflictError, match="uplink='user'"):
        Sandbox(network.Userspace(), network.Interface(lan))
    with monkeypatch.context() as patch:
        patch.setattr(way, "find", lambda *names: None)
        with pytest.raises(UnsupportedError, match=r"not installed\n.*install the package"):
            Sandbox(network.Userspace()).run(["true"])
    with monkeypatch.context() as patch:
        patch.setattr(way, "output", lambda *args: "slirp4netns version 0.3.9\n")
        patch.setattr(way, "_known", {})
        with pytest.raises(UnsupportedError, match="too old"):
            Sandbox(network.Userspace(helper="slirp4netns")).run(["true"])


def test_a_network_has_it_as_its_uplink(outside: Outside) -> None:
    with outside.listen(80) as there:
        there.settimeout(None)
        serve(there)
        with network.Network(uplink="user") as lan:
            rules = network.Egress([f"{outside.address}:80"])
            for egress in (None, rules):
                box = Sandbox(PidNamespace(), network.Interface(lan, egress=egress))
                places = [f"{outside.address}:80", f"{outside.address}:81"]
                result = box.run(["python3", "-c", CLIENT, *places], text=True)
                assert result.stdout.split() == ["outside", "no"], result.stderr
            server = Sandbox(PidNamespace(), network.Interface(lan, publish={8080: 80}))
            with server.spawn(["python3", "-c", SERVER], stdout=-1) as process:
                assert process.stdout is not None
                assert process.stdout.read(3) == b"up\n"
                with socket.create_connection(("127.0.0.1", 8080), 20) as sock:
                    assert sock.recv(9) == b"inside"
        there.shutdown(socket.SHUT_RDWR)


ORDINARY = f"""
from isolate import *
from isolate import network
box = Sandbox(PidNamespace(), UserNamespace(), network.Userspace(helper={{helper!r}}))
result = box.run(["python3", "-c", {CLIENT!r}, "192.0.2.9:80", "127.0.0.1:80"], text=True)
assert result.stdout.split() == ["outside", "no"], (result.stdout, result.stderr)
with network.Network(uplink="user") as lan:
    box = Sandbox(PidNamespace(), UserNamespace(), network.Interface(lan))
    result = box.run(["python3", "-c", {CLIENT!r}, "192.0.2.9:80", "127.0.0.1:80"], text=True)
    assert result.stdout.split() == ["outside", "no"], (result.stdout, result.stderr)
"""


def test_an_ordinary_user(helper: str, outside: Outside, tmp_path: Path) -> None:
    from isolate import Bind

    with outside.listen(80) as there, MountNamespace():
        there.settimeout(None)
        serve(there)
        # Here nobody but root may open it, which is not how it usually is.
        device = tmp_path / "tun"
        os.mknod(device, 0o020666, os.makedev(10, 200))
        os.chmod(device, 0o666)
        with Bind(str(device), "/dev/net/tun", read_only=False, dev=True):
            as_ordinary_user(ORDINARY.format(helper=helper))
        there.shutdown(socket.SHUT_RDWR)
