"""From options to parts: nothing here that a user could not write with the public names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from isolate.kernel.checks import nearest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from isolate.engine.plan import Part
    from isolate.sandbox.box import Sandbox

__all__ = ["environment", "sandbox"]


def _entries(options: argparse.Namespace) -> list[Any]:
    from isolate import mounts

    made: list[Any] = []
    for kind, values in getattr(options, "entries", None) or []:
        if kind in ("ro_bind", "bind", "overlay"):
            values = [os.path.abspath(values[0]), values[1]]  # the caller's files: from where the caller stands
        if kind == "ro_bind":
            made.append(mounts.Bind(*values))
        elif kind == "bind":
            made.append(mounts.Bind(*values, read_only=False))
        elif kind == "tmpfs":
            made.append(mounts.Tmpfs(values[0], size=options.tmpfs_size))
        elif kind == "overlay":
            made.append(mounts.Overlay(values[1], lower=(values[0],)))
        elif kind == "symlink":
            made.append(mounts.Symlink(*values))
        else:
            made.append(getattr(mounts, kind.capitalize())(values[0]))
    return made


def _limits(options: argparse.Namespace) -> Part | None:
    given = {name: getattr(options, name) for name in ("memory", "pids", "cpu") if getattr(options, name) is not None}
    if not given:
        return None
    from isolate.cgroups import Limits

    return Limits(**given)


def sandbox(options: argparse.Namespace) -> Sandbox:
    """The sandbox that the options describe."""
    from isolate.sandbox.box import Sandbox

    limits: Any = _limits(options)
    if getattr(options, "profile", None) is not None:
        box = _of_profile(options, [] if limits is None else [limits])
    elif getattr(options, "image", None) is not None:
        box = _of_image(options, [] if limits is None else [limits])
    elif options.root is not None:
        from isolate import presets

        extra = [] if limits is None else [limits]
        box = presets.container(os.path.abspath(options.root), *_entries(options), extra=extra)
    elif options.preset in ("untrusted", "nested"):
        from isolate import presets

        box = getattr(presets, options.preset)(*_entries(options), limits=limits)
    else:
        box = Sandbox(*_bare(options), *([] if limits is None else [limits]))
    parts: dict[Any, Part] = {}
    for at, part in enumerate(box.parts):
        # Several of one class stand beside one another: an option takes the place of the first, never of the others.
        parts[(type(part), at) if type(part) in parts else type(part)] = part
    if options.new and options.preset != "bare":
        raise ValueError("--new goes with --preset bare: the others have all namespaces")
    _change(parts, options)
    return Sandbox(*parts.values(), template=box.template)


def _of_profile(options: argparse.Namespace, extra: list[Part]) -> Sandbox:
    from isolate.mounts import Root
    from isolate.sandbox.box import Sandbox
    from isolate.tools.profiles import load

    if options.root is not None or options.preset != "untrusted" or getattr(options, "image", None) is not None:
        raise ValueError("--profile stands in the place of --root, --image and --preset")
    box = load(options.profile)
    kept = [part for part in box.parts if not any(type(part) is type(other) for other in extra)]
    entries = _entries(options)
    if entries:
        if not any(isinstance(part, Root) for part in kept):
            kept.append(Root(*entries))
            entries = []
        box = Sandbox(*kept, *extra, template=box.template)
        return box + entries if entries else box
    return Sandbox(*kept, *extra, template=box.template)


def _of_image(options: argparse.Namespace, extra: list[Part]) -> Sandbox:
    from isolate import presets
    from isolate.images import AmbiguousError, Reference, StoreError
    from isolate.tools.cli.image import open_store
    from isolate.tools.cli.showing import progress

    if options.root is not None or options.preset != "untrusted":
        raise ValueError("--image stands in the place of --root and --preset")
    store = open_store(options.store)
    try:
        image = store.open(options.image)
    except StoreError as error:
        if not options.pull and error.remedy == "pull, load or add it first":
            error.remedy = f"fetch it: add --pull, or isolate image pull {options.image}"
        if not options.pull or isinstance(error, AmbiguousError):
            raise
        with progress(options.quiet) as show:
            image = store.pull(Reference.parse(options.image), progress=show)
    size = options.volume_size or "256M"
    return presets.container(image, *_entries(options), extra=extra, store=store, volume_size=size)


def of_image(box: object) -> Mapping[str, str]:
    """The variables that the sandbox itself gives its programs."""
    from isolate.sandbox.surroundings import Surroundings

    found: dict[str, str] = {}
    for part in getattr(box, "parts", ()):
        if isinstance(part, Surroundings) and part.env is not None:
            found.update(part.env)
        found.update(getattr(part, "variables", dict)())
    return found


def _bare(options: argparse.Namespace) -> list[Part]:
    from isolate.kernel.namespaces import KINDS
    from isolate.mounts import Root
    from isolate.namespaces.part import PARTS

    made: list[Part] = []
    known = {kind.typed: PARTS[kind.file] for kind in KINDS}
    for kind in filter(None, options.new.split(",")):
        if kind not in known:
            raise ValueError(f"--new: no namespace is named {kind!r}{nearest(kind, known)}")
        made.append(known[kind]())
    entries = _entries(options)
    if entries:
        made.append(Root(*entries))
    return made


def _change(parts: dict[Any, Part], options: argparse.Namespace) -> None:
    """Put what single options say in the place of what is there."""
    from isolate.attributes.credentials import Credentials
    from isolate.attributes.rlimits import Rlimits
    from isolate.capabilities.part import Capabilities
    from isolate.namespaces.ids import IdMap
    from isolate.namespaces.part import NetNamespace, UserNamespace, UtsNamespace
    from isolate.seccomp import Seccomp

    if options.net == "host":
        parts.pop(NetNamespace, None)
    if options.net or options.publish or options.name or options.allow:
        from isolate.tools.cli import net

        own = net.part(options)
        if own is not None:
            parts[type(own)] = own
            parts.setdefault(NetNamespace, NetNamespace())
    if options.hostname is not None:
        parts[UtsNamespace] = UtsNamespace(hostname=options.hostname)
    if options.uid is not None or options.gid is not None:
        uid = options.uid if options.uid is not None else options.gid
        gid = options.gid if options.gid is not None else uid
        user = parts.get(UserNamespace)
        if isinstance(user, UserNamespace):
            # The id on the host stays what it was: the options name the one inside.
            host_uid = user.map.uids[0].outside if user.map else os.geteuid()
            host_gid = user.map.gids[0].outside if user.map else os.getegid()
            ids = IdMap.single(uid, gid, host_uid=host_uid, host_gid=host_gid)
            parts[UserNamespace] = UserNamespace(uid=uid, gid=gid, map=ids)
        else:
            parts[Credentials] = Credentials(uid=uid, gid=gid)
    if options.cap:
        # Ambient, so that any program has them, not only one with file capabilities.
        parts[Capabilities] = Capabilities(
            effective=options.cap,
            permitted=options.cap,
            inheritable=options.cap,
            ambient=options.cap,
            bounding=options.cap,
        )
    if options.rlimit:
        from dataclasses import replace

        own = parts.get(Rlimits)
        parts[Rlimits] = replace(own if isinstance(own, Rlimits) else Rlimits(), **_rlimits(options.rlimit))
    if options.seccomp is not None:
        parts.pop(Seccomp, None)
        if options.seccomp != "none":
            parts[Seccomp] = Seccomp.default() if options.seccomp == "default" else Seccomp.strict()


def _rlimits(words: Sequence[str]) -> dict[str, Any]:
    from dataclasses import fields

    from isolate.attributes.rlimits import Rlimits

    known = {field.name for field in fields(Rlimits)}
    found: dict[str, Any] = {}
    for word in words:
        name, equal, value = word.partition("=")
        name = "as_" if name.lower() == "as" else name.lower()
        if not equal:
            raise ValueError(f"--rlimit wants NAME=N, not {word!r}")
        if name not in known:
            raise ValueError(f"--rlimit: no limit is named {name!r}{nearest(name, sorted(known))}")
        pair = [int(v) if v.isdecimal() else v for v in value.split(":")]
        if len(pair) > 2:
            raise ValueError(f"--rlimit wants NAME=SOFT or NAME=SOFT:HARD, not {word!r}")
        found[name] = tuple(pair) if len(pair) == 2 else pair[0]
    return found


def environment(words: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The program's environment: PATH, what an image gives it, and what ``--env`` names."""
    from isolate.sandbox.defaults import DEFAULT_PATH

    env = {"PATH": DEFAULT_PATH, **(given or {})}
    for word in words:
        name, equal, value = word.partition("=")
        if equal:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
        else:
            raise ValueError(f"--env {name}: there is no such variable here; NAME=VALUE gives it one")
    return env
