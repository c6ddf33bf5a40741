"""The child's side: one task, one answer. It imports as little as it can: it is started for every layer."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from isolate.images.confined.words import CONTENTS, FACTS, KNOWN, LOWER, OUT, TARGET, data, text
from isolate.images.errors import LayerError

if TYPE_CHECKING:
    from isolate.images.facts import Facts
    from isolate.images.pack.start import Written

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Do the task, and answer on standard output."""
    os.umask(0)
    try:
        task, options = arguments[0], json.loads(arguments[1])
        answer: dict[str, Any] = {"done": _TASKS[task](options)}
    except LayerError as error:
        cause = error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        answer = {"layer": [text(error.entry), error.rule, number]}
    except OSError as error:
        answer = {"os": [error.errno, str(error)]}
    except MemoryError:
        answer = {"layer": ["", "it takes more memory than the child may have", None]}
    except RecursionError:
        answer = {"layer": ["", "it is nested too deeply", None]}
    rest = json.dumps(answer).encode()
    while rest:
        rest = rest[os.write(1, rest) :]
    os._exit(0)  # nothing is left to do, and taking the interpreter down takes as long as starting it


def _extract(options: dict[str, Any]) -> dict[str, Any]:
    from isolate.images.facts import Facts
    from isolate.images.unpack.owners import Owners
    from isolate.images.unpack.place import Placer
    from isolate.images.unpack.read import Pass, reader, unpack

    placer = Placer(
        TARGET,
        owners=Owners(options["uids"], options["gids"]),
        limits=tuple(options["limits"]),
        devices=options["devices"],
        lower=range(LOWER, LOWER + options["lower"]),
        known=_facts(options, KNOWN) if options["facts"] else (),
        follow=options["follow"],
        contents=_contents(options),
        layer=options["layer"],
    )
    archive = Pass(reader(0), options["compression"], tuple(options["limits"]))
    unpack(archive, placer, ended=options["ended"])
    with open(FACTS, "wb", closefd=False) as file:
        file.write(Facts(placer.facts).to_bytes())
    return {
        "digest": archive.digest,
        "diffid": archive.diffid,
        "packed": archive.packed,
        "size": archive.size,
        "compression": archive.compression,
        "entries": len(placer.known) - 1,
        "bytes": placer.size,
        "replaced": [[text(a), text(b)] for a, b in placer.replaced],
        "lower": [text(name) for name in placer.from_lower],
        "left_out": len(placer.left_out),
        "implied": [] if options["layer"] else [text(name) for name in placer.left_out],
    }


def _pack(options: dict[str, Any]) -> dict[str, Any]:
    from isolate.images.pack.start import write_layer

    facts = _facts(options)
    known = facts[0] if facts else None
    return _said(write_layer(TARGET, OUT, epoch=options["epoch"], facts=known, contents=_contents(options)))


def _contents(options: dict[str, Any]) -> int | None:
    return CONTENTS if options["contents"] else None


def _facts(options: dict[str, Any], held: int = FACTS) -> list[Facts]:
    from isolate.images.facts import Facts

    with open(held, "rb", closefd=False) as file:
        return [Facts(file.read(size)) for size in options["facts"]]


def _diff(options: dict[str, Any]) -> dict[str, Any]:
    from isolate.images.pack.start import compare

    lower = range(LOWER, LOWER + options["lower"])
    out = OUT if options["out"] else None
    stubs = [data(path) for path in options["stubs"]]
    done, written = compare(
        TARGET,
        lower,
        _facts(options),
        contents=_contents(options),
        upper=options["upper"],
        stubs=stubs,
        out=out,
        epoch=options["epoch"],
        limits=options["limits"],
    )
    changes = [[text(change.path), change.kind, change.bytes] for change in done.changes]
    return {"changes": changes, "left": [], **(_said(written) if written else {})}


def _said(written: Written) -> dict[str, Any]:
    return {"diffid": written.diffid, "size": written.size, "left": [text(path) for path in written.left_out]}


def _remove(options: dict[str, Any]) -> dict[str, Any]:
    from isolate.kernel.trees import remove_here

    remove_here(TARGET, data(options["name"]))
    return {}


def _share(options: dict[str, Any]) -> dict[str, Any]:
    from isolate.images.sharing import share_here

    done = share_here(TARGET, FACTS)
    return {"files": done.files, "bytes": done.bytes}


def _outline(_: dict[str, Any]) -> dict[str, Any]:
    from isolate.images.contents import outline_here

    done = outline_here(TARGET, CONTENTS, OUT)
    return {"files": done.files, "bytes": done.bytes}


_TASKS = {
    "extract": _extract,
    "pack": _pack,
    "diff": _diff,
    "remove": _remove,
    "share": _share,
    "outline": _outline,
}
