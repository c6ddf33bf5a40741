"""RUN: a command in a sandbox over the image so far; what it changed becomes a layer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from typing import TYPE_CHECKING, Any, Final

from isolate.attributes.credentials import Credentials
from isolate.build.copying import Plan, copy_into
from isolate.build.errors import BuildError
from isolate.capabilities import Capabilities
from isolate.images.accounts import account
from isolate.images.confined.remove import remove_tree
from isolate.images.disk import lock, new_directory, open_directory, try_lock
from isolate.images.errors import StoreError
from isolate.images.image import Image
from isolate.images.root import ImageRoot
from isolate.images.upper import Upper
from isolate.mounts import Bind, Dev, File, Proc, Root, Tmpfs
from isolate.namespaces import (
    CgroupNamespace,
    IpcNamespace,
    MountNamespace,
    NetNamespace,
    PidNamespace,
    UserNamespace,
    UtsNamespace,
)
from isolate.namespaces.ids import IdMap, is_host_root, outside
from isolate.sandbox.box import Sandbox
from isolate.seccomp import Seccomp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from isolate.build.context import Files
    from isolate.build.instructions import Mount
    from isolate.engine.plan import Part
    from isolate.images.layer import Layer
    from isolate.images.store import Store

__all__ = ["Command", "run", "seed"]

_TAIL: Final = 4000
_PIPES: Final = "/dev/pipes"
_LOCKED: Final = 3600.0  # seconds for a cache that another step has, where a step may take as long as it does


class Command:
    """What one RUN is, with everything expanded."""

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
        entries = list(_mounts(command, store, stack))
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


def _mounts(command: Command, store: Store, stack: contextlib.ExitStack) -> Iterator[Any]:
    for mount, files in command.mounts:
        target = mount.target or f"/run/secrets/{mount.id}"
        if mount.kind == "tmpfs":
            yield Tmpfs(target, size=mount.size or "256M", mode=mount.mode if mount.mode is not None else 0o1777)
        elif mount.kind == "cache":
            path = _cache(mount, command, store, stack)
            mapped = is_host_root()  # then each file has the same owner in the cache as inside
            _give(path, mount, 0o755, None if mapped else store.trees.map)
            yield Bind(path, target, read_only=mount.read_only, idmap=mapped)
        elif mount.kind == "secret":
            data = command.secrets.get(mount.id or "")
            if data is None:
                if mount.required:
                    raise BuildError(f"the secret {mount.id!r} is required and was not given")
                continue
            if mount.env is None or mount.target is not None:
                path = _secret(data, stack)
                # Its file system may know no id maps (tmpfs before Linux 6.3), so it is the host's id that has it.
                _give(path, mount, 0o444, store.trees.map or (IdMap.unprivileged() if is_host_root() else None))
                yield Bind(path, target, read_only=True, idmap=False)
        else:
            assert files is not None
            yield ImageRoot(_tree(mount, files, store), target, store=store, read_only=mount.read_only)


def _give(path: str, mount: Mount, usual: int, map: IdMap | None) -> None:
    """The owner and the mode that a cache or a secret is to have inside.

    Who may give nothing away lets every id inside do what the owner may. The directory that it lies in keeps others
    out, whatever its own mode is.

    :param map: what the ids inside are for the file; None where they are the same.
    """
    mode = usual if mount.mode is None else mount.mode
    uid, gid = (mount.uid, mount.gid) if map is None else (outside(map.uids, mount.uid), outside(map.gids, mount.gid))
    try:
        if map is not None or os.geteuid() == 0:  # else there is one id inside, which is the owner
            os.chown(path, uid, gid)
    except OSError:
        mode |= (mode >> 6 & 7) * 0o11
    os.chmod(path, mode)


def _secret(data: bytes, stack: contextlib.ExitStack) -> str:
    """A file in memory that only this user and the sandbox can read; gone when the step is."""
    where = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    path = os.path.join(_passing(where, "isolate-secret-", stack), "secret")
    with open(path, "wb") as file:
        file.write(data)
    return path


def _cache(mount: Mount, command: Command, store: Store, stack: contextlib.ExitStack) -> str:
    """A directory that outlives the step and is in no layer.

    ``locked``: one step at a time has it. The others wait as long as a step may take, or an hour.
    """
    name = hashlib.sha256((mount.id or mount.target or "").encode()).hexdigest()[:32]
    caches = _made(os.path.join(store.path, "caches"))
    if mount.sharing == "private":
        return _passing(caches, "private-", stack, store.trees.map)
    path = _made(os.path.join(caches, name))
    if mount.sharing == "locked":
        fd = open_directory(path)
        stack.callback(os.close, fd)
        seconds = _LOCKED if command.timeout is None else command.timeout
        try:
            lock(fd, exclusive=True, seconds=seconds, what=f"the cache {mount.id or mount.target}")
        except StoreError as error:
            raise BuildError(f"{error}") from error
    return path


def _passing(place: str, prefix: str, stack: contextlib.ExitStack, ids: IdMap | None = None) -> str:
    """A new directory that goes when the step does. What builds that were killed have left of that kind goes now."""
    at = open_directory(place)
    stack.callback(os.close, at)
    for name in os.listdir(at):
        if name.startswith(prefix):
            _sweep(at, name, ids)
    name, fd = new_directory(at, prefix)
    stack.callback(os.close, fd)  # it is locked until then
    stack.callback(_remove, at, name, ids)
    return os.path.join(place, name)


def _sweep(at: int, name: str, ids: IdMap | None) -> None:
    try:
        fd = open_directory(name, at)
    except OSError:
        return  # it has just gone, or is another user's
    try:
        if os.fstat(fd).st_uid == os.geteuid() and try_lock(fd, exclusive=True):
            _remove(at, name, ids)
    finally:
        os.close(fd)


def _remove(at: int, name: str, ids: IdMap | None) -> None:
    """However deep, and whoever owns what programs left in it; what cannot be removed is the next build's."""
    with contextlib.suppress(StoreError):
        remove_tree(at, os.fsencode(name), ids)


def seed(store: Store) -> bytes:
    """Random bytes of this store's own, in every key of a cached step: nobody who hands an image over can name it so
    that it is taken for one."""
    caches = _made(os.path.join(store.path, "caches"))
    where = os.path.join(caches, "seed")
    if not os.path.exists(where):
        fd, path = tempfile.mkstemp(dir=caches)
        try:
            with open(fd, "wb") as file:
                file.write(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):  # another build was first
                os.link(path, where)
        finally:
            os.unlink(path)
    with open(where, "rb") as file:
        return file.read(32)


def _made(path: str) -> str:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return path


def _tree(mount: Mount, files: Files, store: Store) -> Image:
    """A bind of a directory as an image of one layer: nothing of the host's is mounted."""
    source = files.followed(os.fsencode((mount.source or "").strip("/")))
    plan = Plan(None)
    copy_into(plan, files, [source], b"", directory=True)
    return store.add(Image.empty() + plan.layer())
