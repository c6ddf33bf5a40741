"""Traffic control as netlink requests: rates, and packets that come late, twice or not at all (tc(8), RTM_NEWQDISC)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from isolate.kernel.checks import is_number
from isolate.network.link import ifb
from isolate.network.netlink import CREATE, REPLACE, Message, attribute, nested, text

__all__ = ["Impairment", "both_ways", "shaped", "turned"]

_NEWQDISC, _DELQDISC, _NEWFILTER = 36, 37, 44
_KIND, _OPTIONS = 1, 2
_ROOT, _INGRESS, _INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_TBF_PARAMETERS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET
_NETEM_CORRUPT, _NETEM_REORDER, _NETEM_LATENCY, _NETEM_JITTER = 4, 3, 10, 11
_U32_SELECT, _U32_ACTION = 5, 7
_ALL = 0x0300  # ETH_P_ALL in network order
_LATENCY = 0.05  # seconds that a packet may wait for its turn before it is dropped


@dataclass(frozen=True)
class Impairment:
    """The impairments of packets in each direction: seconds, and shares from 0 to 1."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0

    def __post_init__(self) -> None:
        for name in ("delay", "jitter"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 3600:
                raise ValueError(f"impair: {name} must be from 0 to 3600 seconds, not {value!r}")
        for name in ("loss", "duplicate", "reorder", "corrupt"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"impair: {name} must be a share from 0 to 1, not {value!r}")
        if (self.jitter or self.reorder) and not self.delay:
            raise ValueError("impair: jitter and reorder are of a delay, and there is none")
        if not any(vars(self).values()):
            raise ValueError("impair: nothing is said of what is to happen")

    @property
    def loss_alone(self) -> bool:
        """Whether nftables can do it, without the kernel's netem."""
        return not any((self.delay, self.duplicate, self.corrupt))


def _tc(kind: int, flags: int, index: int, handle: int, parent: int, info: int, name: str, options: bytes) -> Message:
    body = struct.pack("=BxHiIII", 0, 0, index, handle, parent, info)  # struct tcmsg
    return Message(kind, flags, body + text(_KIND, name) + options, f"{name} on the device {index}")


def _queue(index: int, name: str, options: bytes, *, handle: int, parent: int = _ROOT) -> Message:
    return _tc(_NEWQDISC, CREATE | REPLACE, index, handle << 16, parent, 0, name, options)


def _token_bucket(index: int, bits: int, burst: int | None, *, handle: int, parent: int = _ROOT) -> Message:
    """At most so many bits a second leave by the device; ``burst`` bytes at once (tbf)."""
    rate = max(1, bits // 8)
    room = burst if burst is not None else max(1 << 16, rate // 100)
    limit = min(0xFFFFFFFF, int(rate * _LATENCY) + room)
    speed = struct.pack("=BBHhHI", 0, _ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))  # struct tc_ratespec
    parameters = speed + bytes(12) + struct.pack("=III", limit, 0, 0)  # struct tc_tbf_qopt
    parts = [attribute(_TBF_PARAMETERS, parameters), attribute(_TBF_BURST, room)]
    if rate > 0xFFFFFFFF:
        parts.append(attribute(_TBF_RATE64, rate, 8))
    message = _queue(index, "tbf", nested(_OPTIONS, *parts), handle=handle, parent=parent)
    return message._replace(step=f"limit the device {index} to {bits} bits a second")


def _emulated(index: int, impairment: Impairment, *, handle: int) -> Message:
    """Delay and the rest (netem), which leaves what comes out of it to one class, :1."""
    whole = 0xFFFFFFFF
    loss, duplicate = round(impairment.loss * whole), round(impairment.duplicate * whole)
    gap = 1 if impairment.reorder else 0  # of 0 the kernel sends nothing ahead, whatever its share is
    parts = struct.pack("=6I", 0, 10000, loss, gap, duplicate, 0)  # struct tc_netem_qopt
    parts += attribute(_NETEM_LATENCY, round(impairment.delay * 1e9), 8)
    parts += attribute(_NETEM_JITTER, round(impairment.jitter * 1e9), 8)
    if impairment.reorder:
        parts += attribute(_NETEM_REORDER, struct.pack("=II", round(impairment.reorder * whole), 0))
    if impairment.corrupt:
        parts += attribute(_NETEM_CORRUPT, struct.pack("=II", round(impairment.corrupt * whole), 0))
    message = _queue(index, "netem", attribute(_OPTIONS, parts), handle=handle)
    return message._replace(step=f"impair what leaves by the device {index}")


def shaped(index: int, rate: int | None, burst: int | None, impairment: Impairment | None) -> list[Message]:
    """The shaping of a device's outgoing traffic."""
    if impairment is not None:
        emulated = _emulated(index, impairment, handle=1)
        if rate is None:
            return [emulated]
        return [emulated, _token_bucket(index, rate, burst, handle=2, parent=1 << 16 | 1)]
    return [] if rate is None else [_token_bucket(index, rate, burst, handle=1)]


def turned(index: int, other: int, name: str) -> list[Message]:
    """Lead a device's incoming traffic through another, an ifb of that name, so that it can be shaped as well."""
    ingress = _tc(_NEWQDISC, CREATE | REPLACE, index, _INGRESS_HANDLE, _INGRESS, 0, "ingress", b"")
    key = struct.pack("=IIii", 0, 0, 0, 0)  # every packet
    select = struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0) + key  # struct tc_u32_sel
    mirror = struct.pack("=IIiiiiI", 0, 0, 4, 0, 0, 1, other)  # struct tc_mirred: stolen, redirected to its way out
    action = nested(1, text(1, "mirred"), nested(2, attribute(2, mirror)))
    options = nested(_OPTIONS, attribute(_U32_SELECT, select), nested(_U32_ACTION, action))
    redirect = _tc(_NEWFILTER, CREATE, index, 0, _INGRESS_HANDLE, 1 << 16 | _ALL, "u32", options)
    return [ifb(name, index=other), ingress, redirect]


def both_ways(
    index: int, other: int, name: str, rate: int | None, burst: int | None, impairment: Impairment | None
) -> list[Message]:
    """The shaping of a device's outgoing traffic, and of its incoming traffic by way of an ifb."""
    if rate is None and impairment is None:
        return []
    there = shaped(index, rate, burst, impairment)
    return [*there, *turned(index, other, name), *shaped(other, rate, burst, impairment)]


def cleared(index: int) -> list[Message]:
    """A device as it was without any of this. Errors say that there was nothing."""
    root = _tc(_DELQDISC, 0, index, 0, _ROOT, 0, "", b"")
    ingress = _tc(_DELQDISC, 0, index, _INGRESS_HANDLE, _INGRESS, 0, "ingress", b"")
    return [root._replace(body=root.body[:20]), ingress]
