"""Privileges that the program and its descendants may gain: ``no_new_privs`` and the session keyring."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import Jump, Label, Phase, Register, Step, Test, call
from isolate.kernel.checks import keywords
from isolate.kernel.constants import (
    KEY_SPEC_SESSION_KEYRING,
    KEYCTL_GET_KEYRING_ID,
    KEYCTL_JOIN_SESSION_KEYRING,
    PR_GET_NO_NEW_PRIVS,
    PR_SET_NO_NEW_PRIVS,
)
from isolate.thread.entering import Irreversible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context, Op

__all__ = ["NoNewPrivs", "SessionKeyring", "SetIdFiles"]


def _switch(part: object, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{type(part).__name__}: enabled must be True or False, not {value!r}")


@keywords
@dataclass(frozen=True)
class NoNewPrivs(Irreversible):
    """``no_new_privs``: no exec gives the program or a descendant more than it has, whatever the file's bits say.

    Set-user-ID, set-group-ID and file capabilities lose their effect. There is no way back, and what the caller already
    has on stays on: ``enabled=False`` only leaves it as it is. Needs no privilege. Read back before the program starts.
    Landlock and seccomp filters need it (or CAP_SYS_ADMIN).

    Source: prctl(2), PR_SET_NO_NEW_PRIVS; Linux 3.5.

    :param enabled: False leaves it as the caller has it.

    >>> Sandbox(NoNewPrivs()).run(["grep", "NoNewPrivs", "/proc/self/status"]).stdout
    b'NoNewPrivs:\\t1\\n'
    """

    enabled: bool = True

    def __post_init__(self) -> None:
        _switch(self, self.enabled)

    def steps(self, context: Context) -> Iterator[Step]:
        """Set it just before what asks for it, and read it back."""
        if not self.enabled:
            return
        yield Step(
            Phase.NO_NEW_PRIVS,
            "no exec gives more privileges (no_new_privs)",
            (call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),),
        )
        yield Step(
            Phase.VERIFY,
            "verify that no_new_privs is set",
            (call("prctl", PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, expect=1),),
            hints={errno.EIO: "the kernel does not say that no_new_privs is set"},
        )


@keywords
@dataclass(frozen=True)
class SessionKeyring(Irreversible):
    """A session keyring of its own: keyrings belong to no namespace, so the caller's keys would be there to be read.

    The new keyring is anonymous, empty and dies with the last process that has it. It counts against the caller's
    quota of keys (``kernel.keys.maxkeys``: 200 for an ordinary user); the kernel frees keys a little after their last
    user, so an exceeded quota is tried again for up to two seconds. A kernel without keyrings is no error: there is
    nothing to hide. The keyring of the *user* can still be named; deny ``keyctl`` by seccomp to close that too.

    ``or_refused=True``, which is what every sandbox has by default, is for a caller that is itself under a seccomp
    filter such as Docker's. If that refuses ``keyctl``, ``add_key`` and ``request_key`` altogether, no program inside
    can name a key either: the program starts, and ``Result.applied`` says that it has no keyring of its own. A filter
    that refuses the new keyring alone stays an error, since the caller's keys would be in reach.

    Source: keyctl(2), KEYCTL_JOIN_SESSION_KEYRING.

    :param enabled: False keeps the caller's.
    :param or_refused: a filter that refuses all calls about keys is as good.

    >>> Sandbox(SessionKeyring()).run(["true"]).applied["SessionKeyring"]
    True
    """

    enabled: bool = True
    or_refused: bool = False

    @property
    def without_template(self) -> str | None:
        """Why no start is from a tree that is made once: the keyring is compared with nothing."""
        return None if self.enabled else "it keeps the caller's session keyring, which may be another with each start"

    def __post_init__(self) -> None:
        _switch(self, self.enabled)
        if not isinstance(self.or_refused, bool):
            raise TypeError(f"SessionKeyring: or_refused must be True or False, not {self.or_refused!r}")

    def steps(self, context: Context) -> Iterator[Step]:
        """Join a new one before the ids change: it must not belong to whom the program becomes."""
        if not self.enabled:
            return
        serial = Register("keyring")
        failed, other, done = Label(), Label(), Label()
        refused = (errno.EPERM,) if self.or_refused else ()
        yield Step(
            Phase.KEYRING,
            "a new, empty session keyring"
            + (" (or none, where a filter on the caller refuses all calls about keys)" if refused else ""),
            (
                call(
                    "keyctl",
                    KEYCTL_JOIN_SESSION_KEYRING,
                    0,
                    out=serial,
                    errors=(errno.ENOSYS, errno.EDQUOT, *refused),
                    policy="jump",
                    label=failed,
                ),
                Jump(done),
                failed,
                Test(serial, -errno.EDQUOT, label=other),
                call("keyctl", KEYCTL_JOIN_SESSION_KEYRING, 0, errors=(errno.EDQUOT,), policy="retry"),
                Jump(done),
                other,
                *(_all_of_keyctl_refused(serial, done) if refused else ()),
                done,
            ),
            hints={
                errno.EDQUOT: Finding(
                    "the caller's quota of keys is used up", "raise kernel.keys.maxkeys, or run fewer at once"
                ),
                errno.EPERM: "a seccomp filter forbids a new keyring"
                + (", and not the use of the caller's" if refused else "")
                + "; SessionKeyring(enabled=False) keeps the caller's",
                errno.EACCES: Finding(
                    "a security module forbids it", "SessionKeyring(enabled=False) keeps the caller's"
                ),
            },
        )


def _all_of_keyctl_refused(serial: Register, done: Label) -> Iterator[Op]:
    """Whether the caller's keyring is out of reach as well: the program is under the same filter as these questions."""
    for name, *args in (
        ("keyctl", KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0),
        ("add_key", 0, 0, 0, 0, KEY_SPEC_SESSION_KEYRING),
        ("request_key", 0, 0, 0, 0),
    ):
        asked = Register("asked")
        look, missing, refused = Label(), Label(), Label()
        # If the call is allowed, it finds no keyring, or says that address 0 is none.
        answers = (errno.EPERM, errno.ENOSYS, errno.ENOKEY, errno.EFAULT)
        yield call(name, *args, out=asked, errors=answers, policy="jump", label=look)
        yield look
        yield Test(asked, -errno.EPERM, label=missing)
        yield Jump(refused)
        yield missing
        yield Test(asked, -errno.ENOSYS, error=errno.EPERM)
        yield refused
    # A kernel without keyrings is as good as a new one.
    yield Test(serial, -errno.ENOSYS, label=done, skip=True)


@keywords
@dataclass(frozen=True)
class SetIdFiles:
    """Says that the program may leave files on the host that give rights to whoever executes them there.

    Without it a program that can write to files of the host (a writable :class:`Bind`, an :class:`Overlay` with
    ``upper``, a rule of :class:`Landlock` that lets it write, a mount namespace that is joined) is refused: modes with
    the set-user-ID or set-group-ID bit and device nodes (EPERM), and, if it has CAP_SETFCAP, setting extended
    attributes (EOPNOTSUPP), among which are the capabilities of files. ``openat2`` and io_uring then answer ENOSYS,
    since no filter sees the modes in there. ``SetIdFiles()`` lifts all of that: say it where what is written is an
    image of a root file system, in a directory that no other user of the host may enter.

    Not covered: a file of the tree that has such a bit already and belongs to an id that the program has. The kernel
    takes the bit away when the file is written to, but not when it is written through a shared mapping.

    >>> Sandbox(SetIdFiles()).run(["true"]).ok
    True
    """

    def steps(self, context: Context) -> Iterator[Step]:
        """None: it is the filter that is not there."""
        return iter(())
