"""The defaults of a start: the program's variables, its directory, and the words before its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context, Step

__all__ = ["Surroundings"]


@keywords
@dataclass(frozen=True, init=False)
class Surroundings:
    """Defaults for every program that a sandbox starts, as a container image has them.

    ``env``
        The variables where a start names none. Without PATH among them the default PATH is added.
    ``cwd``
        The working directory where a start names none: an absolute path inside.
    ``entrypoint``
        Words that stand before those of a start, as with ``docker run``.
    ``cmd``
        The words of a start that has none: ``box.run([])``.

    It changes nothing on the calling thread, needs no privilege, and makes no system call.

    >>> from isolate import Sandbox, Surroundings
    >>> Sandbox(Surroundings(env={"A": "1"}, cwd="/tmp", entrypoint=["sh", "-c"])).run(["echo $A; pwd"]).stdout
    b'1\\n/tmp\\n'

    :raises TypeError: a value of another type. :raises ValueError: a relative directory, a name with ``=``.

    :param env: variables.
    :param cwd: working directory.
    :param entrypoint: program and first arguments.
    :param cmd: arguments where none are given.
    """

    required: ClassVar[bool] = True

    env: tuple[tuple[str, str], ...] | None
    cwd: str | None
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]

    def __init__(
        self,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        entrypoint: Iterable[str] = (),
        cmd: Iterable[str] = (),
    ) -> None:
        if env is not None:
            if not isinstance(env, Mapping):
                raise TypeError(f"Surroundings: env must be a mapping of names to values, not {env!r}")
            for name, value in env.items():
                if not isinstance(name, str) or not isinstance(value, str):
                    raise TypeError(f"Surroundings: env must be a mapping of str to str, and has {name!r}: {value!r}")
                if not name or "=" in name or "\0" in name + value:
                    raise ValueError(f"Surroundings: not a variable: {name!r}={value!r}")
        if cwd is not None:
            if not isinstance(cwd, str):
                raise TypeError(f"Surroundings: cwd must be a str, not {cwd!r}")
            if not cwd.startswith("/") or "\0" in cwd:
                raise ValueError(f"Surroundings: cwd must be an absolute path, not {cwd!r}")
        object.__setattr__(self, "env", None if env is None else tuple(env.items()))
        object.__setattr__(self, "cwd", cwd)
        for what, words in (("entrypoint", entrypoint), ("cmd", cmd)):
            if isinstance(words, (str, bytes)) or not isinstance(words, Iterable):
                raise TypeError(f"Surroundings: {what} must be several str, not {words!r}")
            found = tuple(words)
            if not all(isinstance(word, str) for word in found):
                raise TypeError(f"Surroundings: {what} must be several str, not {found!r}")
            object.__setattr__(self, what, found)

    def __repr__(self) -> str:
        values = {"env": None if self.env is None else dict(self.env), "cwd": self.cwd}
        words = {"entrypoint": self.entrypoint, "cmd": self.cmd}
        said = [f"{name}={value!r}" for name, value in (*values.items(), *words.items()) if value not in (None, ())]
        return f"Surroundings({', '.join(said)})"

    def steps(self, context: Context) -> Iterator[Step]:
        """None: it is for the record of a start."""
        return iter(())
