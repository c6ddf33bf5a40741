"""The error of profiles."""

from __future__ import annotations

from isolate.errors import IsolateError

__all__ = ["ProfileError"]


class ProfileError(IsolateError, ValueError):
    """A profile that cannot be honoured. ``path`` is the path of the key, such as ``Root.entries[2].size``."""

    def __init__(self, path: str, why: object) -> None:
        self.path = path
        self.why: str = str(why)
        super().__init__(f"{path}: {self.why}" if path else self.why)

    def __reduce__(self) -> tuple[type[ProfileError], tuple[str, str]]:
        return type(self), (self.path, self.why)
