"""The fixture ``lan``: two or more hosts on one network of the test's own, with captures of what failed."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate.tools.pytest_refusal import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.namespaces import NetNamespace
    from isolate.network import Counters
    from isolate.network.impair import Impaired
    from isolate.sandbox.box import Sandbox
    from isolate.sandbox.process import Process
    from isolate.sandbox.result import Result

__all__ = ["Host", "Lan", "lan", "pytest_runtest_makereport"]

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Whether the test has failed so far, for those who end things after it."""
    outcome: Any = yield
    if outcome.get_result().failed:
        item.stash[_failed] = True


class Host:
    """A host on the test's network: ``with host.net:`` has the calling thread there; programs run in a sandbox."""

    def __init__(self, name: str, process: Process, net: NetNamespace, addresses: list[str]) -> None:
        self.name = name
        #: The part that joins its network.
        self.net = net
        #: Its IPv4 address, and its IPv6 address.
        self.address: str = addresses[0]
        self.address6: str | None = addresses[1] if len(addresses) > 1 else None
        self._process = process

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address}>"

    def _box(self) -> Sandbox:
        from isolate.sandbox.attach import attach

        with attach(self._process) as there:
            return there.sandbox(only=["user", "net", "mount"])

    def run(self, args: Any, **options: Any) -> Result[Any]:
        """Run a program there to its end: :meth:`isolate.Sandbox.run`. Names of other hosts work."""
        return self._box().run(args, **options)

    def spawn(self, args: Any, **options: Any) -> Process:
        """Start a program there: :meth:`isolate.Sandbox.spawn`."""
        return self._box().spawn(args, **options)


class Lan:
    """A network of the test's own; what the fixture gives."""

    def __init__(self, network: Any, stack: contextlib.ExitStack, captures: Path | None) -> None:
        #: The network itself, an :class:`isolate.network.Network`.
        self.network: Any = network
        self._stack = stack
        self._captures = captures

    def host(self, name: str, **options: Any) -> Host:
        """A further host; ``options`` are those of :class:`isolate.network.Interface`: rate, egress, publish, …"""
        from isolate import namespaces
        from isolate.diagnosis.host import Host as Facts
        from isolate.network import Interface
        from isolate.sandbox.attach import attach
        from isolate.sandbox.box import Sandbox

        parts = [] if Facts().capable() else [namespaces.UserNamespace()]
        interface = Interface(self.network, name=name, **options)
        box = Sandbox(namespaces.PidNamespace(), namespaces.MountNamespace(), interface, *parts)
        process = self._stack.enter_context(box.spawn(["sleep", "86400"]))
        addresses = [str(address) for address in self.network.members[interface.name or name]]
        there = self._stack.enter_context(attach(process))
        if self._captures is not None:
            self._captures.mkdir(parents=True, exist_ok=True)
            capture = self.network.capture(interface.name or name, self._captures / f"{name}.pcapng", limit="16M")
            self._stack.enter_context(capture)
        return Host(name, process, there.net, addresses)

    def hosts(self, *names: str) -> list[Host]:
        """Several, without options."""
        return [self.host(name) for name in names]

    def impair(self, name: str, **how: float) -> Impaired:
        """Have a host's packets come late, twice or not at all: :meth:`isolate.network.Network.impair`."""
        impaired: Impaired = self.network.impair(name, **how)
        return impaired

    def stats(self, name: str) -> Counters:
        """The traffic that a host has sent and received."""
        counters: Counters = self.network.stats(name)
        return counters


@pytest.fixture
def lan(request: pytest.FixtureRequest) -> Iterator[Lan]:
    """A network for two or more hosts: ``a, b = lan.hosts("a", "b")``. Gone after the test, with all that ran there.

    With ``--isolate-capture=DIR`` what each host sent and received is kept as pcapng, if the test fails.
    """
    from isolate import errors
    from isolate.network import Network

    kept = request.config.getoption("isolate_capture")
    directory = Path(kept) / re.sub(r"[^\w.-]+", "_", request.node.nodeid) if kept else None
    try:
        network = Network()
    except errors.SetupError as error:
        refused(request.config, error)
    with network, contextlib.ExitStack() as stack:
        yield Lan(network, stack, directory)
        stack.close()
    if directory is not None and not request.node.stash.get(_failed, False):
        for file in directory.glob("*.pcapng"):
            file.unlink()
        with contextlib.suppress(OSError):
            os.rmdir(directory)
