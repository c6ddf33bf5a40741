"""RUN: a command in a sandbox over the image so far; what it changed becomes a layer."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from typing import TYPE_CHECKING, Any, Final

from isolate.attributes.credentials import Credentials
from isolate.build.errors import BuildError
from isolate.build.mounting import caches, mounted
from isolate.capabilities import Capabilities
from isolate.images.accounts import account
from isolate.images.root import ImageRoot
from isolate.images.upper import Upper
from isolate.mounts import Dev, File, Proc, Root, Tmpfs
from isolate.namespaces import (
    CgroupNamespace,
    IpcNamespace,
    MountNamespace,
    NetNamespace,
    PidNamespace,
    UserNamespace,
    UtsNamespace,
)
from isolate.namespaces.ids import IdMap
from isolate.sandbox.box import Sandbox
from isolate.seccomp import Seccomp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.build.context import Files
    from isolate.build.instructions import Mount
    from isolate.engine.plan import Part
    from isolate.images.image import Image
    from isolate.images.layer import Layer
    from isolate.images.store import Store

__all__ = ["Command", "run", "seed"]

_TAIL: Final = 4000
_PIPES: Final = "/dev/pipes"


class Command:
    """One RUN, with everything expanded."""

    def __init__(
        self,
        words: tuple[str, ...],
        env: Mapping[str, str],
        *,
        network: bool,
        mounts: tuple[tuple[Mount, Files | None], ...] = (),
        script: tuple[str, bytes] | None = None,
        secrets: Mapping[str, bytes] | None = None,
        parts: tuple[Part, ...] = (),
        timeout: float | None = None,
    ) -> None:
        self.words: tuple[str, ...] = words
        self.env: Mapping[str, str] = env
        self.network: bool = network
        self.mounts: tuple[tuple[Mount, Files | None], ...] = mounts
        self.script: tuple[str, bytes] | None = script
        self.secrets: Mapping[str, bytes] = secrets or {}
        self.parts: tuple[Part, ...] = parts
        self.timeout: float | None = timeout


def run(command: Command, image: Image, store: Store, output: Any = None) -> Layer:
    """Run it, and commit what it changed.

    :raises BuildError: it failed; with the end of its output. :raises SetupError: the host cannot run it.
    """
    if not image.diffids:
        raise BuildError("the image has no file yet, so there is nothing to run: COPY a program, or begin FROM a base")
    who = account(image, store)
    with contextlib.ExitStack() as stack, Upper(store) as upper:
        entries = list(mounted(command.mounts, command.secrets, store, stack, seconds=command.timeout))
        user: Part
        if os.geteuid() == 0:
            user = UserNamespace(map=store.trees.map or IdMap.unprivileged())
        elif store.trees.map is not None:
            user = UserNamespace(map=store.trees.map)
        else:
            user = UserNamespace(uid=who.uid, gid=who.gid)
        groups = who.groups if os.geteuid() == 0 or store.trees.map is not None else ()
        env = dict(command.env)
        env.setdefault("HOME", who.home or "/")
        if command.script is not None:
            name, data = command.script
            entries += [Tmpfs(_PIPES, size="1M"), File(f"{_PIPES}/{name}", data, mode=0o755)]
        root = Root(ImageRoot(image, store=store, writable=upper), Proc(), Dev(), *entries)
        parts: list[Part] = [
            user,
            Credentials(uid=who.uid, gid=who.gid, groups=groups),
            MountNamespace(),
            PidNamespace(),
            IpcNamespace(),
            UtsNamespace(hostname="build"),
            CgroupNamespace(),
            root,
            Capabilities.docker(),
            Seccomp.default(),
        ]
        kinds = {type(part) for part in command.parts}
        parts = [part for part in parts if type(part) not in kinds] + list(command.parts)
        if not command.network and not any(isinstance(part, NetNamespace) for part in parts):
            parts.append(NetNamespace())
        where = image.config.workdir or "/"
        result = Sandbox(*parts).run(
            command.words,
            env=env,
            cwd=where,
            timeout=command.timeout,
            max_output="16M",
            stderr=-2,
        )
        if output is not None and result.stdout:
            output(result.stdout)
        if not result.ok:
            text = (result.stdout or b"")[-_TAIL:].decode(errors="backslashreplace")
            raise BuildError(
                f"the command {' '.join(map(repr, command.words))[:300]} ended with {result.verdict.value}"
                f" ({result.returncode})",
                output=text,
            )
        return upper.commit(epoch=0)


def seed(store: Store) -> bytes:
    """Random bytes of this store's own, in every key of a cached step: nobody who hands an image over can name it so
    that it is taken for one."""
    place = caches(store)
    where = os.path.join(place, "seed")
    if not os.path.exists(where):
        fd, path = tempfile.mkstemp(dir=place)
        try:
            with open(fd, "wb") as file:
                file.write(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):  # another build was first
                os.link(path, where)
        finally:
            os.unlink(path)
    with open(where, "rb") as file:
        return file.read(32)
