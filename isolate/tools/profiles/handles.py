"""Networks and stores: a part holds the object itself, and a profile the name by which it can be found again."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from isolate.errors import IsolateError
from isolate.kernel.checks import nearest
from isolate.kernel.paths import expanded
from isolate.tools.profiles.errors import ProfileError

if TYPE_CHECKING:
    from isolate.images import Image, Store
    from isolate.network.shared import Shared

__all__ = ["image", "network", "network_word", "store", "store_word"]

_STORE = ("path", "map", "share", "read_only")
#: The stores that profiles have opened and that a sandbox still uses.
_open: weakref.WeakValueDictionary[Any, Store] = weakref.WeakValueDictionary()


def network(value: Any, where: str) -> Shared:
    """The network of that name, which another program keeps."""
    from isolate.network import find

    if not isinstance(value, str):
        raise ProfileError(where, f"must be the name of a network, not {value!r}: isolate net create NAME makes one")
    try:
        return find(value)
    except (IsolateError, ValueError) as error:
        raise ProfileError(where, error) from error


def network_word(value: Any, where: str) -> str:
    """The name of a network."""
    name = getattr(value, "name", None)
    if not isinstance(name, str):
        raise ProfileError(where, f"a network without a name belongs to one program: {value!r}; Network(name=…)")
    return name


def store(value: Any, where: str) -> Store:
    """The store at a path: ``"/srv/images"``, or a table with ``path`` and how it is opened; ``map`` is an IdMap."""
    from isolate.images import Store

    table = {"path": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not isinstance(table.get("path", ""), str):
        raise ProfileError(where, f"must be the path of a store, or a table with it, not {value!r}")
    for key in table:
        if key not in _STORE:
            raise ProfileError(f"{where}.{key}", f"there is no such key{nearest(key, _STORE)}")
    given: dict[str, Any] = dict(table)
    try:
        path = os.path.abspath(expanded(given.pop("path", None) or default()))
    except FileNotFoundError as error:
        raise ProfileError(where, f"{error.filename}: {error.strerror}") from error
    if not os.path.isdir(path):
        raise ProfileError(where, f"there is no store at {path}; isolate image pull --store DIR makes one")
    for key, more in (("share", "contents"), ("read_only", None)):
        if not isinstance(given.get(key, False), bool) and (more is None or given[key] != more):
            words = "true or false" if more is None else f'true, false or "{more}"'
            raise ProfileError(f"{where}.{key}", f"must be {words}, not {given[key]!r}")
    known = (path, tuple(sorted(given.items())))
    found = _open.get(known)
    if found is None or found.opened.fd < 0:
        try:
            found = Store(path, **given)
        except IsolateError as error:
            raise ProfileError(where, error) from error
        weakref.finalize(found, found.opened.close)
        _open[known] = found
    return found


def default() -> str:
    """The store that the command line uses where none is named."""
    from isolate.images.holding import DEFAULT_STORE

    return os.environ.get("ISOLATE_STORE") or DEFAULT_STORE


def store_word(value: Store) -> dict[str, Any]:
    """The arguments of a store, to be written: its path, and what is not as usual."""
    given = {"path": value.path, "map": value.trees.map, "share": value.trees.share, "read_only": value.read_only}
    return {key: each for key, each in given.items() if each}


def image(value: Any, store: Store, where: str) -> Image:
    """The image of a name or a digest in a store."""
    if not isinstance(value, str):
        raise ProfileError(where, f"must be the name or the digest of an image, not {value!r}")
    try:
        return store.open(value)
    except (IsolateError, ValueError) as error:
        raise ProfileError(where, error) from error
