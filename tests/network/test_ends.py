"""Networks end with their owner, however it ends: wires, rules, addresses, processes and namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PidNamespace, Sandbox, network
from isolate.network import link
from isolate.network.netlink import Socket
from tests.fence import killed_at_random
from tests.network.hosts import HERE, Outside, host, told, until
from tests.snapshot import Snapshot

if TYPE_CHECKING:
    from isolate import NetNamespace

pytestmark = pytest.mark.root


def left() -> list[object]:
    """What is on the machine besides loopback and the wire to the outside."""
    links = [row["ifname"] for row in told(HERE, "ip", "-j", "link") if row["ifname"] not in ("lo", "eth9")]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout.splitlines()
    own = [a for row in told(HERE, "ip", "-j", "addr") for a in row["addr_info"] if row["ifname"] not in ("lo", "eth9")]
    return [*links, *tables, *own]


def program(begin: Any, end: Any) -> None:
    """Makes networks, members and ports for ever."""
    while True:
        with network.Network(uplink="host") as lan, network.Network() as other:
            box = Sandbox(PidNamespace(), network.Interface(lan), network.Interface(other))
            with host(lan, "db", egress=network.Egress(["192.0.2.9:443"])), host(other, "web", publish={8080: 80}):
                box.run(["true"])
                box.run(["sh", "-c", "sleep 1000 & setsid sleep 1000 & exit 0"])


def kill_at_random(machine: NetNamespace, instants: int, longest: float, seed: int) -> list[str]:
    found = []
    with Outside(machine), Socket() as sock:
        assert left() == []
        for when, outcome in killed_at_random(program, instants, longest, seed):
            if outcome.gone is None:
                found.append(f"{when}: {outcome.left}")
            if not until(lambda: left() == []):
                found.append(f"{when}: {left()}")
            if not until(lambda: not link.forwards(sock, "eth9")):
                found.append(f"{when}: eth9 forwards")
                sock.batch([link.forwarding("eth9", on=False)])
    return found


def test_the_machine_shows_what_is_there(machine: NetNamespace) -> None:
    """The positive control."""
    with Outside(machine), Socket() as sock, network.Network(uplink="host") as lan, host(lan, "a", publish={8080: 80}):
        assert len(left()) >= 3
        assert link.forwards(sock, "eth9")


def test_killed_at_random(machine: NetNamespace) -> None:
    assert kill_at_random(machine, 5, 0.4, 1) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_two_hundred_instants(machine: NetNamespace) -> None:
    assert kill_at_random(machine, 200, 0.5, 2) == []


def test_a_forked_child_does_not_keep_it(machine: NetNamespace) -> None:
    """Its copies of our descriptors do not: the keeper cuts the wire to the host, and the bridge."""
    lan = network.Network()
    with host(lan, "web", publish={8080: 80}):
        child = os.fork()
        if child == 0:
            lan.close()  # not its own: nothing happens
            time.sleep(30)
            os._exit(0)
        try:
            assert [row for row in left() if isinstance(row, str)] != []
            lan.close()
            assert until(lambda: left() == [])
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_finalizer_in_the_middle_of_something_waits_for_its_end() -> None:
    """The collector may end a member on a thread that is just asking the kernel about another."""
    with network.Network() as lan:
        process = Sandbox(PidNamespace(), network.Interface(lan, name="a")).spawn(["sleep", "60"])
        with lan._switch.lock:
            process.close()
            assert list(lan.members) == ["a"]
        assert lan.members == {}


def test_nothing_leaks() -> None:
    def once() -> None:
        with network.Network() as lan, host(lan, "db", publish={8080: 80}), host(lan, "web"):
            Sandbox(network.Interface(lan)).run(["true"])

    once()
    before = Snapshot.take()
    for _ in range(5):
        once()
    before.compare()
    assert until(lambda: left() == [])


def test_too_few_descriptors() -> None:
    """At every limit: an error that says so, nothing left; and from some limit on it works."""

    def once() -> None:
        with network.Network() as lan:
            assert Sandbox(network.Interface(lan, publish={8080: 80})).run(["true"]).returncode == 0

    once()
    before = Snapshot.take()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 100
    failed = []
    for free in range(1, 60):
        fillers: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(os.open("/dev/null", os.O_RDONLY))
            for _ in range(free):
                os.close(fillers.pop())
            once()
            break
        except OSError as error:
            failed.append(error.errno)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)
    assert set(failed) <= {errno.EMFILE, errno.EIO, errno.EBADF, errno.ENOBUFS}, failed
    assert 5 < len(failed) < 58
    before.compare()
    assert until(lambda: left() == [])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_hundred_join_and_leave() -> None:
    Sandbox().run(["true"])
    before = Snapshot.take()
    with network.Network("10.99.0.0/16") as lan:
        boxes = [
            Sandbox(PidNamespace(), network.Interface(lan, name=f"m{n}", publish={20000 + n: 80})) for n in range(500)
        ]
        members = [box.spawn(["sleep", "600"]) for box in boxes]
        assert len(lan.members) == 500
        for member in members:
            member.kill()
        for member in members:
            member.close()
        assert lan.members == {}
        assert len(told(HERE, "ip", "-j", "link")) == 2
    before.compare()
    assert until(lambda: left() == [])
