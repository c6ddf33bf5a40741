"""A way out of one network by pasta or slirp4netns, which speak for it with sockets of their own."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import re
import socket
import tempfile
import time
from typing import TYPE_CHECKING

from isolate.errors import SetupError, UnsupportedError
from isolate.network import address, link, nft, ruleset
from isolate.network.helper import Helper, find, output
from isolate.network.hostlink import reserve
from isolate.network.keeper import SIOCGSKNS
from isolate.network.names import Names, nameservers
from isolate.network.netlink import NETFILTER, ROUTE, Socket

if TYPE_CHECKING:
    from isolate.engine.plan import Launched
    from isolate.network.words import Publish

__all__ = ["HELPERS", "NAMESERVER", "Way", "installed"]

#: The network that the program makes inside: the sandbox, the way out, the resolver.
ADDRESS, GATEWAY, NAMESERVER, PREFIX = "10.0.2.100", "10.0.2.2", "10.0.2.3", 24
ADDRESS6, GATEWAY6 = "fd00:0:2::100", "fd00:0:2::2"
_NS_GET_USERNS = 0xB701
_PATIENCE = 10.0
_SHORTER = 2.0  # for IPv6 that nobody insists on
HELPERS = ("pasta", "slirp4netns")
_OLDEST_SLIRP = (0, 4, 0)  # --disable-host-loopback, --userns-path
_known: dict[tuple[str, float], None] = {}


class Way:
    """A way out of one network, while the helper runs."""

    def __init__(
        self, publish: tuple[Publish, ...], helper: str | None, mtu: int, device: str, ipv6: bool | None = None
    ) -> None:
        """``ipv6`` as in :class:`~isolate.network.Userspace`. The host's network is this thread's."""
        self.publish: tuple[Publish, ...] = publish
        self.mtu: int = mtu
        self.device: str = device
        self.path: str = installed(helper)
        self.ipv6: bool = ipv6 is not False and self._has_ipv6(needed=bool(ipv6))
        self._needs_ipv6 = bool(ipv6)
        self.helper: Helper | None = None
        self._names: Names | None = None
        self._listening: list[socket.socket] = []
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            there = os.path.exists("/dev/net/tun")
            raise SetupError(
                errno.EACCES if there else errno.ENOENT,
                "make a way out in user space",
                part="Userspace",
                path="/dev/net/tun",
                cause="this user may not open it" if there else "the kernel has no TUN devices, or /dev shows none",
                remedy="as root: chmod 0666 /dev/net/tun" if there else "as root: modprobe tun",
            )
        for each in publish:
            for port, _ in each.pairs:
                reserve(each, port).close()  # in use: told here, with a better reason than the helper's

    def _has_ipv6(self, *, needed: bool) -> bool:
        pasta = os.path.basename(self.path) == "pasta"
        if pasta:
            with Socket(part="Userspace") as here:
                out = {route.index for route in address.routes(here) if route.to is None and route.version == 6}
                own = [each for each in address.addresses(here) if each.index in out and each.interface.version == 6]
                if any(not each.interface.ip.is_link_local for each in own):
                    return True
        if not needed:
            return False
        raise UnsupportedError(
            errno.ENETUNREACH if pasta else errno.EAFNOSUPPORT,
            "make a way out by IPv6",
            part="Userspace",
            cause="the host has no default route of IPv6, or no address there"
            if pasta
            else "it is made for IPv4 alone with slirp4netns",
            remedy="leave out ipv6=True: IPv4 alone" if pasta else "install the package passt, and say helper='pasta'",
        )

    def receive(self, fds: list[int], session: Launched) -> None:
        """Attach to the network that the netlink sockets are of, after it was closed to addresses of loopback.

        Names are asked for by the other sockets. The helpers answer them too, but ask one resolver alone, one that has
        an IPv4 address, and by UDP.
        """
        route, filters, *listening = (socket.socket(fileno=fd) for fd in fds)
        self._listening = listening
        with route, filters:
            rules = Socket(NETFILTER, made=filters, part="Userspace")
            rules.transaction(nft.SUBSYSTEM, ruleset.own_loopback())
            ours = Socket(ROUTE, made=route, part="Userspace")
            ours.ask(address.local(ipaddress.IPv4Network(NAMESERVER)))
            self._names = Names(listening, _nobody, _nobody, lambda peer: True, nameservers())
            self.attach(ours)

    def attach(self, inside: Socket) -> None:
        """Start the helper, and wait until the device inside is up and has its address."""
        network = fcntl.ioctl(inside.fileno(), SIOCGSKNS)
        try:
            owner = fcntl.ioctl(network, _NS_GET_USERNS)
            try:
                self._attach(inside, network, owner)
            finally:
                os.close(owner)
        finally:
            os.close(network)

    def _attach(self, inside: Socket, network: int, owner: int) -> None:
        found, own = os.fstat(owner), os.stat("/proc/thread-self/ns/user")
        same = (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)
        directory = tempfile.mkdtemp(prefix="isolate-") if self.publish and "slirp" in self.path else None
        try:
            args = self._slirp(same, directory) if "slirp" in self.path else self._pasta(same)
            self.helper = Helper([self.path, *args], [network, owner])
            self._await(inside)
            if directory is not None:
                self._forward(f"{directory}/api")
        finally:
            if directory is not None:
                for name in os.listdir(directory):
                    os.unlink(f"{directory}/{name}")
                os.rmdir(directory)

    def _pasta(self, same: bool) -> list[str]:
        args = [
            "--foreground", "--config-net", "--no-map-gw", "--tcp-ns", "none", "--udp-ns", "none",
            "--ns-ifname", self.device, "--address", ADDRESS, "--netmask", str(PREFIX), "--gateway", GATEWAY,
            "--mtu", str(self.mtu), "--netns", "/proc/self/fd/10",
        ]  # fmt: skip  # options beside their values
        args += ["--address", ADDRESS6, "--gateway", GATEWAY6] if self.ipv6 else ["--ipv4-only"]
        args += ["--netns-only"] if same else ["--userns", "/proc/self/fd/11"]
        if os.geteuid() == 0:
            args += ["--runas", "0:0"]  # it would become nobody, who may not enter the network
        for protocol, option in (("tcp", "--tcp-ports"), ("udp", "--udp-ports")):
            wanted = [p for p in self.publish if p.protocol == protocol]
            for each in wanted:
                args += [option, f"{each.address}/{each.host}:{each.port}"]
            if not wanted:
                args += [option, "none"]
        return args

    def _slirp(self, same: bool, directory: str | None) -> list[str]:
        args = ["--configure", "--disable-host-loopback", f"--mtu={self.mtu}", "--netns-type=path"]
        if not same:
            args.append("--userns-path=/proc/self/fd/11")
        if directory is not None:
            args.append(f"--api-socket={directory}/api")
        return [*args, "/proc/self/fd/10", self.device]

    def _await(self, inside: Socket) -> None:
        assert self.helper is not None
        deadline = time.monotonic() + _PATIENCE
        while True:
            up = [each for each in link.links(inside) if each.name == self.device and each.up]
            given = {str(each.interface.ip) for each in address.addresses(inside) if up and each.index == up[0].index}
            ways = {(route.index, route.version) for route in address.routes(inside) if route.to is None}
            ready = [v for v, own in ((4, ADDRESS), (6, ADDRESS6)) if up and own in given and (up[0].index, v) in ways]
            if ready == ([4, 6] if self.ipv6 else [4]):
                return
            if ready and not self._needs_ipv6 and time.monotonic() > deadline - _PATIENCE + _SHORTER:
                self.ipv6 = False  # the helper knows why not
                return
            if not self.helper.running or time.monotonic() > deadline:
                raise self._failed()
            time.sleep(0.001)

    def _failed(self) -> SetupError:
        assert self.helper is not None
        self.helper.wait(0.2)
        said = [s for line in self.helper.said().splitlines() if (s := line.strip()) and "to syslog" not in s]
        name = os.path.basename(self.path)
        return SetupError(
            errno.EIO,
            f"have {name} attach to the network",
            part="Userspace",
            path=self.path,
            cause=f"it ended, and said: {said[-1][:200]}" if said else "it said nothing, and the network is not there",
            remedy="slirp4netns may do where pasta does not: helper='slirp4netns'" if name == "pasta" else None,
        )

    def _forward(self, path: str) -> None:
        """Tell slirp4netns of published ports."""
        for each in self.publish:
            for outside, inside in each.pairs:
                wanted = {
                    "proto": each.protocol,
                    "host_addr": each.address,
                    "host_port": outside,
                    "guest_addr": ADDRESS,
                    "guest_port": inside,
                }
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api:
                    api.settimeout(_PATIENCE)
                    _connect(api, path)
                    api.sendall(
                        json.dumps({"execute": "add_hostfwd", "arguments": wanted}).encode(), socket.MSG_NOSIGNAL
                    )
                    api.shutdown(socket.SHUT_WR)
                    answer = json.loads(api.recv(4096) or b"{}")
                if "return" not in answer:
                    said = str(answer.get("error", {}).get("desc", "no answer"))
                    raise SetupError(errno.EADDRINUSE, f"publish {each}", part="Userspace", cause=said)

    def ended(self) -> None:
        """Free its ports on the host, because no process is left inside."""
        self.close()

    def close(self) -> None:
        """End the helper; the way out with it."""
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.close()
        names, self._names = self._names, None
        if names is not None:
            names.close()
        while self._listening:
            self._listening.pop().close()


def _nobody(asked: object) -> None:
    """No member of a network has this name, or this address."""


def _connect(sock: socket.socket, path: str) -> None:
    """Connect as soon as somebody listens there, which is a little after the network is there."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            sock.connect(path)
            return
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)


def installed(wanted: str | None) -> str:
    """The path of the helper.

    :raises UnsupportedError: there is none, or it is too old.
    """
    path = find(wanted) if wanted is not None else find(*HELPERS)
    if path is None:
        name = wanted or "pasta or slirp4netns"
        raise UnsupportedError(
            errno.ENOENT,
            "make a way out in user space",
            part="Userspace",
            cause=f"{name} is not installed",
            remedy=f"install the package {'slirp4netns' if wanted == 'slirp4netns' else 'passt'}",
        )
    key = (path, os.stat(path).st_mtime)
    if key not in _known:
        _check_version(path)
        _known[key] = None
    return path


def _check_version(path: str) -> None:
    if os.path.basename(path) == "pasta":
        if "--no-map-gw" in (text := output(path, "--help")) and "--config-net" in text:
            return
        found, needed = "one without --no-map-gw", "one that can keep the host's loopback out of reach"
    else:
        match = re.search(r"version (\d+)\.(\d+)\.(\d+)", output(path, "--version"))
        if match is not None and tuple(map(int, match.groups())) >= _OLDEST_SLIRP:
            return
        found, needed = match[0] if match else "one that tells no version", "0.4.0 or later"
    raise UnsupportedError(
        errno.EOPNOTSUPP,
        "make a way out in user space",
        part="Userspace",
        path=path,
        cause=f"{os.path.basename(path)} is too old: it is {found}",
        remedy=f"install {needed}",
    )
