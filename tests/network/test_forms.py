"""Requests that are put together once and filled in for each member."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import pytest

from isolate import NetNamespace, network
from isolate.engine import native
from isolate.errors import SetupError
from isolate.network import link, netlink, nft, ruleset
from isolate.network.forms import Form
from isolate.network.members import Wish
from isolate.network.netlink import NETFILTER, Socket, framed, packed
from isolate.network.switch import Plug
from tests.network import hosts
from tests.network.hosts import HERE, told

pytestmark = pytest.mark.root


class Noted:
    """The extension, but that a member's form and its values are kept and not sent."""

    def __init__(self) -> None:
        self.filled = b""

    def iso_netlink_attach(self, *arguments: Any) -> int:
        *_, form, size, values, room = arguments
        assert (size, room) == (len(form), len(values))
        *sizes, count = struct.unpack_from("=4H", form)
        data = bytearray(form[8 + 6 * count :])
        assert len(data) == sum(sizes)
        values = FD + values[len(FD) :]
        for at, start, length in struct.iter_unpack("=3H", form[8 : 8 + 6 * count]):
            assert length <= len(values) - start
            data[at : at + length] = values[start : start + length]
        self.filled = bytes(data)
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(native.lib, name)


FD = (77).to_bytes(4, "little")


def test_they_are_what_is_put_together_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Noted()
    with network.Network() as lan, network.Network("172.16.0.0/12", ipv6=False, mtu=9000) as wide, Socket() as sock:
        monkeypatch.setattr(netlink, "lib", noted)
        for each, numbers in ((lan, (0, 9, 10, 99, 240)), (wide, (0, 7, 65535, (1 << 20) - 4))):
            switch = each._switch
            for number, everywhere, device in itertools.product(numbers, (False, True), ("eth0", "a-long-name.15")):
                own, addresses = each._members._own(number)
                plug = Plug(number, own, addresses, b"\2\x42" + addresses[0], device, each.mtu, inner=3)
                plug.everywhere = plug.everywhere6 = everywhere
                before = [each._sequence for each in (switch.route, switch.filters, sock)]
                assert switch._plainly(plug, sock)
                after = [each._sequence for each in (switch.route, switch.filters, sock)]
                wire, inside = switch._pair(plug, 77, plug.port, plug.index), switch._inside(plug, 3)
                admitted = ruleset.admitted(plug.index, own)
                assert noted.filled == packed([wire]) + framed(nft.SUBSYSTEM, admitted) + packed(inside)
                counts = [now - earlier for now, earlier in zip(after, before, strict=True)]
                assert counts == [1, len(admitted) + 2, len(inside)]
            assert len(switch._forms) < 2 * 2 * len(numbers)  # for members like it
        noted.filled = b""
        for other in ({"egress": True}, {"ingress": True}, {"rate": 8000}, {"inner": 0}):
            plug = Plug(1, own, addresses, bytes(6), **({"inner": 2} | other))
            assert not wide._switch._plainly(plug, sock)
        assert noted.filled == b""
        monkeypatch.undo()
    with pytest.raises(ValueError, match="none of the requests"):
        Form([(packed([link.remove(7)]), 1)] * 3, [(b"absent", 4)])


def test_what_is_no_form_is_not_sent() -> None:
    with Socket() as sock:
        messages = packed([link.bridge("b0")])
        good = Form([(messages, 1)] * 3, [(b"b0", 4)]).data
        fd = sock.fileno()
        bad = [(good[:7], bytes(20)), (good + b"x", bytes(20)), (good[:-1], bytes(20)), (good, bytes(19))]
        bad += [(good, bytes(129)), (struct.pack("=4H", 4096, 1, 0, 0) + bytes(4097), bytes(20))]
        bad += [
            (good[:8] + struct.pack("=3H", at, start, 4) + good[14:], bytes(20)) for at, start in ((0, 17), (65000, 0))
        ]
        for form, values in bad:
            assert native.lib.iso_netlink_attach(fd, fd, fd, 1, 2, 3, form, len(form), values, len(values)) == -1
        assert native.lib.iso_netlink_attach(fd, fd, -1, 1, 2, 3, good, len(good), bytes(20), 20) == -1
        assert [each.name for each in link.links(sock)] == ["lo"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_nothing_is_left_of_what_failed(failing: int) -> None:
    """Of the switch's devices, of its rules, and of what is set up inside."""
    with network.Network("10.88.0.0/24") as lan, Socket() as inside:
        switch = lan._switch
        place = lan.reserve(Wish(name="a", index=7))
        lan._attach(place.member, inside)
        place.close(wait=True)
        before = told_by(lan)
        if failing == 1:
            inside.batch([link.veth("eth0", "other")])  # the device's name is taken
        elif failing == 2:
            filters, switch.filters = switch.filters, Socket(NETFILTER)  # which owns no table
        else:
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        place = lan.reserve(Wish(name="b", index=7))
        try:
            with pytest.raises(SetupError) as caught:
                lan._attach(place.member, inside)
        finally:
            if failing == 2:
                switch.filters.close()
                switch.filters = filters
        assert WORDS[failing] in str(caught.value)
        assert told_by(lan) == before
        place.close()


WORDS = {1: "make the veth pair p1, eth0", 2: "element", 3: "give "}


def told_by(lan: network.Network) -> tuple[list[str], str]:
    """The switch's ports and the addresses that they may send with."""
    with NetNamespace(fd=lan.namespace):
        ports = [row["ifname"] for row in told(HERE, "ip", "-j", "link", "show", "master", "br0")]
        return ports, hosts.ruleset(HERE)


def test_errors_have_words_of_their_own() -> None:
    """Of the member that failed, and not of what stood in its place when they were put together."""
    with network.Network() as lan, NetNamespace.create() as net, Socket() as inside:
        inside.batch([link.veth("eth0", "other")])
        place = lan.reserve(Wish(name="a", index=7))  # the name of the device is taken
        with pytest.raises(SetupError, match=r"make the veth pair p0, eth0") as caught:
            lan._attach(place.member, inside)
        assert "File exists" in str(caught.value)
        place.close()
    net.close()
