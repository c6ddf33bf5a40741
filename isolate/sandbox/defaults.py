"""The protections that are in force in a sandbox by default.

Each is a part, and naming the part changes it. ``explain()`` shows them all.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from isolate.attributes.credentials import Credentials
from isolate.attributes.privileges import NoNewPrivs, SessionKeyring, SetIdFiles
from isolate.attributes.rlimits import Rlimits
from isolate.attributes.scheduling import Scheduling
from isolate.capabilities.caps import Cap
from isolate.capabilities.part import Capabilities
from isolate.engine.finding import Finding
from isolate.engine.plan import BOTH, CWD, Buffer, Context, Engine, Label, Load, Part, Phase, Step, Test, call
from isolate.kernel.constants import (
    PR_GET_SECCOMP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    SECCOMP_MODE_FILTER,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.seccomp import Seccomp

__all__ = ["DEFAULT_PATH", "Launch", "defaults", "no_nested_user_namespaces"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITY_VERSION_3 = 0x20080522
_CAP_KILL = 5


@dataclass(frozen=True)
class Launch:
    """The steps that every start has: waiting for the id maps, the session, the program, the descriptors."""

    required: ClassVar[bool] = True
    #: The caller wants to know what the program changed in overlays: see ``isolate.mounts.telling``.
    tells_changes: ClassVar[bool] = True

    def steps(self, context: Context) -> Iterator[Step]:
        """Steps of init and of the payload."""
        # Only in a plan that has something to do there.
        yield Step(Phase.BEGIN_ASIDE, "begin with what a second process does meanwhile (below)", (Engine("aside"),))
        yield Step(Phase.MEET_ASIDE, "wait until the second process has ended", (Engine("meet"),))
        yield Step(Phase.SYNC, "wait until the supervisor has written the id maps", (Engine("sync"),), template=BOTH)
        # A change of ids undoes both: the kernel's own value of the first is in fs.suid_dumpable.
        hardening = (call("prctl", PR_SET_DUMPABLE, 0), call("prctl", PR_SET_PDEATHSIG, 9))
        words = "not dumpable: nobody inside can trace init; die with the supervisor"
        yield Step(Phase.HARDEN, words, hardening, template=BOTH)
        yield Step(Phase.SESSION, "new session, without a terminal unless one is given", (Engine("session"),))
        yield Step(
            Phase.DIRECTORY,
            "enter the working directory",
            (call("chdir", CWD),),
            hints={
                2: Finding(
                    "the working directory does not exist inside",
                    "paths are those inside: bring it in, or name another, cwd=",
                ),
                13: Finding(
                    "the payload may not enter the working directory",
                    "let the program's user search it and each directory on the way (chmod o+x), or name another, cwd=;"
                    " where / of an image keeps this user out, root's `chmod o+x /` in a layer more lets it in",
                ),
            },
        )
        yield Step(Phase.PROGRAM, "find the program", (Engine("find"),))
        path, end = Buffer(4096, "path", scratch=True), Label()
        # Where the root is the caller's, so may the working directory be one that has been deleted, or that lies deeper
        # than the kernel tells.
        mount = context.namespace("mount")
        joined = mount is not None and mount.joined
        callers_root = not joined and not any(getattr(part, "makes_root", False) for part in context.parts)
        asking = (
            call("getcwd", path, 4096, errors=(errno.ENOENT, errno.ENAMETOOLONG), policy="jump", label=end)
            if callers_root
            else call("getcwd", path, 4096)
        )
        yield Step(
            Phase.VERIFY,
            "the working directory is inside the root",
            # The kernel says "(unreachable)/…" of a directory outside: the class of CVE-2024-21626.
            (asking, Test(Load(path, 0, 4), ord("/"), mask=0xFF, error=errno.EXDEV), end),
            hints={
                errno.ENAMETOOLONG: Finding(
                    "the working directory's path is longer than the kernel tells (4095 bytes)", "name another, cwd="
                )
            },
        )
        pid = context.namespace("pid")
        if pid is None or pid.joined or not pid.init:
            # Where init is PID 1 the kernel ends everything with it; else the program itself ends with its parent.
            # The change of credentials has undone it if it was set before (PR_SET_PDEATHSIG(2const)).
            yield Step(Phase.DESCRIPTORS, "die with the parent process", (call("prctl", PR_SET_PDEATHSIG, 9),))
        yield Step(Phase.DESCRIPTORS, "close every descriptor but 0, 1, 2 and those passed", (Engine("fds"),))
        yield from self._filtered(context)
        yield Step(Phase.EXEC, "execute the program", (Engine("exec"),))
        header = Buffer(_CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4), "header")
        kept = (1 << _CAP_KILL).to_bytes(4, "little")
        sets = Buffer(kept + kept + bytes(16), "sets")
        yield Step(
            Phase.AFTER,
            "init keeps no capability but CAP_KILL (to forward signals)",
            (
                call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                # An ordinary user without a user namespace has none to give up, and may not raise one.
                call("capset", header, sets, errors=(1,)),
            ),
        )

    @staticmethod
    def _filtered(context: Context) -> Iterator[Step]:
        """Ask the kernel whether a filter is there, where the filters themselves let that question pass."""
        from isolate.seccomp import Seccomp

        filters = [part for part in context.parts if isinstance(part, Seccomp) and part.restricts]
        if filters and all(part.simulate("prctl", PR_GET_SECCOMP).makes_call for part in filters):
            yield Step(
                Phase.FILTERED,
                "verify that the filter is in force",
                (call("prctl", PR_GET_SECCOMP, 0, 0, 0, 0, expect=SECCOMP_MODE_FILTER),),
                hints={5: "the kernel does not say that a filter is in force"},
            )


@lru_cache(maxsize=1)
def no_nested_user_namespaces() -> Seccomp:
    """A small filter: clone and unshare with CLONE_NEWUSER answer EPERM, clone3 ENOSYS, all else is allowed.

    In force where no :class:`~isolate.Seccomp` part says what may be called, unless ``UserNamespace(nested=True)``.
    With a user namespace of the sandbox's own, user.max_user_namespaces = 0 says the same a second time.
    """
    from isolate.seccomp import Seccomp, deny_user_namespaces

    return Seccomp.from_bpf(deny_user_namespaces())


def defaults(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with what is in force by default: whatever is not named gets its safest value."""
    from isolate.seccomp import Seccomp

    given = tuple(parts)
    extra: list[Part] = [Launch()]
    for kind in (Capabilities, Credentials, NoNewPrivs, Rlimits, Scheduling, SessionKeyring):
        if not any(isinstance(part, kind) for part in given):
            extra.append(SessionKeyring(or_refused=True) if kind is SessionKeyring else kind())
    nested = any(getattr(part, "kind", None) == "user" and getattr(part, "nested", False) for part in given)
    if not nested and not any(isinstance(part, Seccomp) for part in given):
        extra.append(no_nested_user_namespaces())
    unfiltered = any(isinstance(part, Seccomp) and not part.restricts for part in given)
    if not unfiltered and _writes_host_files(given) and not any(isinstance(part, SetIdFiles) for part in given):
        from isolate.seccomp.host_files import no_set_id_files

        given_capabilities = next((part for part in given if isinstance(part, Capabilities)), Capabilities())
        extra.append(no_set_id_files(attributes=_sets_file_capabilities(given_capabilities)))
    return (*given, *extra)


def _writes_host_files(parts: tuple[Part, ...]) -> bool:
    """Whether the program is confined and can write to files that are there afterwards.

    Not so without a root of its own and without Landlock: such a program is the caller, with all of the caller's files.
    """
    tell = [getattr(part, "leaves_files", None) for part in parts]
    return any(each() for each in tell if each is not None)


def _sets_file_capabilities(part: Capabilities) -> bool:
    return any(Cap.SETFCAP in getattr(part, name) for name in ("effective", "permitted", "inheritable", "ambient"))
