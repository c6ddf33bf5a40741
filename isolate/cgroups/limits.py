"""``Limits``: what a child may use, as a part."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from isolate.cgroups.values import LimitValues
from isolate.errors import ConflictError
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context, Part, Step

__all__ = ["Limits"]


@keywords
@dataclass(frozen=True)
class Limits(LimitValues):
    """A fresh cgroup per child: limits, accounting, and a name for why it ended.

    The child is in the group from its first instruction (CLONE_INTO_CGROUP on v2, Linux 5.7; on v1 before it goes on to
    anything). The group is removed after it, with whatever groups were made below. Every limit is read back; a host
    that cannot hold one is an error before anything starts. Without any argument there is the accounting alone.

    Sizes are bytes or ``"256M"`` (K, M, G, T are powers of 1024); ``"max"`` means no limit. The sandbox's own init
    is in the group too: it counts one towards ``pids``, and some 100 KiB.

    :param memory: memory.max: what all processes together may use, tmpfs and page cache included. At least 64K.
    :param memory_high: above it the child is slowed down and reclaimed from, not killed. v2.
    :param memory_low: protected from reclaim while others have some to give. v2.
    :param memory_min: never reclaimed. v2.
    :param swap: swap, beyond ``memory``; 0 when ``memory`` is given and this is not.
    :param oom_group: the OOM killer takes the whole group (memory.oom.group, Linux 4.19). None: wherever the kernel can
        (v1 cannot); True: an error on v1.
    :param pids: tasks (processes and threads), init among them; from 1 to 4194304.
    :param cpu: cores' worth of time, such as 0.5 or 2; a quota per ``cpu_period``.
    :param cpu_period: seconds from 0.001 to 1.
    :param cpu_burst: seconds of unused quota that may be saved up; at most the quota. Linux 5.14.
    :param cpu_weight: share against neighbours when the processors are busy; 1 to 10000, usually 100.
    :param cpus: processors, as ``"0-3,8"`` or numbers.
    :param mems: memory nodes, likewise.
    :param io: per device ``{"/dev/sda": {"rbps": "10M", "wbps": …, "riops": 500, "wiops": …}}``: bytes and operations a
        second. A partition, or a file or directory on it, means its disk; ``"8:0"`` is taken too.
    :param io_weight: 1 to 10000, usually 100. Needs a scheduler that knows weights (bfq) or io.cost.
    :param hugetlb: by page size, such as ``{"2M": "64M"}``.
    :param rdma: ``{"mlx5_0": {"hca_handle": 2, "hca_object": 2000}}``.
    :param misc: ``{"sev": 1}``: resources that the kernel counts by name. Linux 5.13.
    :param devices: allowed devices, such as ``["c 1:3 rw", "/dev/fuse"]``; everything else is denied. ``()`` denies
        all; ``Limits.DEVICES`` is what programs expect of ``/dev``. On v2 this loads a BPF program (CAP_BPF and
        CAP_NET_ADMIN, or CAP_SYS_ADMIN, in the first user namespace).
    :param net_class: class of packets for tc (``net_cls.classid``). v1.
    :param net_prio: priority of packets by interface (``net_prio.ifpriomap``). v1.
    :param parent: a :class:`~isolate.Cgroup` to make the group in, or an absolute path in the v2 hierarchy. None: one
        is found.
    :param network: bits a second that each :class:`~isolate.network.Interface` of the sandbox may receive, and send:
        ``"20M"``, ``20_000_000``. The kernel's groups have no such limit, so the switch holds it: a sandbox that has
        no Interface is refused, since its packets pass nothing of ours. Fixed when the sandbox starts.

    :raises ValueError: negative, absurd or contradictory values. :raises TypeError: values of the wrong type.

    >>> box = Sandbox(Limits(memory="64M", pids=16))  # doctest: +SKIP
    >>> box.run(["tail", "/dev/zero"]).verdict  # doctest: +SKIP
    <Verdict.OOM: 'OOM'>
    """

    def steps(self, context: Context) -> Iterator[Step]:
        """The steps of the part."""
        from isolate.cgroups.part import limits_steps

        if self.network is not None and not any(getattr(part, "holds_rates", False) for part in context.parts):
            raise ConflictError(
                "Limits: network= is held by the switch of a network, and this sandbox has no network.Interface: give"
                " one in the same call, as in untrusted(Interface(lan), limits=Limits(network='20M')), or leave"
                " network out"
            )
        return iter(limits_steps(self, context))

    def brings(self) -> Iterator[Part]:
        """The part that makes the files of the group read-only inside: see :mod:`isolate.cgroups.cover`."""
        from isolate.cgroups.cover import brings

        return brings()

    def __repr__(self) -> str:
        shown = [f"{f.name}={v!r}" for f in fields(self) if (v := getattr(self, f.name)) != f.default]
        return f"Limits({', '.join(shown)})"
