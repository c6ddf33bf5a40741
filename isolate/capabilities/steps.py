"""The steps that put :class:`~isolate.Capabilities` in force, and what reads them back."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Protocol

from isolate.capabilities.caps import Cap, SecureBits, bits_words, mask
from isolate.engine.finding import Finding
from isolate.engine.plan import COUNTER, Buffer, Jump, Label, Load, Op, Phase, Register, Step, Store, Test, call
from isolate.kernel.constants import (
    LINUX_CAPABILITY_VERSION_3,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_IS_SET,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_CAPBSET_READ,
    PR_GET_NO_NEW_PRIVS,
    PR_GET_SECUREBITS,
    PR_SET_KEEPCAPS,
    PR_SET_SECUREBITS,
    Constant,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Wanted(Protocol):
    """The five sets, and the securebits that were said by name: :class:`~isolate.Capabilities` is one."""

    @property
    def effective(self) -> frozenset[Cap]: ...
    @property
    def permitted(self) -> frozenset[Cap]: ...
    @property
    def inheritable(self) -> frozenset[Cap]: ...
    @property
    def ambient(self) -> frozenset[Cap]: ...
    @property
    def bounding(self) -> frozenset[Cap]: ...
    @property
    def securebits(self) -> SecureBits | None: ...


_SETPCAP = 1 << Cap.SETPCAP


def _named(cap: Cap) -> Constant:
    return Constant(int(cap), str(cap))


def _data(effective: int, permitted: int, inheritable: int) -> bytes:
    """Two struct __user_cap_data_struct: the low 32 bits of the three sets, then the high ones."""
    low = [s & 0xFFFFFFFF for s in (effective, permitted, inheritable)]
    return struct.pack("<6I", *low, *(s >> 32 for s in (effective, permitted, inheritable)))


def _some(what: str, caps: Iterable[Cap]) -> str:
    names = [str(c) for c in sorted(caps)]
    if len(names) > 6:
        return f"{what}: {len(names)} capabilities"
    return f"{what}: {', '.join(names) or 'none'}"


def _holds_setpcap(data: Buffer, otherwise: Label) -> Test:
    return Test(Load(data, 4, 4), _SETPCAP, mask=_SETPCAP, label=otherwise)


def _all_effective(header: Buffer, data: Buffer) -> list[Op]:
    """Read the sets and make everything permitted effective: a change of uid leaves the effective set empty."""
    return [
        call("capget", header, data),
        Store(data, 0, Load(data, 4, 4), 4),
        Store(data, 12, Load(data, 16, 4), 4),
    ]


def steps(wanted: Wanted, securebits: SecureBits | None, *, installing: frozenset[Cap] = frozenset()) -> Iterator[Step]:
    """The steps of :class:`~isolate.Capabilities`.

    ``installing`` are kept besides in the permitted and effective sets until exec, which takes them: what a program has
    after exec comes of the inheritable, ambient and bounding sets and of its file (capabilities(7)).
    """
    header = Buffer(struct.pack("<II", LINUX_CAPABILITY_VERSION_3, 0), "header")
    before = Buffer(24, "before")
    locked, done = Label(), Label()
    bits = Register("securebits")
    yield Step(
        Phase.BOUNDING,
        "keep capabilities over the change of ids, until they are set below",
        (
            *_all_effective(header, before),
            call("capset", header, before),
            call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0, errors=(errno.EPERM,), policy="jump", label=locked),
            Jump(done),
            # Only where the caller has locked it: then a change of uid takes all, and what is wanted fails below.
            locked,
            call("prctl", PR_GET_SECUREBITS, 0, 0, 0, 0, out=bits),
            Test(bits, SecureBits.KEEP_CAPS_LOCKED, mask=SecureBits.KEEP_CAPS_LOCKED, error=errno.EPERM),
            done,
        ),
    )
    yield _drop(wanted, before)
    changed = Buffer(4, "changed")
    yield from _apply(wanted, securebits, header, changed, installing)
    yield from _verify(wanted, securebits, header, before, changed, installing)


def _drop(wanted: Wanted, before: Buffer) -> Step:
    done = Label()
    ops: list[Op] = [_holds_setpcap(before, done)]
    # As many as this kernel knows: EINVAL is for the first that it does not, and for all beyond it.
    if not wanted.bounding:
        ops.append(call("prctl", PR_CAPBSET_DROP, COUNTER, 0, 0, 0, errors=(errno.EINVAL,), repeat=64))
    else:
        for number in range(64):
            if Cap(number) not in wanted.bounding:
                ops.append(call("prctl", PR_CAPBSET_DROP, _named(Cap(number)), 0, 0, 0, errors=(errno.EINVAL,)))
    return Step(Phase.BOUNDING, _some("bounding set", wanted.bounding) + " (with CAP_SETPCAP)", (*ops, done))


def _apply(
    wanted: Wanted, securebits: SecureBits | None, header: Buffer, changed: Buffer, installing: frozenset[Cap]
) -> Iterator[Step]:
    missing = Finding(
        _some("not all of what is wanted is the caller's to give", wanted.permitted | wanted.inheritable),
        "add UserNamespace(), inside of which the program has every capability over what is its own, or run as root",
    )
    now = Buffer(24, "now")
    inheritable = mask(wanted.inheritable)
    ops: list[Op] = [
        *_all_effective(header, now),
        Store(now, 8, inheritable & 0xFFFFFFFF, 4),
        Store(now, 20, inheritable >> 32, 4),
        call("capset", header, now),
        call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0),
    ]
    ops += [call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, _named(cap), 0, 0) for cap in sorted(wanted.ambient)]
    yield Step(
        Phase.CAPABILITIES,
        f"{_some('inheritable', wanted.inheritable)}; {_some('ambient', wanted.ambient)}",
        tuple(ops),
        hints={
            errno.EPERM: missing,
            errno.EINVAL: Finding(
                "the kernel does not know one of them",
                "leave it out: /proc/sys/kernel/cap_last_cap is the last that it knows",
            ),
        },
    )
    if securebits is not None:
        done = Label()
        # Not said by name: set where it can be, which is where it matters (see the class).
        tests = [_holds_setpcap(now, done)] if wanted.securebits is None else []
        yield Step(
            Phase.CAPABILITIES,
            f"securebits {bits_words(securebits)}",
            (*tests, call("prctl", PR_SET_SECUREBITS, int(securebits), 0, 0, 0), Store(changed, 0, 1, 4), done),
            hints={errno.EPERM: "securebits need CAP_SETPCAP, or the caller has locked them otherwise"},
        )
    final = Buffer(_data(mask(wanted.effective), mask(wanted.permitted), inheritable), "wanted")
    setting: tuple[Op, ...] = (call("capset", header, final),)
    until = ""
    if installing:
        kept, held = mask(installing), Buffer(24, "held")
        besides = Buffer(_data(mask(wanted.effective) | kept, mask(wanted.permitted) | kept, inheritable), "besides")
        without, done = Label(), Label()
        setting = (
            call("capget", header, held),
            # A caller that does not hold it gets the error of the step that asks for it.
            Test(Load(held, 4, 4), kept, mask=kept, label=without),
            call("capset", header, besides),
            Jump(done),
            without,
            *setting,
            done,
        )
        until = f"; {', '.join(map(str, sorted(installing)))} until exec, where it is held, to install the filter"
    yield Step(
        Phase.CAPABILITIES,
        f"{_some('permitted', wanted.permitted)}; {_some('effective', wanted.effective)}{until}",
        setting,
        hints={errno.EPERM: missing},
    )


def _verify(
    wanted: Wanted,
    securebits: SecureBits | None,
    header: Buffer,
    before: Buffer,
    changed: Buffer,
    installing: frozenset[Cap],
) -> Iterator[Step]:
    found = Buffer(24, "found")
    expected = _data(mask(wanted.effective), mask(wanted.permitted), mask(wanted.inheritable))
    # The low halves of the effective and the permitted set are adjacent.
    seen = -1 if not installing else ~(mask(installing) | mask(installing) << 32)
    ops: list[Op] = [call("capget", header, found)]
    for at in (0, 8, 16):
        looked_at = seen if at == 0 else -1
        value = int.from_bytes(expected[at : at + 8], "little", signed=True) & looked_at
        ops.append(Test(Load(found, at, 8), value, mask=looked_at, error=errno.EPERM))
    # The kernel keeps ambient within permitted and inheritable: nothing else can be in it.
    ops += [
        call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, _named(cap), 0, 0, expect=int(cap in wanted.ambient))
        for cap in sorted(wanted.permitted & wanted.inheritable)
    ]
    if securebits is not None:
        done = Label()
        reading = call("prctl", PR_GET_SECUREBITS, 0, 0, 0, 0, expect=int(securebits))
        ops += [Test(Load(changed, 0, 4), 1, label=done), reading, done]
    yield Step(
        Phase.VERIFY,
        "verify capabilities and securebits",
        tuple(ops),
        hints={
            errno.EPERM: "the sets that the kernel reports are not those that were set (it may not know a capability)",
            errno.EIO: "the ambient set or the securebits that the kernel reports are not those that were set",
        },
    )
    weak, done = Label(), Label()
    ops = [_holds_setpcap(before, weak)]
    if wanted.bounding:
        ops += [call("prctl", PR_CAPBSET_READ, _named(c), 0, 0, 0, expect=1) for c in sorted(wanted.bounding)]
        others = [Cap(n) for n in range(64) if Cap(n) not in wanted.bounding]
        ops += [call("prctl", PR_CAPBSET_READ, _named(c), 0, 0, 0, expect=0, errors=(errno.EINVAL,)) for c in others]
    else:
        ops.append(call("prctl", PR_CAPBSET_READ, COUNTER, 0, 0, 0, expect=0, errors=(errno.EINVAL,), repeat=64))
    ops += [Jump(done), weak]
    if not wanted.bounding >= frozenset(Cap):  # else nothing is promised that exec could break
        ops.append(call("prctl", PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, expect=1))
    ops.append(done)
    yield Step(
        Phase.VERIFY,
        "verify the bounding set, or no_new_privs where it cannot be dropped",
        tuple(ops),
        hints={
            errno.EIO: "the bounding set is not as wanted: without CAP_SETPCAP it cannot be dropped, and without"
            " no_new_privs exec could bring back what it holds; add UserNamespace(), or keep NoNewPrivs()"
            " (Capabilities(bounding=tuple(Cap)) promises nothing of the bounding set)",
        },
    )
