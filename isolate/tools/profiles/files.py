"""Profiles as text and files: TOML and JSON."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolate.tools.profiles.reading import from_data
from isolate.tools.profiles.text import parsed, parsed_text, written
from isolate.tools.profiles.writing import to_data

if TYPE_CHECKING:
    from isolate.sandbox.box import Sandbox

__all__ = ["dumps", "load", "loads"]


def dumps(box: Sandbox, format: str = "toml") -> str:
    """A sandbox as the text of a profile, ``"toml"`` or ``"json"``.

    :raises ProfileError: a part has no words in a profile.
    """
    return written(to_data(box), format)


def loads(text: str | bytes, format: str = "toml", *, directory: str | os.PathLike[str] | None = None) -> Sandbox:
    """The sandbox of a profile's text. ``directory`` is where it stands: see :func:`from_data`.

    :raises ProfileError: it cannot be honoured; ``path`` says which key.
    """
    return from_data(parsed_text(text, format), directory=directory)


def load(path: str | os.PathLike[str]) -> Sandbox:
    """The sandbox of a file, JSON where its name ends with ``.json``, else TOML.

    :raises ProfileError: it cannot be honoured; ``path`` says which key. :raises OSError: it cannot be read.
    """
    return from_data(parsed(path), directory=os.path.dirname(os.path.abspath(os.fspath(path))))
