"""``Domains`` and ``Connect``: a few hosts and nothing else, from a network that leads nowhere."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from isolate.engine.handing import Handing, bind_and_listen
from isolate.engine.ops import Buffer, Register, call
from isolate.engine.plan import Phase, Step
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.constants import Constant
from isolate.mounts import File
from isolate.namespaces import MountNamespace, NetNamespace
from isolate.network import address, resolv
from isolate.network.inside import LISTENING, check_own, netlink_socket
from isolate.network.netlink import ROUTE, Socket
from isolate.network.proxy.events import Asked, Log
from isolate.network.proxy.rules import Rules, name_rule
from isolate.network.proxy.stub import NET, Stub
from isolate.network.words import host_name
from isolate.seccomp import Seccomp, arg32, deny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from isolate.engine.handing import Closing
    from isolate.engine.ops import Op
    from isolate.engine.plan import Context, Part
    from isolate.network.address import Net
    from isolate.network.proxy.serve import Door, Server

__all__ = ["Asked", "Connect", "Domains"]

#: The address inside at which the proxy listens.
PORT: Final = 3128
_LOOPBACK: Final = "127.0.0.1"
_DNS: Final = 53
_MOST_PORTS: Final = 16


@keywords
@dataclass(frozen=True, init=False)
class Domains:
    """Reach these hosts, at these ports, and nothing else: there is no route out of the sandbox's network at all.

    >>> from isolate import Sandbox, network, presets
    >>> box = presets.untrusted() + network.Domains("example.org", "*.example.net")

    The network inside is loopback alone. A proxy of the host's listens at ``127.0.0.1:3128``. It lets through HTTP
    CONNECT, SOCKS5 with names, and plain HTTP, for the names and ports that are allowed. Programs find it by
    ``HTTP_PROXY`` and its kin, which are set unless a start gives an environment of its own (:meth:`environment`). A
    client that knows no proxy is served too: a stub resolver answers with addresses that lead to the proxy.

    The proxy resolves a name itself, once, and refuses an address that is not public: loopback, private, link-local
    (the metadata services of clouds), multicast, and IPv6 addresses that stand for one of those. Before anything is
    passed on a connection must begin with TLS for the very name that was asked for: no server name, another one, and
    Encrypted Client Hello are refused. Plain HTTP goes to port 80 alone, its ``Host`` must be the name, one request a
    connection. The contents of TLS are not looked at: if one server answers for two names, only that server can
    tell them apart.

    :param names: host names; ``*.example.org`` stands for every name below ``example.org``, but not for itself.
    :param port: the ports, 1 to 65535, at most 16 of them; 443 unless said otherwise.
    :param methods: of plain HTTP; all but CONNECT and TRACE unless said otherwise.
    :param tls: False lets other protocols than TLS through: then any host behind the name's address can be meant.
    :param ech: True lets Encrypted Client Hello through, which some browsers send to every server.
    :param private: networks that are not public and that names may lead to all the same: ``["10.0.0.0/8"]``.
    :param log: called with each :class:`Asked`, on the proxy's thread. ``Result.asked`` has the last 10,000 of them.
    :param resolve: ``resolve(name, port)`` gives a name's addresses; this host's own resolver unless said otherwise.

    Sockets that a file system shows are not of the network: a sandbox that sees the host's files can connect to a
    program that listens on one of them. Give it a :class:`~isolate.Root`, as the presets do.

    Brings a new network namespace, and a filter (:class:`~isolate.Seccomp`) that refuses AF_VSOCK, which leads out of a
    virtual machine past every network. Needs no privileges beyond those for it. Everything ends with the sandbox.

    :raises ValueError: a name that is an address, a top-level domain or no host name; a port out of range.
    """

    names: tuple[str, ...]
    ports: tuple[int, ...]
    methods: tuple[str, ...] = ()
    tls: bool = True
    ech: bool = False
    private: tuple[Net, ...] = ()
    log: Callable[[Asked], object] | None = field(default=None, compare=False)
    resolve: Callable[[str, int], Sequence[str]] | None = field(default=None, compare=False)

    required: ClassVar[bool] = True

    def __init__(
        self,
        *names: str,
        port: int | Iterable[int] = 443,
        methods: Iterable[str] = (),
        tls: bool = True,
        ech: bool = False,
        private: Iterable[str | Net] = (),
        log: Callable[[Asked], object] | None = None,
        resolve: Callable[[str, int], Sequence[str]] | None = None,
    ) -> None:
        if not names:
            raise ValueError("Domains: names must have at least one name; NetNamespace() alone reaches nothing")
        _function(log, "Domains: log")
        _function(resolve, "Domains: resolve")
        given = (port,) if isinstance(port, (int, str)) else tuple(port)
        if not 0 < len(given) <= _MOST_PORTS:
            raise ValueError(f"Domains: there must be from 1 to {_MOST_PORTS} ports, not {len(given)}")
        values: dict[str, Any] = {
            "names": tuple(dict.fromkeys(name_rule(name) for name in names)),
            "ports": tuple(sorted({_port(each, "Domains: port") for each in given})),
            "methods": _methods(methods),
            "tls": _flag(tls, "tls"),
            "ech": _flag(ech, "ech"),
            "private": tuple(_net(each) for each in private),
            "log": log,
            "resolve": resolve,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        words = [repr(name) for name in self.names]
        if self.ports != (443,):
            words.append(f"port={self.ports[0] if len(self.ports) == 1 else list(self.ports)!r}")
        if self.methods:
            words.append(f"methods={list(self.methods)!r}")
        words += [text for text, said in (("tls=False", not self.tls), ("ech=True", self.ech)) if said]
        if self.private:
            words.append(f"private={[str(net) for net in self.private]!r}")
        return f"Domains({', '.join(words)})"

    @staticmethod
    def environment() -> dict[str, str]:
        """The variables by which programs find the proxy, to be added to an environment of one's own."""
        http, socks, nothing = f"http://{_LOOPBACK}:{PORT}", f"socks5h://{_LOOPBACK}:{PORT}", "localhost,127.0.0.1,::1"
        found = {"HTTP_PROXY": http, "HTTPS_PROXY": http, "ALL_PROXY": socks, "NO_PROXY": nothing}
        return found | {name.lower(): value for name, value in found.items()}

    variables = environment

    def brings(self) -> Iterator[Part]:
        """A network namespace, a mount namespace where the stub resolver's place is told, no AF_VSOCK."""
        yield NetNamespace()
        yield MountNamespace()
        yield _NoOtherWay()

    def root_entries(self, context: Context) -> Iterator[File]:
        """The entries of the root that configure name resolution, if the sandbox has a root of its own."""
        yield File(resolv.PATH, resolv.content(_NAMESERVERS))

    def steps(self, context: Context) -> Iterator[Step]:
        """Listeners that init makes inside and hands to the caller, and a route that leads everything to them."""
        check_own(context, "Domains")
        direct = [port for port in self.ports if port not in (PORT, _DNS)]
        listeners = [(_LOOPBACK, PORT), *(("0.0.0.0", port) for port in direct)]
        handing = Handing(prepare=lambda: _Serving(self, direct), count=len(listeners) + 2, part="Domains")
        slot = handing.slot(context)
        registers = [Register(f"listener {host}:{port}") for host, port in listeners]
        dns, netlink = Register("stub resolver"), Register("netlink socket")
        ops: list[Op] = []
        for register, (host, port) in zip(registers, listeners, strict=True):
            ops += bind_and_listen(register, host, port, backlog=128)
        name = struct.pack("=H2s4s8x", 2, _DNS.to_bytes(2, "big"), ipaddress.IPv4Address(_LOOPBACK).packed)
        flags = Constant(0x80802, "SOCK_DGRAM|SOCK_CLOEXEC|SOCK_NONBLOCK")
        ops += [
            call("socket", Constant(2, "AF_INET"), flags, 0, out=dns),
            call("bind", dns, Buffer(name, "address"), len(name)),
            netlink_socket(netlink),
            *handing.hand(slot, [*registers, dns, netlink]),
        ]
        ports = ", ".join(map(str, self.ports))
        text = (
            f"listen inside for the caller's proxy, which reaches {', '.join(self.names)} at {ports} and nothing else"
        )
        yield Step(Phase.SYSTEM, text, tuple(ops), hints=LISTENING)
        yield Step(Phase.SYSTEM, f"wait until the proxy serves, and {NET} leads to it", tuple(handing.wait(slot)))
        yield from resolv.without_a_root(context, _NAMESERVERS)

    def rules(self) -> Rules:
        """The rules by which the proxy decides."""
        return Rules(self.names, self.ports, self.private, self.tls, self.ech, self.methods)


_NAMESERVERS: Final = (ipaddress.IPv4Address(_LOOPBACK),)


class _Served:
    """A server of the host's, for one start: it ends with the sandbox."""

    def __init__(self, log: Callable[[Asked], object] | None) -> None:
        self._server: Server | None = None
        self._log = Log(log)

    @property
    def told(self) -> tuple[Asked, ...]:
        """The events so far."""
        return self._log.events

    def close(self) -> None:
        """The sandbox has ended."""
        server, self._server = self._server, None
        if server is not None:
            server.close()


class _Serving(_Served):
    """One start's proxy."""

    def __init__(self, part: Domains, direct: list[int]) -> None:
        super().__init__(part.log)
        self._part, self._direct = part, direct

    def receive(self, fds: list[int], session: object) -> Closing | None:
        """Take the sockets, have everything routed to them, serve."""
        from isolate.network.proxy.serve import Door, Server, resolve  # loaded late: asyncio is large

        sockets = [socket.socket(fileno=fd) for fd in fds]
        try:
            *listeners, dns, netlink = sockets
            with netlink:
                Socket(ROUTE, made=netlink).ask(address.local(NET))
            part = self._part
            log = self._log
            rules = part.rules()
            kinds = [("proxy", PORT), *(("direct", port) for port in self._direct)]
            doors: list[Door] = [
                Door(listener, kind, port) for listener, (kind, port) in zip(listeners, kinds, strict=True)
            ]
            doors.append(Door(dns, "dns", _DNS))
            self._server = Server(doors, rules, log, Stub(rules, log), part.resolve or resolve)
        except BaseException:
            for each in sockets:
                each.close()
            raise
        return None


@keywords
@dataclass(frozen=True, init=False)
class Connect:
    """Reach one host at one port, and nothing else, by no protocol but its own.

    >>> from isolate import Sandbox, network
    >>> box = Sandbox(network.Connect("db.internal:5432"))

    The network inside is loopback alone, with a port that leads to ``target``. Each time that a program connects to
    this port, the host makes a connection of its own. It resolves the name then, and private networks are allowed.

    :param target: ``"name:port"`` or ``"[2001:db8::1]:port"``.
    :param listen: the port inside; that of the target unless said otherwise.
    :param log: called with each :class:`Asked`, on the relay's thread.

    A sandbox can have any number of them. Brings a new network namespace. Everything ends with the sandbox.

    :raises ValueError: no name or address, or a port out of range.
    """

    host: str
    port: int
    listen: int
    log: Callable[[Asked], object] | None = field(default=None, compare=False)

    required: ClassVar[bool] = True
    repeatable: ClassVar[bool] = True

    def __init__(self, target: str, *, listen: int | None = None, log: Callable[[Asked], object] | None = None) -> None:
        if not isinstance(target, str):
            raise TypeError(f"Connect: target must be a str such as 'db:5432', not {target!r}")
        _function(log, "Connect: log")
        host, colon, port = target.rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal():
            raise ValueError(f"Connect: target must be a str such as 'db:5432', not {target!r}")
        number = _port(int(port[:9]), "Connect: port")
        object.__setattr__(self, "host", _host(host))
        object.__setattr__(self, "port", number)
        object.__setattr__(self, "listen", number if listen is None else _port(listen, "Connect: listen"))
        object.__setattr__(self, "log", log)

    def __repr__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        listen = f", listen={self.listen}" if self.listen != self.port else ""
        return f"Connect({f'{host}:{self.port}'!r}{listen})"

    def brings(self) -> Iterator[Part]:
        """A network namespace, no AF_VSOCK."""
        yield NetNamespace()
        yield _NoOtherWay()

    def steps(self, context: Context) -> Iterator[Step]:
        """A listener that init makes inside and hands to the caller."""
        check_own(context, "Connect")
        handing = Handing(prepare=lambda: _Relaying(self), part="Connect")
        slot, fd = handing.slot(context), Register(f"listener {self.listen}")
        ops = (*bind_and_listen(fd, _LOOPBACK, self.listen, backlog=128), *handing.hand(slot, [fd]))
        text = f"listen at {_LOOPBACK}:{self.listen} inside, for a relay to {self.host}:{self.port}"
        yield Step(Phase.SYSTEM, text, ops, hints=LISTENING)
        yield Step(Phase.SYSTEM, "wait until the relay serves", tuple(handing.wait(slot)))


class _Relaying(_Served):
    """One start's relay."""

    def __init__(self, part: Connect) -> None:
        super().__init__(part.log)
        self._part = part

    def receive(self, fds: list[int], session: object) -> Closing | None:
        """Take the listener, and serve."""
        from isolate.network.proxy.serve import Door, Server

        (listener,) = (socket.socket(fileno=fd) for fd in fds)
        try:
            log = self._log
            rules = Rules((), ())
            target = (self._part.host, self._part.port)
            self._server = Server([Door(listener, "relay", self._part.listen, target)], rules, log, Stub(rules, log))
        except BaseException:
            listener.close()
            raise
        return None


# ---- values --------------------------------------------------------------------------------------------------------


class _NoOtherWay(Seccomp):
    """A filter that refuses AF_VSOCK: to a machine's host and its guests, and no network namespace holds it.

    A class of its own: it is brought whatever other policies a sandbox has, and stands beside them.
    """

    def __init__(self) -> None:
        refused = deny("socket", when=arg32(0) == Constant(40, "AF_VSOCK"), errno="EAFNOSUPPORT")
        every = ("i386", "x32", "arm")
        super().__init__(refused, otherwise="allow", unknown="allow", foreign="allow", compat=every)


def _function(value: object, what: str) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{what} must be a function, not {value!r}")


def _port(value: object, what: str) -> int:
    if not is_int(value):
        raise TypeError(f"{what} must be an int, not {value!r}")
    if not 0 < value < 65536:
        raise ValueError(f"{what} must be an int from 1 to 65535, not {value}")
    return value


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"Domains: {what} must be True or False, not {value!r}")
    return value


def _methods(values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError(f"Domains: methods must be a list of methods, not {values!r}")
    found = tuple(values)
    for each in found:
        if not isinstance(each, str) or not each.isascii() or not each.isalpha():
            raise ValueError(f"Domains: a method must be a word such as 'GET', not {each!r}")
    return tuple(each.upper() for each in found)


def _net(value: str | Net) -> Net:
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"Domains: private: {error}") from None


def _host(text: str) -> str:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return host_name(text, "Connect: the target's host")
