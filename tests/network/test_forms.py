"""Requests that are put together once and filled in for each member."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from isolate import NetNamespace, network
from isolate.errors import SetupError
from isolate.network import link, ruleset
from isolate.network.forms import Form
from isolate.network.members import Wish
from isolate.network.netlink import Socket
from isolate.network.switch import Plug

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.network.netlink import Message

pytestmark = pytest.mark.root


def bodies(messages: Sequence[Message]) -> list[tuple[int, int, bytes]]:
    """All but the words."""
    return [(message.kind, message.flags, message.body) for message in messages]


def test_they_are_what_is_put_together_for_each() -> None:
    with network.Network() as lan, network.Network("172.16.0.0/12", ipv6=False, mtu=9000) as wide:
        for each, numbers in ((lan, (0, 9, 10, 99, 240)), (wide, (0, 7, 65535, (1 << 20) - 4))):
            switch = each._switch
            for number, everywhere, device in itertools.product(numbers, (False, True), ("eth0", "a-long-name.15")):
                own = tuple(each._members._own(number).values())
                plug = Plug(number, own, link.mac_text(b"\2\x42" + own[0].packed), device, each.mtu, inner=3)
                plug.everywhere = plug.everywhere6 = everywhere
                forms = switch._plain(plug)
                assert forms is not None
                assert switch._plain(plug) is forms
                index, packed = plug.index.to_bytes(4, "little"), [address.packed for address in own]
                values = (plug.port.encode(), index, (77).to_bytes(4, "little"), link.mac_bytes(plug.mac))
                assert bodies(forms.wire.filled(values)) == bodies([switch._pair(plug, 77, plug.port, plug.index)])
                assert bodies(forms.admitted.filled((index, *packed))) == bodies(ruleset.admitted(plug.index, own))
                assert bodies(forms.inside.filled(packed)) == bodies(switch._inside(plug, 3))
        assert lan._switch._plain(Plug(1, own, "02:00:00:00:00:01", egress=True, inner=2)) is None
    with pytest.raises(ValueError, match="none of the requests"):
        Form([link.remove(7)], [b"absent"])


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
