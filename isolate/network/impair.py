"""A member's packets come late, twice, or not at all, while something holds that says so."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from isolate.network import nft
from isolate.network.nft import Chain, Table

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from isolate.network.netlink import Message
    from isolate.network.switch import Plug, Switch
    from isolate.network.traffic import Impairment

__all__ = ["Impaired"]


class Impaired:
    """An impairment in force; a context manager that ends it."""

    def __init__(self, switch: Switch, plug: Plug, impairment: Impairment) -> None:
        self._switch = switch
        self._plug = plug
        self._table: Table | None = None
        self._ended = False
        #: The impairment in force.
        self.impairment = impairment
        if impairment.loss_alone:
            self._lose(impairment.loss)
        else:
            try:
                switch.shape(plug, impairment)
            except BaseException:
                switch.shape(plug)
                raise

    def _lose(self, share: float) -> None:
        """Drop a share of the packets from the member, and of those to it, by nftables."""
        family = nft.INET if self._plug.limited else nft.BRIDGE
        table = self._table = Table(f"impair-{self._plug.number}", family)
        messages: list[Message] = [table.create()]
        for name, hook, direction in (
            ("sent", nft.PREROUTING, "iifname"),
            ("received", nft.POSTROUTING, "oifname"),
        ):
            drop = [*nft.device(direction, self._plug.port), *nft.chance(share), nft.verdict(nft.DROP)]
            if share >= 1:
                drop = [*nft.device(direction, self._plug.port), nft.verdict(nft.DROP)]
            messages += [table.chain(Chain(name, hook, priority=-400)), table.rule(name, *drop)]
        self._switch.rules(messages)

    def end(self) -> None:
        """Packets go on as before."""
        if self._ended:
            return
        self._ended = True
        if self._table is not None:
            with contextlib.suppress(OSError):
                self._switch.rules([self._table.remove()])
        elif self._plug.attached and not self._switch.route.closed:
            self._switch.shape(self._plug)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
