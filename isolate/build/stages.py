"""The result of reading a recipe: stages, each with a base and instructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from isolate.kernel import checks
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from isolate.build.context import Context
    from isolate.build.instructions import Instruction
    from isolate.images.image import Image

__all__ = ["SCRATCH", "Program", "Stage"]

SCRATCH: Final = "scratch"


@keywords
@dataclass(frozen=True)
class Stage:
    """A base, and what is done to it."""

    base: str | Image
    instructions: tuple[Instruction, ...] = ()
    name: str | None = None
    platform: str | None = None
    #: Strings may hold variables: so in a Dockerfile, not in a program.
    expand: bool = False
    line: int = 0

    def __post_init__(self) -> None:
        checks.fields(self)
        if not isinstance(self.instructions, tuple):
            raise TypeError(f"Stage: instructions must be a tuple, not {self.instructions!r}")


class Program(NamedTuple):
    """A recipe as it is carried out."""

    stages: tuple[Stage, ...]
    #: Variables before the first FROM, with their defaults.
    arguments: tuple[tuple[str, str | None], ...]
    #: Sources beside the context, by name.
    contexts: tuple[tuple[str, Context | Image], ...]
    escape: str
