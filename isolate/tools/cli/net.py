"""``isolate net``: networks with a name; and the network options of ``isolate run``."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from isolate.engine.plan import Part

__all__ = ["command", "options", "part", "run_options"]


def options(commands: Any, common: dict[str, Any]) -> None:
    """The command's options."""
    net = commands.add_parser(
        "net",
        help="networks with a name: make one, list them, look at one",
        description="Networks that sandboxes of this user join by --net NAME.",
        usage="isolate net COMMAND",
        **common,
    )
    inner = net.add_subparsers(dest="net_command", metavar="COMMAND", required=True)
    listing = inner.add_parser("ls", help="the networks of this user that are there now", **common)
    listing.add_argument("--json", action="store_true", help="as JSON, a list")
    inspect = inner.add_parser("inspect", help="a network and its members, as JSON", **common)
    inspect.add_argument("--json", action="store_true", help="as it is without")
    inspect.add_argument("name", metavar="NAME")
    create = inner.add_parser(
        "create",
        help="make a network, until this command ends",
        description="Make a network that sandboxes join by `isolate run --net NAME`, until this command is ended.",
        **common,
    )
    create.add_argument("--json", action="store_true", help="print what there is to say of it as one line of JSON")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--subnet", metavar="NET", help="such as 10.88.0.0/24 (default: one that is free)")
    create.add_argument("--uplink", choices=("host", "user"), help="what members may reach beyond (default: nothing)")


def run_options(add: Any) -> None:
    """The options that ``isolate run`` takes."""
    add(
        "--net",
        nargs="?",
        const="host",
        metavar="none|host|user|NAME",
        help="its network: loopback alone (none, the default), the caller's (host, or no word), a way out by pasta or "
        "slirp4netns (user), or the network of that name",
    )
    add(
        "--publish",
        action="append",
        default=[],
        metavar="[ADDRESS:]PORT:PORT[/udp]",
        help="a port of the host's that leads to one inside, at loopback unless an address is named; ranges: "
        "8000-8009:9000-9009",
    )
    add("--name", metavar="NAME", help="what other members of the network find it by")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="a host that may be reached, and nothing else: example.org, '*.example.net', example.org:8443; any number",
    )


def allowed(words: list[str]) -> Part:
    """``example.org``, ``*.example.net:8443``."""
    from isolate.network import Domains

    names, ports = [], []
    for word in words:
        name, colon, port = word.rpartition(":")
        if colon and not (port.isascii() and port.isdecimal()):
            raise ValueError(f"--allow wants NAME or NAME:PORT, not {word!r}")
        names.append(name if colon else word)
        ports.append(int(port[:9]) if colon else 443)
    if len(set(ports)) > 1:
        raise ValueError("--allow: one port for all names; a program can give each port a sandbox of its own")
    return Domains(*names, port=ports[0])


def published(words: list[str]) -> tuple[Any, ...]:
    """``8080:80``, ``0.0.0.0:8080:80``, ``5353:53/udp``."""
    from isolate.network import Publish

    found = []
    for word in words:
        rest, slash, protocol = word.rpartition("/")
        if not slash:
            rest, protocol = word, "tcp"
        pieces = rest.rsplit(":", 2)
        if len(pieces) < 2:
            raise ValueError(f"--publish wants [ADDRESS:]PORT:PORT[/udp], not {word!r}")
        place = [piece.removeprefix("[").removesuffix("]") for piece in pieces[:-2]]
        found.append(Publish(pieces[-2], pieces[-1], protocol, *place))
    return tuple(found)


def part(given: argparse.Namespace) -> Part | None:
    """The part that the options ask for; None for what the preset has."""
    from isolate import network

    ports = published(given.publish)
    if given.allow:
        if given.net not in (None, "none") or ports or given.name:
            raise ValueError("--allow is a network of its own: it goes with no other --net, --publish or --name")
        return allowed(given.allow)
    if given.net == "host":
        if ports or given.name:
            raise ValueError("--publish and --name go with a network of its own, and --net host is the caller's")
        return None
    if given.net == "user":
        if given.name:
            raise ValueError("--name goes with a network of several: --net NAME")
        return network.Userspace(publish=ports)
    if given.net in (None, "none"):
        if given.name:
            raise ValueError("--name goes with a network of several: --net NAME")
        if not ports:
            return None
        given.network = network.Network()
        return network.Interface(given.network, publish=ports)
    return network.Interface(network.find(given.net), publish=ports, name=given.name)


def command(given: argparse.Namespace) -> int:
    """``isolate net …``."""
    from isolate import network
    from isolate.network.shared import names

    if given.net_command == "inspect":
        print(json.dumps(network.find(given.name).tell(), indent=2))
        return 0
    if given.net_command == "ls":
        told = [network.find(name).tell() for name in names()]
        if given.json:
            print(json.dumps(told, indent=2))
            return 0
        rows = [("NAME", "SUBNET", "UPLINK", "MEMBERS", "PID")]
        for each in told:
            rows.append(
                (each["name"], each["subnet"], each["uplink"] or "-", str(len(each["members"])), str(each["pid"]))
            )
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        for row in rows:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
        return 0
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # before the network's threads: they inherit it
    with network.Network(given.subnet, uplink=given.uplink, name=given.name) as lan:
        print(json.dumps(lan.tell()) if given.json else f"{given.name} {lan.subnet}", flush=True)
        signal.sigwait(ending)
    return 0
