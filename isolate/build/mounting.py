"""``RUN --mount``: what stands there while a command runs, and is in no layer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from typing import TYPE_CHECKING, Any, Final

from isolate.build.copying import Plan, copy_into
from isolate.build.errors import BuildError
from isolate.images.confined.remove import remove_tree
from isolate.images.disk import lock, new_directory, open_directory, rename_new, subdirectory, try_lock
from isolate.images.errors import StoreError
from isolate.images.image import Image
from isolate.images.root import ImageRoot
from isolate.images.unpack.start import extract
from isolate.mounts import Bind, Tmpfs
from isolate.namespaces.ids import IdMap, is_host_root, outside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from isolate.build.context import Files
    from isolate.build.instructions import Mount
    from isolate.images.store import Store

__all__ = ["caches", "content", "mounted"]

_LOCKED: Final = 3600.0  # seconds for a cache that another step has, where a step may take as long as it does
_PIECE: Final = 1 << 20
_MOST_PRIVATE: Final = 1000


def caches(store: Store) -> str:
    """The directory of a store in which its caches are."""
    return _made(os.path.join(store.path, "caches"))


def _made(path: str) -> str:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return path


def content(mount: Mount, files: Files | None) -> str | None:
    """The digest of what a mount shows, for the key; None where that is nothing of a source."""
    return None if files is None else _plan(mount, files)[0].digest()


def _plan(mount: Mount, files: Files) -> tuple[Plan, bytes, os.stat_result | None]:
    """The content with its owners; the source, and its kind (None: the top)."""
    source = files.followed(os.fsencode((mount.source or "").strip("/")))
    plan = Plan(None, owner=None)
    copy_into(plan, files, [source], b"", directory=True)
    return plan, source, files.look(source) if source else None


def mounted(
    mounts: Iterable[tuple[Mount, Files | None]],
    secrets: Mapping[str, bytes],
    store: Store,
    stack: contextlib.ExitStack,
    *,
    seconds: float | None,
) -> Iterator[Any]:
    """The entries of a root for the mounts of a command. What they need lasts as long as the stack.

    :raises BuildError: a secret that is required was not given; a cache is in use for longer than ``seconds``.
    """
    mapped = is_host_root()  # then each file has the same owner in a cache as inside
    ids = None if mapped else store.trees.map
    for mount, files in mounts:
        target = mount.target or f"/run/secrets/{os.path.basename(mount.id or '')}"
        if mount.kind == "tmpfs":
            mode = 0o1777 if mount.mode is None else mount.mode
            yield Tmpfs(target, size=mount.size or "256M", mode=mode, read_only=bool(mount.read_only))
        elif mount.kind == "cache":
            path, owner = _cache(mount, files, store, stack, seconds)
            _give(path, owner, ids)
            yield Bind(path, target, read_only=bool(mount.read_only), idmap=mapped)
        elif mount.kind == "secret":
            data = secrets.get(mount.id or "")
            if data is None:
                if mount.required:
                    raise BuildError(f"the secret {mount.id!r} is required and was not given")
                continue
            if mount.env is None or mount.target is not None:
                path = _secret(data, stack)
                # Its file system may know no id maps (tmpfs before Linux 6.3), so it is the host's id that has it.
                _give(path, _given(mount, 0o400), store.trees.map or (IdMap.unprivileged() if mapped else None))
                yield Bind(path, target, read_only=True, idmap=False)
        else:
            assert files is not None
            plan, source, found = _plan(mount, files)
            if found is None or stat.S_ISDIR(found.st_mode):
                # As an image of one layer: nothing of the host's is mounted.
                tree = store.add(Image.empty() + plan.layer())
                yield ImageRoot(tree, target, store=store, read_only=bool(mount.read_only))
            else:
                path = _copied(files, source, store, stack)
                _give(path, (*files.owner(source, found), stat.S_IMODE(found.st_mode)), ids)
                yield Bind(path, target, read_only=bool(mount.read_only), idmap=mapped)


def _given(mount: Mount, usual: int) -> tuple[int, int, int]:
    """The owner and the mode that it says, root and ``usual`` where it says nothing."""
    return mount.uid or 0, mount.gid or 0, usual if mount.mode is None else mount.mode


def _give(path: str, owner: tuple[int, int, int], map: IdMap | None) -> None:
    """The owner (user, group) and the mode that a file or a directory is to have inside.

    Who may give nothing away lets every id inside do what the owner may. The directory that it lies in keeps others
    out, whatever its own mode is.

    :param map: what the ids inside are for the file; None where they are the same.
    """
    uid, gid, mode = owner
    if map is not None:
        uid, gid = outside(map.uids, uid), outside(map.gids, gid)
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


def _copied(files: Files, source: bytes, store: Store, stack: contextlib.ExitStack) -> str:
    """A file of a source, for this step alone: what is written to it goes with the step."""
    path = os.path.join(_passing(caches(store), "file-", stack), "file")
    with open(path, "wb") as file, open(files.read(source), "rb") as written:
        while piece := written.read(_PIECE):
            file.write(piece)
    os.utime(path, (0, 0))  # as all files of a source have it
    return path


# ---- caches ----------------------------------------------------------------------------------------------------------


def _cache(
    mount: Mount, files: Files | None, store: Store, stack: contextlib.ExitStack, seconds: float | None
) -> tuple[str, tuple[int, int, int]]:
    """A directory that outlives the step and is in no layer, and the owner and mode of its top.

    ``locked``: one step at a time has it. The others wait as long as a step may take, or an hour. ``private``: nobody
    else has it now; one that is free is taken, or another begun.

    With a source it begins as a copy of that; for another content it is another cache.
    """
    words = [(mount.id or mount.target or "").encode()]
    owner = _given(mount, 0o755)
    plan: Plan | None = None
    if files is not None:
        plan, source, found = _plan(mount, files)
        if found is not None:
            if not stat.S_ISDIR(found.st_mode):
                raise BuildError(f"source={mount.source}: a cache begins as a directory, and this is none")
            uid, gid = files.owner(source, found)
            mode = stat.S_IMODE(found.st_mode) if mount.mode is None else mount.mode
            owner = (uid if mount.uid is None else mount.uid, gid if mount.gid is None else mount.gid, mode)
        words.append(plan.digest().encode())
    name = hashlib.sha256(b"\0".join(words)).hexdigest()[:32]
    if mount.sharing == "private":
        return _free(name, plan, store, stack), owner
    path = _begun(name, plan, store, stack)
    if mount.sharing == "locked":
        fd = open_directory(path)
        stack.callback(os.close, fd)
        limit = _LOCKED if seconds is None else seconds
        try:
            lock(fd, exclusive=True, seconds=limit, what=f"the cache {mount.id or mount.target}")
        except StoreError as error:
            raise BuildError(f"{error}") from error
    return path, owner


def _free(name: str, plan: Plan | None, store: Store, stack: contextlib.ExitStack) -> str:
    """The first of the caches of that name that no other step has; it is locked as long as the stack lasts."""
    for number in range(_MOST_PRIVATE):
        path = _begun(f"{name}.{number}", plan, store, stack)
        fd = open_directory(path)
        if try_lock(fd, exclusive=True):
            stack.callback(os.close, fd)
            return path
        os.close(fd)
    raise BuildError(f"{_MOST_PRIVATE} steps have a private cache of one name")


def _begun(name: str, plan: Plan | None, store: Store, stack: contextlib.ExitStack) -> str:
    """The cache of that name, made where there is none: empty, or what a plan says. One that is there is whole."""
    place = caches(store)
    path = os.path.join(place, name)
    if plan is None:
        return _made(path)
    if os.path.isdir(path):
        return path
    whole = os.path.basename(_passing(place, "begun-", stack, store.trees.map))
    at = open_directory(place)
    try:
        above = open_directory(whole, at)
        try:
            tree = subdirectory(above, "tree")
            try:
                layer = plan.layer()
                with layer.open() as archive:
                    extract(archive, tree, map=store.trees.map, digest=layer.digest)
            finally:
                os.close(tree)
            rename_new(above, "tree", at, name)  # or another step was first
        finally:
            os.close(above)
    finally:
        os.close(at)
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
