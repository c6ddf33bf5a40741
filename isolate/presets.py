"""Compositions that are often wanted. Each is what a user could have written: print ``explain()`` and see."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from isolate.attributes.credentials import Credentials
from isolate.attributes.rlimits import Rlimits
from isolate.engine.plan import Part
from isolate.errors import SetupError
from isolate.kernel.checks import known_keywords, of_type
from isolate.landlock.part import Landlock
from isolate.mounts import Bind, Dev, Dir, Etc, Overlay, Proc, Root, Symlink, Tmpfs
from isolate.namespaces.ids import IdMap, is_host_root
from isolate.namespaces.part import (
    CgroupNamespace,
    IpcNamespace,
    MountNamespace,
    NetNamespace,
    PidNamespace,
    UserNamespace,
    UtsNamespace,
)
from isolate.sandbox.box import Sandbox
from isolate.sandbox.surroundings import Surroundings
from isolate.seccomp import Seccomp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import isolate.images
    from isolate.cgroups import Limits
    from isolate.mounts import Entry

__all__ = ["NOBODY", "container", "nested", "untrusted"]

#: The id that a root caller's untrusted programs have on the host: the kernel's overflow id, nobody's.
NOBODY = 65534

#: A quarter of what a host usually allows a user of message queues (819,200 bytes), and some hundredth of its signals.
_QUOTAS = {"sigpending": 1024, "msgqueue": 204800}

#: The directories of the host that a distribution's programs need, if they exist.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: Their configuration outside of it: the loader, the time zone, names of services, certificates to check others by,
#: and languages, some of which do not start without. Nothing that is made to hold a secret (keys, tokens).
_CONFIGURATION = (
    "/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime",
    "/etc/services", "/etc/protocols", "/etc/mime.types", "/etc/locale.alias", "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/pki/tls/openssl.cnf",
    "/etc/pki/ca-trust/extracted", "/etc/pki/java", "/etc/ca-certificates/extracted", "/etc/crypto-policies",
    "/etc/java*", "/etc/.java", "/etc/perl", "/etc/php*", "/etc/R", "/etc/mono", "/etc/dotnet",
    "/etc/guile*", "/etc/lua", "/etc/ghc*", "/etc/erlang", "/etc/octave*", "/etc/fonts", "/etc/texmf",
    "/etc/ImageMagick-*", "/etc/OpenCL",
)  # fmt: skip  # many names, few lines

#: Where what people look for here is to be said.
_ELSEWHERE = {
    **dict.fromkeys(
        ("memory", "swap", "pids", "cpu", "cpus", "io"), "give limits=Limits(memory=..., pids=..., cpu=...)"
    ),
    **dict.fromkeys(
        ("timeout", "cpu_time", "env", "cwd", "stdin", "max_output"), "it is a keyword of run() and spawn()"
    ),
    **dict.fromkeys(("bind", "binds", "mounts", "volumes"), "give Bind(source, target) as an argument without a name"),
    "template": "make the sandbox of the preset's parts: Sandbox(*box.parts, template=False)",
    **dict.fromkeys(("capabilities", "seccomp", "landlock", "rlimits", "parts"), "give extra=[part, ...]"),
}


@known_keywords(_ELSEWHERE)
def untrusted(
    *entries: Entry | Part, limits: Limits | None = None, network: bool | Part = False, extra: Iterable[Part] = ()
) -> Sandbox:
    """A sandbox for an untrusted program.

    All namespaces are new; the host's ``/usr`` (and ``/bin``, ``/lib``, …) is there read-only, ``/tmp`` is a tmpfs of
    64 MiB, ``/proc`` and ``/dev`` are its own. ``/etc`` has the files that programs under ``/usr`` keep there
    (certificates, the configuration of languages), and :class:`Etc` names the ids inside. Nothing else is there.
    Loopback is the only network (``network=True`` keeps the caller's; a part is that network: a :class:`NetNamespace`
    that joins one, a handle, an interface). It has no capability, gains none, and
    :meth:`Seccomp.default` filters its system calls. Run by root, the program has an unprivileged id on the host, never
    root. Inside, its ids are 65534 in both cases.

    With ``network=True`` the host's abstract sockets, which belong to its network, are kept out of reach by a scope of
    Landlock, where the kernel has it (Linux 6.12): ``Result.applied["Landlock"]`` tells.

    ``entries`` are put into the root after these (such as ``Bind("/srv/task", "/task")``). They may be parts, too, as
    ``extra`` are: one of a class that is here already takes the place of it, and so does a policy that extends the one
    here: ``Seccomp.default() + allow("@debug")`` gives debuggers back. ``limits`` bound memory,
    processes and CPU of the whole (a cgroup): without, a program can use as much as an ordinary process.

    :param entries: put into the root after the preset's own.
    :param limits: of the whole, by a cgroup: a :class:`~isolate.Limits`.
    :param network: keep the caller's network.
    :param extra: further parts; one takes the place of the preset's own of its class.

    >>> result = isolate.presets.untrusted().run(["id", "-u"], text=True)
    >>> result.verdict, result.stdout
    (<Verdict.OK: 'OK'>, '65534\\n')
    """
    if not isinstance(network, Part):
        of_type("network", network, bool, "True, False or a part such as NetNamespace()")
    if limits is not None and not isinstance(limits, Part):
        raise TypeError(f"limits must be a Limits such as Limits(memory='256M'), not {limits!r}")
    entries, extra = _apart(entries, extra)
    host_uid, host_gid = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    system: list[Entry] = []
    for path in _SYSTEM:
        # A link on the host (/bin, on a merged /usr) becomes a link inside.
        if os.path.islink(path):
            system.append(Symlink(os.readlink(path), path))
        elif os.path.isdir(path):
            system.append(Bind(path))
    system += [Bind(path) for path in _configuration()]
    keeps = network is True
    if keeps and os.path.isfile("/etc/resolv.conf"):
        system.append(Bind(os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf"))
    system.append(Etc(dns=keeps or None))
    parts: list[Part] = [
        UserNamespace(uid=NOBODY, gid=NOBODY, map=IdMap.single(NOBODY, NOBODY, host_uid=host_uid, host_gid=host_gid)),
        MountNamespace(),
        PidNamespace(),
        IpcNamespace(),
        UtsNamespace(hostname="sandbox"),
        CgroupNamespace(),
        Root(*system, Proc(), Dev(), Tmpfs("/tmp", size="64M"), *entries),
        _rlimits(nofile=1024),
        Seccomp.default(),
    ]
    if isinstance(network, Part):
        extra = (*_of_network(network), *extra)
    elif network:
        # The host's abstract sockets belong to its network namespace, and have no modes that keep anybody out.
        parts.append(Landlock(scopes=["abstract_unix_socket"], required=False))
    else:
        parts.append(NetNamespace())
    if limits is not None:
        parts.append(limits)
    return Sandbox(*_with(parts, extra))


@known_keywords(_ELSEWHERE)
def nested(
    *entries: Entry | Part, limits: Limits | None = None, network: bool | Part = False, extra: Iterable[Part] = ()
) -> Sandbox:
    """As :func:`untrusted`, for use inside of a container whose own ``/proc`` is partly covered (Docker, Kubernetes).

    There the kernel refuses a new procfs in a user namespace. So this one shows the outer container's ``/proc``,
    read-only and with Docker's masks as they are: the program sees the numbers of the outer container's processes, and
    may look into none of them. Everything else is as in :func:`untrusted`; the outer container has to allow user
    namespaces (docker: ``--security-opt seccomp=…`` with a profile that lets unshare and clone make one).
    """
    box = untrusted(*entries, limits=limits, network=network, extra=extra)
    parts: list[Part] = []
    for part in box.parts:
        if isinstance(part, Root):
            shown = [
                Bind("/proc") if type(entry) is Proc and entry.place == b"/proc" else entry for entry in part.entries
            ]
            parts.append(part.with_entries(*shown))
        else:
            parts.append(part)
    return Sandbox(*parts)


def _configuration() -> list[str]:
    """The configuration files that exist; a link is followed, as its target may lie outside."""
    found: list[str] = []
    for pattern in _CONFIGURATION:
        directory, _, name = pattern.rpartition("/")
        if "*" not in name:
            found += [pattern] if os.path.exists(pattern) else []
        else:
            with contextlib.suppress(OSError):
                found += sorted(f"{directory}/{entry}" for entry in os.listdir(directory) if fnmatchcase(entry, name))
    return [path for path in found if os.path.isfile(path) or os.path.isdir(path)]


def _namespaces(hostname: str) -> tuple[Part, ...]:
    """All but that of users and that of time."""
    return (
        MountNamespace(),
        PidNamespace(),
        IpcNamespace(),
        UtsNamespace(hostname=hostname),
        CgroupNamespace(),
        NetNamespace(),
    )


def _rlimits(**others: int) -> Rlimits:
    """Limits of what is counted for a user: a program inside must not use up what the caller may have.

    Queued signals, which every POSIX timer needs one of, and the bytes of POSIX message queues; where the caller's own
    hard limit is lower, it stays.
    """
    quotas = {"sigpending": resource.RLIMIT_SIGPENDING, "msgqueue": resource.RLIMIT_MSGQUEUE}
    held = {name: resource.getrlimit(number)[1] for name, number in quotas.items()}
    most = {name: _QUOTAS[name] if hard < 0 else min(_QUOTAS[name], hard) for name, hard in held.items()}
    return Rlimits(core=0, **most, **others)


def _apart(entries: Iterable[Entry | Part], extra: Iterable[Part]) -> tuple[tuple[Entry, ...], tuple[Part, ...]]:
    """The listed entries of the root, and the parts besides those of ``extra``."""
    listed = tuple(entries)
    parts = tuple(each for each in listed if isinstance(each, Part) and not isinstance(each, type))
    return tuple(each for each in listed if not any(each is part for part in parts)), (*parts, *extra)  # type: ignore[misc]


def _of_network(network: Part) -> tuple[Part, ...]:
    """A network that is a part: one that joins or makes the namespace stands alone, others are in a new one."""
    return (network,) if isinstance(network, NetNamespace) else (network, NetNamespace())


def _with(parts: Iterable[Part], extra: Iterable[Part]) -> list[Part]:
    """The parts of a preset with those of a caller, which take the place of the preset's own of the same class."""
    given = list(extra)
    kept = [part for part in parts if not any(_replaces(other, part) for other in given)]
    return [*kept, *given]


def _replaces(other: Part, part: Part) -> bool:
    """Whether a part stands for a preset's: of the same class, and of a policy only one that extends it.

    Any other policy stands beside it: the kernel takes the stricter answer of both.
    """
    if isinstance(part, Seccomp) and isinstance(other, Seccomp):
        return other.extends(part) or not other.restricts
    return type(other) is type(part) and not getattr(part, "repeatable", False)


@known_keywords(_ELSEWHERE)
def container(
    root: str | os.PathLike[str] | isolate.images.Image,
    *entries: Entry | Part,
    writes: str | isolate.images.Upper = "discard",
    hostname: str = "container",
    limits: Limits | None = None,
    network: bool | Part = False,
    extra: Iterable[Part] = (),
    beneath: str | os.PathLike[str] | None = None,
    store: isolate.images.Store | None = None,
    volume_size: int | str = "256M",
) -> Sandbox:
    """A container on a root file system of its own, such as one that debootstrap made, or on an image of a store.

    ``writes`` to it go to memory and are forgotten (``"discard"``: an overlay of at most 256 MiB), are refused
    (``"deny"``: then what is mounted on must exist), or change it (``"keep"``). ``/proc``, ``/dev``, ``/tmp`` and
    ``/run`` are the container's own. The program is root inside, with no capability; add
    ``Capabilities.docker()`` for more. Outside it is the caller; or, run by root, one of 65,536 ids that nobody has
    (:meth:`isolate.IdMap.unprivileged`), and the root's files are shown by an id map, so that root's own are those of
    the root inside: the file system must be one that can (ext4, xfs, btrfs and others; Linux 5.19 for ``"discard"``).
    ``extra=[UserNamespace()]`` makes it the host's root, as it would be without. Parts of ``extra``, or among the
    entries, take the place of those of their class, and so does a policy that extends the one here.

    ``limits`` and ``network`` are as for :func:`untrusted`.

    With ``"keep"`` it leaves no files on the host that give rights to others; an image that needs set-user-ID programs
    is made with ``extra=[SetIdFiles()]``, below a directory that other users cannot enter. ``beneath`` is a directory
    that the root lies below and that a program may have written to (see :class:`Bind`).

    ``root`` may be an :class:`isolate.images.Image` that is unpacked in ``store``. Its configuration holds then: the
    user (an ordinary caller has one id inside, the user's), the variables, the working directory, entry point and
    command (``box.run([])`` starts the image's own program, ``box.run(["--help"])`` gives its entry point these words;
    see :class:`isolate.Surroundings`). ``writes`` may be an :class:`isolate.images.Upper`, which keeps them. A
    volume of the image begins with what the image has there, with its owner and mode, and can always be written to.
    What is written goes to memory, at most ``volume_size`` in each; it is in no layer, and gone with the sandbox. An
    entry at the volume's place keeps it: ``Bind("/srv/data", "/var/lib/data", read_only=False)``. A working directory
    that is not there is made.

    :param root: directory that holds bin, etc, usr and the rest; or an image.
    :param entries: put into the root after the preset's own.
    :param writes: ``"discard"``, ``"deny"`` or ``"keep"``.
    :param hostname: host name inside.
    :param extra: further parts; one takes the place of the preset's own of its class.
    :param beneath: directory that the root is opened beneath.

    >>> box = isolate.presets.container("/", hostname="box")  # doctest: +SKIP
    >>> box.run(["uname", "-n"]).stdout  # doctest: +SKIP
    b'box\\n'

    :param store: that has the image.
    :param volume_size: limit in bytes of what is written to each volume of an image, such as ``"1G"``.

    :param limits: of the whole, by a cgroup: a :class:`~isolate.Limits`.
    :param network: what network it has, as for :func:`untrusted`.
    """
    entries, extra = _apart(entries, extra)
    if limits is not None:
        extra = (limits, *extra)
    if isinstance(network, Part):
        extra = (*_of_network(network), *extra)
    elif network:
        alone = container(
            root,
            *entries,
            writes=writes,
            hostname=hostname,
            extra=extra,
            beneath=beneath,
            store=store,
            volume_size=volume_size,
        ).without(NetNamespace)
        if any(isinstance(part, Landlock) for part in extra):
            return alone
        return alone + Landlock(scopes=["abstract_unix_socket"], required=False)
    if not isinstance(root, (str, os.PathLike)):
        return _of_image(root, store, entries, writes, hostname, extra, volume_size)
    if store is not None or not isinstance(writes, str):
        raise TypeError("container: store, and an Upper to write to, go with an Image")
    if writes not in ("discard", "deny", "keep"):
        raise ValueError(f"writes must be 'discard', 'deny' or 'keep', not {writes!r}")
    if os.path.exists(root) and not os.path.isdir(root):
        raise SetupError(
            errno.ENOTDIR,
            "show the root file system",
            part="container",
            path=os.fspath(root),
            cause="it is a file",
            remedy="name the directory that holds bin, etc, usr and the rest",
        )
    if not os.path.isabs(root):
        hint = f"; of an image give the image: container(store.open({root!r}), store=store)"
        raise ValueError(
            f"container: root must be an absolute path, not {root!r}{'' if os.path.exists(root) else hint}"
        )
    ids = IdMap.unprivileged() if is_host_root() else None
    top: Entry
    if writes == "discard":
        top = Overlay("/", lower=[root], idmap=True, beneath=beneath)
    else:
        top = Bind(root, "/", read_only=writes == "deny", idmap=True, beneath=beneath)
    parts: list[Part] = [
        UserNamespace(map=ids),
        *_namespaces(hostname),
        Root(top, Proc(), Dev(), Tmpfs("/tmp"), Tmpfs("/run"), *entries),
        _rlimits(),
        Seccomp.default(),
    ]
    return Sandbox(*_with(parts, extra))


def _of_image(
    image: isolate.images.Image,
    store: isolate.images.Store | None,
    entries: tuple[Entry, ...],
    writes: str | isolate.images.Upper,
    hostname: str,
    extra: Iterable[Part],
    volume_size: int | str,
) -> Sandbox:
    from isolate.images.accounts import account  # loaded late: most containers are not of images
    from isolate.images.image import Image as Kind  # loaded late: as above
    from isolate.images.root import ImageRoot  # loaded late: as above

    if not isinstance(image, Kind):
        raise TypeError(f"container: root must be a directory's path or an Image, not {image!r}")
    if store is None:
        raise TypeError("container: an image needs the store that has its layers: container(image, store=store)")
    if isinstance(writes, str) and writes not in ("discard", "deny"):
        raise ValueError(f"writes to an image must be 'discard', 'deny' or an Upper, not {writes!r}")
    who = account(image, store)
    upper = None if isinstance(writes, str) else writes
    top = ImageRoot(image, store=store, writable=upper, read_only=writes == "deny")
    if is_host_root():
        user = UserNamespace(map=store.trees.map or IdMap.unprivileged())
    elif store.trees.map is not None:
        user = UserNamespace(map=store.trees.map)
    else:
        user = UserNamespace(uid=who.uid, gid=who.gid)
    places = {bytes(getattr(entry, "place", b"")) for entry in entries}
    volumes = [v for v in image.config.volumes or () if os.fsencode(v) not in places]
    # An image may name a working directory that it does not have, or that one of its volumes hides.
    made = [Dir(path) for path in (image.config.workdir,) if path and path.strip("/")]
    standing = [Tmpfs(path) for path in ("/tmp", "/run") if path.encode() not in places and path not in volumes]
    config = image.config
    env = config.environment
    if "HOME" not in env:
        env["HOME"] = who.home or "/"
    parts: list[Part] = [
        user,
        Credentials(uid=who.uid, gid=who.gid, groups=who.groups if is_host_root() or store.trees.map else ()),
        Surroundings(env=env, cwd=config.workdir or None, entrypoint=config.entrypoint or (), cmd=config.cmd or ()),
        *_namespaces(hostname),
        Root(top, Proc(), Dev(), *standing, *_volumes(image, store, volumes, volume_size), *entries, *made),
        _rlimits(),
        Seccomp.default(),
    ]
    return Sandbox(*_with(parts, extra))


def _volumes(
    image: isolate.images.Image, store: isolate.images.Store, paths: Iterable[str], size: int | str
) -> Iterator[Entry]:
    """The content of each of an image's volumes, writable; empty, and everybody's inside, where it has no directory."""
    from isolate.images.root import ImageRoot  # loaded late: most containers are not of images
    from isolate.images.shown import place_of  # loaded late: as above

    for path in paths:
        place, there = place_of(image, store, os.fsencode(path))
        target = b"/" + place
        if there and place:
            yield ImageRoot(image, target, store=store, directory=target, size=size)
        elif place:  # the root itself is there already
            yield Tmpfs(target, size=size)
