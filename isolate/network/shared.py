"""Networks with a name, which other programs of the same user find and join.

The owner listens on an abstract socket, and the kernel tells either side who the other is. A program that joins hands
over a netlink socket of its sandbox's network, and the owner attaches it: for as long as the connection lasts.
"""

from __future__ import annotations

import array
import contextlib
import errno
import ipaddress
import json
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from isolate.errors import SetupError
from isolate.kernel.serving import serving
from isolate.network.interface import Interface
from isolate.network.joinable import Joinable
from isolate.network.netlink import ROUTE, Socket
from isolate.network.words import Egress, Ingress, Publish, host_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.engine.plan import Launched
    from isolate.network.address import Address
    from isolate.network.members import Member, Wish

__all__ = ["Door", "Shared", "find", "names"]

_PREFIX = "\0isolate/network/"
_LARGEST = 1 << 16
_PATIENCE = 10.0
_MOST = 512  # connections at a time


def _address(name: str) -> str:
    """The abstract socket of this user's network of that name (unix(7)): it goes with its owner, and leaves no file."""
    return f"{_PREFIX}{os.geteuid()}/{host_name(name)}"


def names() -> list[str]:
    """The names of this user's networks that are there now, in this network namespace."""
    mine = "@" + _PREFIX[1:] + f"{os.geteuid()}/"
    found = set()
    with open("/proc/thread-self/net/unix", encoding="utf-8", errors="replace") as file:
        for line in file:
            path = line.rstrip("\n").split(" ")[-1]
            if path.startswith(mine):
                found.add(path.removeprefix(mine))
    return sorted(name for name in found if _alive(name))


def _alive(name: str) -> bool:
    try:
        _asked(name, {"ask": "tell"}).close()
    except (OSError, ValueError):
        return False
    return True


# ---- the owner's side ------------------------------------------------------------------------------------------------


class Door:
    """Lets other programs of the same user into a network. ``tell`` says what there is to say of it."""

    def __init__(self, network: Joinable, name: str, tell: Callable[[], dict[str, Any]]) -> None:
        self._network, self._tell = network, tell
        self._connections: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(_address(name))
            self._listener.listen(64)
        except OSError as error:
            self._listener.close()
            raise SetupError(
                error.errno or errno.EIO,
                f"name the network {name}",
                part="Network",
                syscall="bind",
                cause="another network has the name" if error.errno == errno.EADDRINUSE else None,
            ) from None
        self._thread = serving(self._run, "isolate-door")
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if len(self._connections) >= _MOST or not _same_user(connection):
                connection.close()
                continue
            self._connections.add(connection)
            serving(self._serve, "isolate-door", connection).start()

    def _serve(self, connection: socket.socket) -> None:
        place: Any = None
        try:
            connection.settimeout(_PATIENCE)
            while True:
                wanted, fds = _receive(connection)
                if wanted is None:
                    return
                try:
                    if wanted.get("ask") == "join" and place is None:
                        place = self._network.reserve(wish_of(self._network, wanted.get("options")))
                        member: Member = place.member
                        answer: dict[str, Any] = {"addresses": [str(a) for a in member.addresses]}
                    elif wanted.get("ask") == "attach" and place is not None and len(fds) == 1:
                        place.receive([fds.pop()], None)
                        connection.settimeout(None)  # until the other end lets go
                        answer = {}
                    else:
                        answer = self._tell()
                except Exception as error:
                    answer = {"error": {"text": str(error), "errno": getattr(error, "errno", None)}}
                finally:
                    for fd in fds:
                        os.close(fd)
                connection.send(json.dumps(answer).encode())
        except OSError:
            return
        finally:
            if place is not None:
                with contextlib.suppress(Exception):
                    place.close()
            self._connections.discard(connection)
            connection.close()

    def close(self) -> None:
        """Take in no further member, and disconnect all."""
        for each in (self._listener, *list(self._connections)):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def _same_user(connection: socket.socket) -> bool:
    _, uid, _ = struct.unpack("=iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())


def wish_of(network: Joinable, options: object) -> Wish:
    """A request of another program, checked like a request made here."""
    if not isinstance(options, dict):
        raise ValueError("the options of an interface must be given")
    known = dict(options)
    known["publish"] = [Publish(*each) for each in known.get("publish", ())]
    if known.get("egress") is not None:
        known["egress"] = Egress(known["egress"])
    if known.get("ingress") is not None:
        known["ingress"] = Ingress(known["ingress"])
    return Interface(network, **known).wish()


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A message and what came with it; None at the end."""
    data, ancillary, flags, _ = connection.recvmsg(_LARGEST, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    try:
        found = json.loads(data) if data else None
        if found is not None and (not isinstance(found, dict) or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)):
            raise ValueError
    except ValueError:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EBADMSG, "a message that is none") from None
    return found, list(fds)


# ---- the other side --------------------------------------------------------------------------------------------------


def _asked(name: str, wanted: dict[str, Any]) -> _Asked:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(_address(name))
        if not _same_user(connection):
            raise OSError(errno.EACCES, "another user listens there")
        return _Asked(connection, wanted)
    except BaseException:
        connection.close()
        raise


class _Asked:
    """A connection to the owner, and the last answer."""

    def __init__(self, connection: socket.socket, wanted: dict[str, Any]) -> None:
        self.connection = connection
        self.answer: dict[str, Any] = self.ask(wanted)

    def ask(self, wanted: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any]:
        """Ask, and take the answer.

        :raises SetupError: the owner refuses it.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.connection.sendmsg([json.dumps(wanted).encode()], rights, socket.MSG_NOSIGNAL)
        found, more = _receive(self.connection)
        for fd in more:
            os.close(fd)
        if found is None:
            raise SetupError(errno.EPIPE, "ask the network's owner", part="Interface", cause="it has ended")
        error = found.get("error")
        if error is not None:
            number = error.get("errno")
            raise SetupError(
                number if isinstance(number, int) else errno.EINVAL,
                "join the network",
                part="Interface",
                cause=f"its owner says: {str(error.get('text'))[:500]}",
            )
        return found

    def close(self) -> None:
        self.connection.close()


def find(name: str) -> Shared:
    """A network of this user's, made by another program: ``Network(name=…)``.

    :raises SetupError: there is none of that name.
    """
    try:
        asked = _asked(name, {"ask": "tell"})
    except OSError as error:
        there = names()
        # If no process listens at the abstract address, the connection is refused: there is no such network.
        number = errno.ENOENT if error.errno == errno.ECONNREFUSED else error.errno
        raise SetupError(
            number or errno.ENOENT,
            f"find the network {name}",
            part="Network",
            cause=f"there are {', '.join(there)}" if there else "this user has no network with a name",
            remedy=f"make it, and keep it running: python -m isolate net create {name}, or Network(name={name!r})",
        ) from None
    told = asked.answer
    asked.close()
    return Shared(name, told)


class Shared(Joinable):
    """A network that another program owns. It goes into :class:`Interface` like one's own."""

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        self.name = name
        self.subnet: ipaddress.IPv4Network | ipaddress.IPv6Network = ipaddress.ip_network(told["subnet"])
        self.subnet6: ipaddress.IPv4Network | ipaddress.IPv6Network | None = (
            ipaddress.ip_network(told["subnet6"]) if told.get("subnet6") else None
        )
        self.mtu: int = int(told["mtu"])
        self._nameservers = [ipaddress.ip_address(each) for each in told["nameservers"]]

    def __repr__(self) -> str:
        return f"<Shared {self.name} {self.subnet}>"

    @property
    def nameservers(self) -> list[Address]:
        """The resolvers of its members."""
        return list(self._nameservers)

    @property
    def members(self) -> dict[str, list[Address]]:
        """The addresses of each member, by its name, or its number as ``"#3"``: the owner is asked."""
        return {
            member["name"] or f"#{member['number']}": [ipaddress.ip_address(each) for each in member["addresses"]]
            for member in self.tell()["members"]
        }

    def tell(self) -> dict[str, Any]:
        """The owner's description of it now: members, their addresses and counters."""
        asked = _asked(self.name, {"ask": "tell"})
        asked.close()
        return asked.answer

    def reserve(self, wish: Wish) -> _Lease:
        """A place in it, until it is closed or this program ends."""
        return _Lease(_asked(self.name, {"ask": "join", "options": _options(wish)}))


class _Lease:
    """A place in another program's network."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked

    def receive(self, fds: list[int], session: Launched) -> None:
        """Hand the netlink socket on."""
        (fd,) = fds
        with socket.socket(fileno=fd) as made:
            Socket(ROUTE, made=made)
            self._asked.ask({"ask": "attach"}, [fd])

    def ended(self) -> None:
        """Leave."""
        self.close()

    def close(self) -> None:
        """Leave."""
        self._asked.close()


def _options(wish: Wish) -> dict[str, Any]:
    """A wish as the arguments of :class:`Interface`, in what JSON has."""
    return {
        "name": wish.name,
        "aliases": list(wish.aliases),
        "device": wish.device,
        "mac": wish.mac,
        "mtu": wish.mtu,
        "address": str(wish.address) if wish.address else None,
        "rate": wish.rate,
        "burst": wish.burst,
        "address6": str(wish.address6) if wish.address6 else None,
        "publish": [[p.host, p.port, p.protocol, p.address] for p in wish.publish],
        "egress": list(wish.egress.to) if wish.egress is not None else None,
        "ingress": list(wish.ingress.source) if wish.ingress is not None else None,
        "routes": {str(net): str(via) if via else None for net, via in wish.routes},
    }
