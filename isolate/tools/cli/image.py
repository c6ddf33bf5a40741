"""``isolate image``: a thin dress of :class:`isolate.images.Store`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isolate.errors import IsolateError, printable, printable_lines
from isolate.images import LayerError, Reference, Registry, Store
from isolate.images.comparing import compare
from isolate.images.image import Image
from isolate.images.sharing import saved
from isolate.kernel.checks import nearest
from isolate.tools.cli.showing import amount, colour, counted, progress, short, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from isolate.images.pack.change import Changes

__all__ = ["image", "open_store"]

EXIT_FAILED = 1


def open_store(path: str | None, *, read_only: bool = False) -> Store:
    """The store that the options or the environment name."""
    place = path or os.environ.get("ISOLATE_STORE")
    return Store(place, read_only=read_only) if place else Store(read_only=read_only)


def image(options: argparse.Namespace) -> int:
    """Run a command of ``isolate image``; its exit status."""
    command = _COMMANDS[options.image_command]
    try:
        with open_store(options.store) as store:
            return command(store, options)
    except IsolateError as error:
        if options.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        else:
            print(f"isolate: {printable_lines(str(error))}", file=sys.stderr)
        return EXIT_FAILED


def _say(options: argparse.Namespace, document: Any, text: str) -> int:
    print(json.dumps(document, default=str) if options.json else printable_lines(text))
    return 0


def _registry(options: argparse.Namespace, name: str) -> Registry:
    plain = True if options.plain_http else None
    return Registry(
        Reference.parse(name).registry, mirrors=options.mirror, plain_http=plain, ca=options.ca, timeout=options.timeout
    )


def _row(store: Store, found: Image) -> dict[str, Any]:
    return {
        "digest": found.digest,
        "id": found.id,
        "platform": str(found.platform),
        "created": found.created,
        "layers": [{"digest": d.digest, "diffid": d.diffid, "size": d.size} for d in found.layers],
        "size": sum(layer.size for layer in found.layers),
    }


def _pull(store: Store, options: argparse.Namespace) -> int:
    rows, lines = [], []
    for name in options.names:
        with _registry(options, name) as registry, progress(options.quiet or options.json) as show:
            found = store.pull(
                name, registry=registry, platform=options.platform, unpack=not options.no_unpack, progress=show
            )
        rows.append({"name": str(Reference.parse(name)), **_row(store, found)})
        lines.append(f"{Reference.parse(name).short} {found.digest}")
    return _say(options, rows, "\n".join(lines))


def _push(store: Store, options: argparse.Namespace) -> int:
    target = store.named(options.name) if options.target is None else Reference.parse(options.target)
    with _registry(options, str(target)) as registry, progress(options.quiet or options.json) as show:
        found = store.open(options.name)
        sent = store.push(found, registry, str(target), compression=options.compression, progress=show)
    text = (
        f"{sent.reference.short} {sent.digest}\n{amount(sent.bytes)} sent: {sent.uploaded} uploaded, "
        f"{sent.mounted} mounted, {sent.skipped} there already"
    )
    return _say(options, {**asdict(sent), "reference": str(sent.reference)}, text)


def _load(store: Store, options: argparse.Namespace) -> int:
    with progress(options.quiet or options.json) as show:
        source = sys.stdin.buffer if options.source == "-" else options.source
        try:
            found = store.load(source, options.name, unpack=not options.no_unpack, progress=show)
        except LayerError as error:
            # The archive as a whole has no name there: use the file's.
            raise LayerError(error.entry or os.fsencode(options.source), error.rule) from error
    names: dict[str, list[str]] = {}
    for reference, digest in store.tags().items():
        names.setdefault(digest, []).append(reference.short)
    rows = [{"names": names.get(one.digest, []), **_row(store, one)} for one in found]
    return _say(options, rows, "\n".join(" ".join([*row["names"], row["digest"]]) for row in rows))


def _save(store: Store, options: argparse.Namespace) -> int:
    with progress(options.quiet or options.json) as show:
        if options.output == "-":
            if sys.stdout.isatty():
                raise ValueError("an archive is not written to a terminal: -o FILE, or a pipe")
            store.save(options.names, sys.stdout.buffer, format=options.format, progress=show)
            return 0
        store.save(options.names, options.output, format=options.format, progress=show)
    return _say(options, {"saved": options.names, "output": options.output}, options.output)


def _ls(store: Store, options: argparse.Namespace) -> int:
    rows = []
    for reference, digest in store.tags().items():
        row: dict[str, Any] = {"name": reference.short, "digest": digest}
        try:
            row |= _row(store, store.open(digest))
        except IsolateError as error:
            row["fault"] = str(error).splitlines()[0]  # such as an index without this machine's image
        rows.append(row)
    lines = [["NAME", "DIGEST", "LAYERS", "SIZE", "PLATFORM", "CREATED"]]
    for row in rows:
        layers, size = str(len(row.get("layers", ()))), amount(row.get("size"))
        lines.append(
            [
                row["name"],
                short(row["digest"]),
                layers,
                size,
                row.get("platform", "?"),
                (row.get("created") or "?")[:10],
            ]
        )
    return _say(options, rows, table(lines))


def _tag(store: Store, options: argparse.Namespace) -> int:
    made = store.tag(options.name, options.new)
    return _say(options, {"name": str(made), "digest": store.tags()[made]}, made.short)


def _untag(store: Store, name: str) -> bool:
    """Take a name away; where a digest is begun that ``ls`` shows, the only name that stands for it."""
    if store.untag(name):
        return True
    digest = store.begun(name)
    own = [reference for reference, one in store.tags().items() if one == digest]
    if len(own) > 1:
        words = ", ".join(reference.short for reference in own)
        raise ValueError(f"{printable(name)} has {len(own)} names; say which of them goes: {words}")
    return bool(own) and store.untag(own[0])


def _rm(store: Store, options: argparse.Namespace) -> int:
    missing = [name for name in options.names if not _untag(store, name)]
    # A word that was mistyped removes nothing, also not what another program is about to name.
    done = None if options.keep_data or len(missing) == len(options.names) else store.collect()
    document = {"missing": missing, "collected": None if done is None else asdict(done)}
    text = (
        ""
        if done is None
        else f"{counted(done.layers, 'layer')} and {counted(done.blobs, 'blob')} removed, {amount(done.bytes)}"
    )
    if text or options.json:
        _say(options, document, text)
    for name in missing:
        hint = nearest(name, [own.short for own in store.tags()])
        print(f"isolate: no image is named {printable(name)}{hint}", file=sys.stderr)
    return EXIT_FAILED if missing else 0


def _inspect(store: Store, options: argparse.Namespace) -> int:
    found = store.open(options.name)
    document = {**_row(store, found), "manifest": json.loads(found.manifest), "config": json.loads(found.document)}
    print(json.dumps(document, indent=None if options.json else 2))  # escaped: it is somebody else's text
    return 0


def _history(store: Store, options: argparse.Namespace) -> int:
    found = store.open(options.name)
    sizes = iter([layer.size for layer in found.layers])
    rows = [{**asdict(step), "size": 0 if step.empty else next(sizes, 0)} for step in found.history]
    rows += [{"created_by": "", "size": size} for size in sizes]
    lines = [["CREATED", "SIZE", "BY"]]
    for row in reversed(rows):
        words = str(row.get("created_by") or row.get("comment") or "").replace("\n", " ")
        lines.append([str(row.get("created") or "?")[:10], amount(row["size"]), words[:100]])
    return _say(options, rows, table(lines))


def _tree(store: Store, options: argparse.Namespace) -> int:
    """Images under the layers that they share, the lowest first, with what sharing saves."""
    tags = store.tags()
    images: dict[str, Image] = {}
    for name in options.names or tags:
        shown = name if isinstance(name, str) and store.begun(name) is not None else Reference.parse(name).short
        images[shown] = store.open(name)
    users: dict[tuple[str, ...], list[str]] = {}
    sizes: dict[str, int] = {}
    for name, one in images.items():
        for index, layer in enumerate(one.layers):
            users.setdefault(one.diffids[: index + 1], []).append(name)
            sizes[layer.diffid] = layer.size
    alone = sum(layer.size for one in images.values() for layer in one.layers)
    shared = sum(sizes.values())
    lines: list[str] = []

    def draw(stack: tuple[str, ...], indent: str) -> None:
        for name in [name for name, one in images.items() if one.diffids == stack]:
            lines.append(f"{indent}= {name}")
        below = dict.fromkeys(s for s in users if len(s) == len(stack) + 1 and s[:-1] == stack)
        for one in below:
            count = len(users[one])
            note = f"  shared by {count}" if count > 1 else ""
            lines.append(f"{indent}+ {short(one[-1])} {amount(sizes[one[-1]])}{note}")
            draw(one, indent + "  ")

    draw((), "")
    lines.append(f"{counted(len(images), 'image')}: {amount(shared)} of layers, {amount(alone)} if each had its own")
    contents = store.opened.contents()
    files = saved(store.opened.objects_fd) + (0 if contents is None else saved(contents))
    if files:
        lines.append(f"{amount(files)} on disk saved by files that layers of the store share")
    document = {
        "images": {name: list(one.diffids) for name, one in images.items()},
        "sizes": sizes,
        "bytes": shared,
        "bytes_without_sharing": alone,
        "bytes_saved_by_files": files,
    }
    return _say(options, document, "\n".join(lines))


def _diff(store: Store, options: argparse.Namespace) -> int:
    old = store.open(options.old)
    if options.new is not None:
        new = store.open(options.new)
    else:
        # The changes of the uppermost layer to those below.
        new, old = old, Image.empty(old.platform)
        for layer in new.layers[:-1]:
            old += layer
    changes: Changes = compare(store, old, new)
    rows = [{"kind": c.kind, "path": os.fsdecode(c.path), "bytes": c.bytes} for c in changes]
    if options.json:
        print(json.dumps(rows))
    else:
        for change in changes:
            print(colour(change.kind, f"{change}"))
    return 0


def _collect(store: Store, options: argparse.Namespace) -> int:
    with progress(options.quiet or options.json) as show:
        done = store.collect(progress=show)
    text = (
        f"{counted(done.layers, 'layer')}, {counted(done.blobs, 'blob')} and {counted(done.leftovers, 'leftover')} "
        f"removed, {amount(done.bytes)}; "
        f"{done.in_use} in use"
    )
    for reason in done.failed:
        print(f"isolate: {printable_lines(reason)}", file=sys.stderr)
    _say(options, asdict(done), text)
    return EXIT_FAILED if done.failed else 0


def _check(store: Store, options: argparse.Namespace) -> int:
    with progress(options.quiet or options.json or not options.deep) as show:
        faults = store.check(deep=options.deep, progress=show)
    _say(options, [asdict(fault) for fault in faults], "\n".join(map(str, faults)) or "nothing is wrong")
    return EXIT_FAILED if faults else 0


_COMMANDS: dict[str, Callable[[Store, argparse.Namespace], int]] = {
    "pull": _pull,
    "push": _push,
    "load": _load,
    "save": _save,
    "ls": _ls,
    "tag": _tag,
    "rm": _rm,
    "inspect": _inspect,
    "history": _history,
    "tree": _tree,
    "diff": _diff,
    "collect": _collect,
    "check": _check,
}
