"""Steps and their phases: what is done, by which process, and in which order."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from isolate.engine.finding import Finding
    from isolate.engine.ops import Buffer, Op, Register

__all__ = ["BOTH", "EACH", "KEPT", "Phase", "Section", "Split", "Step"]


class Section(enum.IntEnum):
    """Which process runs a step, and when (the launcher's sections, in ``_native/tape.h``)."""

    OUTER = 0
    SUPERVISOR = 1
    INIT = 2
    PAYLOAD = 3
    AFTER = 4
    REPORT = 5
    CLEANUP = 6
    ASIDE = 7
    THAW = 8
    AHEAD = 9
    STILL = 10


class Phase(enum.IntEnum):
    """When a step runs. The hundreds are the section; the order within is the kernel's, with its reason beside it.

    >>> Phase.VERIFY < Phase.EXEC
    True
    """

    # The supervisor, outside the sandbox, before the child exists.
    INHERITED = 3  # first, with the caller's own rights: what the child would inherit and is not to
    JOIN_USER = 5  # without privileges the user namespace comes first: it gives the rights to join the others
    TREES = 8  # clones of the caller's mounts by descriptor: a mount namespace entered later refuses them
    JOIN = 10  # existing namespaces: new ones are made inside of those
    JOIN_USER_LAST = 15  # with privileges it comes last: joining it gives them up
    CGROUP = 20  # the group must exist to be born into
    CLONE = 90  # no ops: the flags of clone

    # The supervisor, while the child waits.
    ADOPT = 110  # what only the outside may write: oom_score_adj
    ID_MAPS = 120  # last: from here on the child is somebody

    # init.
    ENTER = 205  # first of all: what comes after is charged to the group (v1; with v2 init is born in it)
    BEGIN_ASIDE = 207  # the section ASIDE begins, in a process of the same group
    PROPAGATION = 210  # before the first mount, or mounts would show on the host
    SOURCES = 220  # opened while the caller's file system and rights are still there
    TIME = 230  # offsets can be set only before the first process is inside
    QUOTAS = 235  # while the supervisor writes the id maps: nobody needs to be somebody for it
    SYNC = 240  # wait for the id maps
    IDENTITY = 250  # become root of the user namespace: files made below must have an owner it knows
    HARDEN = 260  # not dumpable from here on (before the id maps, /proc/self would not be ours)
    NAMESPACES = 270  # those that clone does not make: what is mounted below shows them
    ROOT = 280  # build the new root
    MEET_ASIDE = 284  # wait for the section ASIDE
    NETWORK = 286  # enter the network namespace that was made there
    SYSTEM = 288  # host name, loopback, sysctls: in all namespaces, with the caller's /proc still there
    PIVOT = 290  # enter it, let go of the old one
    COVER = 292  # once every mount is where the program will see it

    # The payload, from a process that does not exist any more after exec.
    SESSION = 310
    RLIMITS = 320  # before credentials: raising needs CAP_SYS_RESOURCE
    ORDINARY = 328  # no priority of the caller's: before a part asks for one
    SCHEDULING = 330  # before credentials: CAP_SYS_NICE
    KEYRING = 340
    BOUNDING = 350  # needs CAP_SETPCAP, so before capabilities go
    CREDENTIALS = 360  # groups, then gid, then uid: each needs what the next gives up
    CAPABILITIES = 370  # after the change of uid, which clears what it finds
    DIRECTORY = 375  # the working directory is entered with the payload's rights, not with ours
    NO_NEW_PRIVS = 380  # Landlock and seccomp ask for it
    LANDLOCK = 385
    PROGRAM = 388  # look the program up: with the payload's rights, before the filter
    VERIFY = 390  # what holds is read back from the kernel
    DESCRIPTORS = 394  # as late as can be; nothing is opened after it
    SECCOMP = 396  # last: nothing of ours has to be allowed but exec
    FILTERED = 397  # whether the filter is there, where the filter lets one ask
    EXEC = 398

    # init, once the program runs.
    AFTER = 410
    # The supervisor, once everything inside is dead but an init that has reaped it all: the kernel takes the namespaces
    # down meanwhile.
    REPORT = 510
    # The supervisor, once everything inside is dead.
    CLEANUP = 610
    # A second process of init's, from BEGIN_ASIDE to MEET_ASIDE: what takes long and needs nothing of what init does.
    ASIDE = 710
    # The supervisor, before every kill, any number of times: a process in a frozen v1 group does not die.
    THAW = 810
    # The supervisor, first of all; one that waits for a start from a tree, before there is one (Split.ahead).
    AHEAD = 910
    # The supervisor, where that was done ahead: take what was made, or all of it is made again.
    STILL = 1010

    @property
    def section(self) -> Section:
        """The section that the phase belongs to."""
        return Section(self // 100)


class Split:
    """How a step is divided where the tree of a sandbox is made once, and many are started from it.

    ``build`` are the ops that are run once, when the tree is made, and ``again`` those that each start runs; None
    stands for the step's own. ``sources`` are the paths of the host that ``build`` pins, each with the buffer into
    which it has put the statx(2) of what it found: a start compares. ``ahead`` are ops of a start that can be run
    before it is asked for, by a fork of the launcher that waits. ``again`` are then the ops that take what they have
    made. They run in a start for which it was made ahead: if they fail, the ops of ``ahead`` run once more. A step in
    the phase CLEANUP removes what ``ahead`` makes, also if no start comes.
    """

    __slots__ = ("again", "ahead", "build", "sources")

    def __init__(
        self,
        build: Iterable[Op] | None = (),
        again: Iterable[Op] | None = (),
        sources: tuple[tuple[bytes, Buffer], ...] = (),
        ahead: Iterable[Op] = (),
    ) -> None:
        self.build: tuple[Op, ...] | None = None if build is None else tuple(build)
        self.again: tuple[Op, ...] | None = None if again is None else tuple(again)
        self.sources: tuple[tuple[bytes, Buffer], ...] = sources
        self.ahead: tuple[Op, ...] = tuple(ahead)


#: A step whose effect stays in the tree.
KEPT = Split(build=None)
#: A step that each start does for itself, and that needs nothing of the host's files.
EACH = Split(again=None)
#: A step that both do.
BOTH = Split(build=None, again=None)


class Step:
    """One thing that a part does: in a phase, in words, with its ops.

    :param phase: when, and in which process.
    :param text: what it does, for errors and ``explain()``.
    :param ops: calls, in order.
    :param clone_flags: flags of clone that it needs.
    :param path: that it is about.

    >>> Step(Phase.VERIFY, "nothing to do").text
    'nothing to do'

    :param cgroup: whether the step is about the child's cgroup.
    :param needs: capabilities or parts that it needs.
    :param hints: errno to what a person should read.

    :param template: whether the step may be done once for many starts.
    """

    __slots__ = ("cgroup", "clone_flags", "hints", "needs", "ops", "path", "phase", "template", "text")

    def __init__(
        self,
        phase: Phase,
        text: str,
        ops: tuple[Op, ...] = (),
        clone_flags: int = 0,
        path: bytes | None = None,
        cgroup: Register | None = None,
        needs: Register | None = None,
        hints: Mapping[int, str | Finding] = MappingProxyType({}),
        template: Split | None = None,
    ) -> None:
        self.phase: Phase = phase
        self.text: str = text
        self.ops: tuple[Op, ...] = ops
        #: Namespace flags for the clone of init (phase CLONE).
        self.clone_flags: int = clone_flags
        #: The path that an error should name.
        self.path: bytes | None = path
        #: A register with the descriptor of the cgroup to be born in (CLONE_INTO_CGROUP).
        self.cgroup: Register | None = cgroup
        #: The step needs this register's descriptor; if the step that fills it was skipped, so is this one.
        self.needs: Register | None = needs
        #: The meaning of an errno in this step. A text is only a cause: see :meth:`finding`.
        self.hints: Mapping[int, str | Finding] = hints
        #: How it is divided between a tree that is made once and the starts from it. None in a phase that makes the
        #: tree: not at all, and a sandbox with such a step is set up anew each time.
        self.template: Split | None = template

    def finding(self, error: int) -> Finding | None:
        """The meaning of an errno here. One without a remedy is completed by what is known of such failures."""
        hint = self.hints.get(error)
        if not isinstance(hint, str):
            return hint
        from isolate.engine.finding import Finding  # loaded late: only an error needs it

        return Finding(hint)
