"""Errors of builds."""

from __future__ import annotations

from isolate.errors import IsolateError

__all__ = ["BuildError"]


class BuildError(IsolateError):
    """A step of a build that cannot be done, or that failed: the step, its line in the Dockerfile, and why.

    ``line`` is 0 where there is none, ``output`` the end of what a command wrote.
    """

    def __init__(self, message: str, *, line: int = 0, step: str = "", output: str = "") -> None:
        where = f"line {line}: " if line else ""
        what = f"{step}: " if step else ""
        tail = f"\n{output}" if output else ""
        super().__init__(f"build: {where}{what}{message}{tail}")
        self.message: str = message
        self.line: int = line
        self.step: str = step
        self.output: str = output

    def at(self, line: int, step: str) -> BuildError:
        """The same, of a step."""
        return self if self.step else BuildError(self.message, line=line, step=step, output=self.output)

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.message, self.line, self.step, self.output)


def _again(message: str, line: int, step: str, output: str) -> BuildError:
    return BuildError(message, line=line, step=step, output=output)
