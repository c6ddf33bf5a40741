"""``Limits(network=)``: the network's row beside memory, processors and disks, held by the switch."""

from __future__ import annotations

from typing import Any

import pytest

from isolate import Cgroup, Limits, NetNamespace, PidNamespace, Sandbox, network
from isolate.errors import ConflictError
from tests.network.hosts import told

pytestmark = pytest.mark.root


def rates(lan: network.Network) -> list[int]:
    """Bytes a second of each queue of the switch that has a rate."""
    queues = told(NetNamespace(fd=lan.namespace), "tc", "-j", "qdisc")
    return [queue["options"]["rate"] for queue in queues if queue["kind"] == "tbf"]


def names(lan: network.Network) -> set[str]:
    """Of the switch's devices."""
    return {row["ifname"] for row in told(NetNamespace(fd=lan.namespace), "ip", "-j", "link")}


@pytest.mark.parametrize(
    ("limit", "own", "wanted"), [("16M", None, 2_000_000), (8_000_000, "16M", 1_000_000), ("16M", "8M", 1_000_000)]
)
def test_it_holds_each_way(limit: Any, own: str | None, wanted: int) -> None:
    with network.Network() as lan, network.Network() as other:
        box = Sandbox(PidNamespace(), network.Interface(lan, rate=own), Limits(network=limit))
        plain = Sandbox(PidNamespace(), network.Interface(other), Limits())  # control
        with box.spawn(["sleep", "60"]), plain.spawn(["sleep", "60"]):
            assert rates(lan) == [wanted] * 2
            assert rates(other) == []


def test_in_a_container() -> None:
    with network.Network() as lan:
        box = Sandbox(PidNamespace(), network.Interface(lan), Limits(network="16M"))
        with box.open() as container:
            assert rates(lan) == [2_000_000] * 2
            assert container.run(["true"]).ok
            with pytest.raises(ValueError, match="fixed"):
                container.update(network="1M")
            with pytest.raises(ValueError, match="fixed"):
                container.update(Limits(network="1M"))


def test_what_cannot_hold_it_is_refused() -> None:
    for parts in ((), (NetNamespace(),), (network.Domains("good.example"),)):
        with pytest.raises(ConflictError, match="Interface"):
            Sandbox(PidNamespace(), Limits(network="1M"), *parts).run(["true"])
    with pytest.raises(ConflictError, match="a group has no network"):
        Cgroup(Limits(network="1M")).create()
    for bad in ("fast", 7, True, "1.M", "1e9", ""):
        with pytest.raises((ValueError, TypeError), match="bits per second"):
            Limits(network=bad)
    assert Limits(network="1.5 Gbit").network == 1_500_000_000
    assert repr(Limits(network="20M")) == "Limits(network=20000000)"


def test_no_device_of_a_shaped_member_stays() -> None:
    with network.Network() as lan:
        with Sandbox(PidNamespace(), network.Interface(lan, rate="16M")).spawn(["sleep", "60"]):
            assert names(lan) >= {"i0", "p0"}
        assert "i0" not in names(lan)


def test_counters_stand_in_the_stats() -> None:
    code = "import socket; socket.create_connection(('{}', 53), 20)"
    with network.Network() as lan, network.Network() as other:
        box = Sandbox(PidNamespace(), network.Interface(lan), network.Interface(other), Limits())
        with box.spawn(["sleep", "60"]) as process:
            before = process.stats().interfaces
            assert set(before) == {"eth0", "eth1"}
            process.exec(["python3", "-c", code.format(lan.gateway)]).wait()
            assert process.stats().interfaces["eth0"].sent_bytes > before["eth0"].sent_bytes
        assert process.result().stats.interfaces == {}
        with Sandbox(PidNamespace(), network.Interface(lan), Limits()).open() as container:
            with container.connect(other):
                assert set(container.stats().interfaces) == {"eth0", "eth1"}
            assert set(container.stats().interfaces) == {"eth0"}
            assert container.run(["python3", "-c", code.format(lan.gateway)]).ok
            assert container.stats().interfaces["eth0"].sent_bytes > 100
            lan.close()
            assert container.stats().interfaces == {}
