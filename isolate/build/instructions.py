"""The instructions of a build as values: each kind with its fields, whether from a Dockerfile or from a program.

Strings of a Dockerfile may hold variables; they are expanded when the instruction is carried out, since only then the
environment of the base image is known. :mod:`isolate.build.forms` reads them from what is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

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
    """``RUN --mount=``: what is there while the command runs, and in no layer."""

    kind: str = "bind"
    target: str | None = None
    source: str | None = None
    #: A stage or an image that a bind or a cache comes from; None is the context.
    origin: str | None = None
    read_only: bool = True
    id: str | None = None
    sharing: str = "shared"
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: str | None = None
    env: str | None = None

    def __post_init__(self) -> None:
        checks.fields(self)


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
