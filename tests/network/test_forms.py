"""Requests that are put together once and filled in for each member."""

from __future__ import annotations

import itertools

import pytest

from isolate import NetNamespace, network
from isolate.errors import SetupError
from isolate.network import link, nft, ruleset
from isolate.network.forms import Form
from isolate.network.members import Wish
from isolate.network.netlink import Socket, framed, packed
from isolate.network.switch import Plug

pytestmark = pytest.mark.root


def test_they_are_what_is_put_together_for_each() -> None:
    with network.Network() as lan, network.Network("172.16.0.0/12", ipv6=False, mtu=9000) as wide:
        for each, numbers in ((lan, (0, 9, 10, 99, 240)), (wide, (0, 7, 65535, (1 << 20) - 4))):
            switch = each._switch
            for number, everywhere, device in itertools.product(numbers, (False, True), ("eth0", "a-long-name.15")):
                own, addresses = zip(*each._members._own(number).values(), strict=True)
                plug = Plug(number, own, addresses, b"\2\x42" + addresses[0], device, each.mtu, inner=3)
                plug.everywhere = plug.everywhere6 = everywhere
                forms = switch._plain(plug)
                assert forms is not None
                assert switch._plain(plug) is forms
                index = plug.index.to_bytes(4, "little")
                values = (plug.port.encode(), index, (77).to_bytes(4, "little"), plug.mac)
                wire, inside = switch._pair(plug, 77, plug.port, plug.index), switch._inside(plug, 3)
                assert forms.wire.filled(values) == packed([wire])
                admitted = ruleset.admitted(plug.index, own)
                assert forms.admitted.filled((index, *addresses)) == framed(nft.SUBSYSTEM, admitted)
                assert forms.inside.filled(addresses) == packed(inside)
                counts = forms.wire.count, forms.admitted.count, forms.inside.count
                assert counts == (1, len(admitted) + 2, len(inside))
        assert lan._switch._plain(Plug(1, own, addresses, bytes(6), egress=True, inner=2)) is None
    with pytest.raises(ValueError, match="none of the requests"):
        Form(packed([link.remove(7)]), 1, [b"absent"])


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
