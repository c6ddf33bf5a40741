"""What the program and its descendants may gain: ``no_new_privs`` and the session keyring."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.plan import Label, Phase, Register, Step, Test, call
from isolate.kernel.constants import KEYCTL_JOIN_SESSION_KEYRING, PR_GET_NO_NEW_PRIVS, PR_SET_NO_NEW_PRIVS
from isolate.thread.entering import Irreversible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context

__all__ = ["NoNewPrivs", "SessionKeyring"]


def _switch(part: object, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{type(part).__name__}: enabled must be True or False, not {value!r}")


@dataclass(frozen=True)
class NoNewPrivs(Irreversible):
    """``no_new_privs``: no exec gives the program or a descendant more than it has, whatever the file's bits say.

    Set-user-ID, set-group-ID and file capabilities lose their effect. There is no way back, and what the caller already
    has on stays on: ``enabled=False`` only leaves it as it is. Needs no privilege. Read back before the program starts.
    Landlock and seccomp filters need it (or CAP_SYS_ADMIN).

    Source: prctl(2), PR_SET_NO_NEW_PRIVS; Linux 3.5.
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


@dataclass(frozen=True)
class SessionKeyring(Irreversible):
    """A session keyring of its own: keyrings belong to no namespace, so the caller's keys would be there to be read.

    The new keyring is anonymous, empty and dies with the last process that has it. It counts against the caller's
    quota of keys (``kernel.keys.maxkeys``: 200 for an ordinary user); the kernel frees keys a little after their last
    user, so an exceeded quota is tried again for up to two seconds. A kernel without keyrings is no error: there is
    nothing to hide. The keyring of the *user* can still be named; deny ``keyctl`` by seccomp to close that too.

    Source: keyctl(2), KEYCTL_JOIN_SESSION_KEYRING.
    """

    enabled: bool = True

    def __post_init__(self) -> None:
        _switch(self, self.enabled)

    def steps(self, context: Context) -> Iterator[Step]:
        """Join a new one before the ids change: it must not belong to whom the program becomes."""
        if not self.enabled:
            return
        serial = Register("keyring")
        again, done = Label(), Label()
        yield Step(
            Phase.KEYRING,
            "a new, empty session keyring",
            (
                call(
                    "keyctl", KEYCTL_JOIN_SESSION_KEYRING, 0, out=serial,
                    errors=(errno.ENOSYS, errno.EDQUOT), policy="jump", label=again,
                ),
                again,
                Test(serial, -errno.EDQUOT, label=done),
                call("keyctl", KEYCTL_JOIN_SESSION_KEYRING, 0, errors=(errno.EDQUOT,), policy="retry"),
                done,
            ),
            hints={
                errno.EDQUOT: "the caller's quota of keys is used up; raise kernel.keys.maxkeys or run fewer at once",
                errno.EPERM: "a seccomp filter forbids keyctl; SessionKeyring(enabled=False) keeps the caller's",
                errno.EACCES: "a security module forbids it; SessionKeyring(enabled=False) keeps the caller's",
            },
        )  # fmt: skip
