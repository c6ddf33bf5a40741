"""The instructions of a build as values: each kind with its fields, whether from a Dockerfile or from a program.

Strings of a Dockerfile may hold variables; they are expanded when the instruction is carried out, since only then the
environment of the base image is known. :mod:`isolate.build.forms` reads them from what is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from isolate.kernel import checks
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from isolate.build.syntax import HereDocument

__all__ = [
    "Arg",
    "Cmd",
    "Copy",
    "Entrypoint",
    "Env",
    "Expose",
    "From",
    "HealthCheck",
    "Instruction",
    "Label",
    "Mount",
    "OnBuild",
    "Run",
    "Shell",
    "StopSignal",
    "User",
    "Volume",
    "Workdir",
]


@dataclass(frozen=True)
class From:
    """``FROM [--platform=] base [AS name]``: begin a stage."""

    base: str
    name: str | None = None
    platform: str | None = None
    line: int = field(default=0, compare=False)


@keywords
@dataclass(frozen=True)
class Mount:
    """``RUN --mount=``: what is there while the command runs, and in no layer.

    Each kind takes what it has a use for: a bind ``source``, ``origin`` and ``read_only``; a cache those, ``id``,
    ``sharing``, ``mode``, ``uid`` and ``gid``; a tmpfs ``size``, ``mode`` and ``read_only``; a secret ``id``,
    ``required``, ``env``, ``mode``, ``uid`` and ``gid``.

    :raises ValueError: a field that this kind does not have, a size or a name that is none, no target.
    """

    kind: str = "bind"
    target: str | None = None
    source: str | None = None
    #: A stage or an image that a bind or a cache comes from; None is the context, for a cache an empty directory.
    origin: str | None = None
    #: None: a bind and a secret are, a cache and a tmpfs are not.
    read_only: bool | None = None
    id: str | None = None
    #: Of a cache. ``shared`` (None): by all steps at once; ``locked``: one after the other; ``private``: each its own.
    sharing: str | None = None
    required: bool = False
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: str | None = None
    env: str | None = None
    #: As it was written, while variables in it are to be expanded.
    written: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        checks.fields(self)
        if self.read_only is None:
            object.__setattr__(self, "read_only", self.kind in ("bind", "secret"))
        if self.written is None or "$" not in self.written:
            _check(self)


_FIELDS: Final = {
    "bind": ("source", "origin", "read_only"),
    "cache": ("source", "origin", "read_only", "id", "sharing", "mode", "uid", "gid"),
    "tmpfs": ("size", "mode", "read_only"),
    "secret": ("id", "required", "env", "mode", "uid", "gid", "read_only"),
}
_NAMES: Final = {"origin": "from", "read_only": "readonly"}  # as a Dockerfile has them
_LEAST: Final = 4096


def _check(mount: Mount) -> None:
    """Each kind has the fields of its own, and in them what can be."""
    own = _FIELDS[checks.choice("Mount: type", mount.kind, _FIELDS)]
    for name in ("source", "origin", "id", "sharing", "required", "mode", "uid", "gid", "size", "env"):
        if name not in own and getattr(mount, name) not in (None, False):
            has = ", ".join(_NAMES.get(each) or each for each in own)
            raise ValueError(f"Mount: a {mount.kind} has no {_NAMES.get(name, name)}; it has target, {has}")
    if mount.kind == "secret":
        if mount.target is None and not mount.id:
            raise ValueError("Mount: a secret needs an id, or a target that ends with it")
        if not mount.read_only:
            raise ValueError("Mount: a secret cannot be written")
    elif not mount.target:
        raise ValueError("Mount: target is missing")
    if mount.kind == "cache" and mount.source is not None and mount.origin is None:
        raise ValueError("Mount: the source of a cache is in a stage or an image: from is missing")
    if mount.sharing is not None:
        checks.choice("Mount: sharing", mount.sharing, ("shared", "private", "locked"))
    if mount.size is not None:
        checks.size("Mount: size", mount.size, _LEAST)
    for name, most in (("mode", 0o7777), ("uid", 2**32 - 2), ("gid", 2**32 - 2)):
        if getattr(mount, name) is not None:
            checks.integer(f"Mount: {name}", getattr(mount, name), 0, most)
    if mount.env is not None and (not mount.env or "=" in mount.env or "\0" in mount.env):
        raise ValueError(f"Mount: env={mount.env!r} is no name of a variable")


@dataclass(frozen=True)
class Run:
    """``RUN``: a command whose changes become a layer."""

    #: An exec form, or one string for the shell.
    command: tuple[str, ...]
    shell: bool = False
    mounts: tuple[Mount, ...] = ()
    #: ``none``, ``host`` or ``default``. None: what the build says.
    network: str | None = None
    documents: tuple[HereDocument, ...] = ()
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Copy:
    """``COPY`` and ``ADD``: files of the context, of a stage or of an image."""

    sources: tuple[str, ...]
    target: str
    #: ``ADD``: archives are unpacked.
    add: bool = False
    origin: str | None = None
    owner: str | None = None
    mode: str | None = None
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    checksum: str | None = None
    unpack: bool | None = None
    documents: tuple[HereDocument, ...] = ()
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Env:
    """``ENV``: variables of the commands that follow and of the image."""

    values: tuple[tuple[str, str], ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Arg:
    """``ARG``: variables that the builder may give, for this stage alone."""

    values: tuple[tuple[str, str | None], ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Label:
    """``LABEL`` (and ``MAINTAINER``, its old form)."""

    values: tuple[tuple[str, str], ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Workdir:
    """``WORKDIR``: the working directory, made where it is not there."""

    path: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class User:
    """``USER``: who the commands that follow and the image's program are."""

    user: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Cmd:
    """``CMD``: what the image runs, or the arguments of its entry point."""

    command: tuple[str, ...]
    shell: bool = False
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Entrypoint:
    """``ENTRYPOINT``: what the image runs, whatever its arguments."""

    command: tuple[str, ...]
    shell: bool = False
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Shell:
    """``SHELL``: what runs a command that is one string."""

    command: tuple[str, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Expose:
    """``EXPOSE``: ports that the image's program listens at."""

    ports: tuple[str, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Volume:
    """``VOLUME``: directories whose content belongs to no layer when the image runs."""

    paths: tuple[str, ...]
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class StopSignal:
    """``STOPSIGNAL``: what asks the image's program to end."""

    signal: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class HealthCheck:
    """``HEALTHCHECK``: kept in the image's configuration for those who carry it out. Times are seconds."""

    command: tuple[str, ...]
    shell: bool = False
    #: ``HEALTHCHECK NONE``: what the base says does not hold.
    disabled: bool = False
    interval: float | None = None
    timeout: float | None = None
    start_period: float | None = None
    start_interval: float | None = None
    retries: int | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class OnBuild:
    """``ONBUILD``: an instruction that is carried out where the image is a base."""

    text: str
    instruction: Instruction
    line: int = field(default=0, compare=False)


Instruction: TypeAlias = (
    Arg
    | Cmd
    | Copy
    | Entrypoint
    | Env
    | Expose
    | From
    | HealthCheck
    | Label
    | OnBuild
    | Run
    | Shell
    | StopSignal
    | User
    | Volume
    | Workdir
)
