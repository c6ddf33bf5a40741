"""Profiles: a :class:`~isolate.Sandbox` as TOML or JSON, and back, without loss.

>>> from isolate import Limits, Sandbox
>>> from isolate.tools import profiles
>>> print(profiles.dumps(Sandbox(Limits(memory="256M", pids=64))), end="")
version = 1
<BLANKLINE>
[Limits]
memory = 268435456
pids = 64
>>> profiles.loads('version = 1\\n[Limits]\\npids = 64\\n') == Sandbox(Limits(pids=64))
True
"""

from __future__ import annotations

from isolate.tools.profiles.errors import ProfileError
from isolate.tools.profiles.files import dumps, load, loads
from isolate.tools.profiles.oci import from_oci
from isolate.tools.profiles.reading import from_data
from isolate.tools.profiles.schema import schema
from isolate.tools.profiles.text import parsed
from isolate.tools.profiles.words import VERSION
from isolate.tools.profiles.writing import to_data

__all__ = [
    "VERSION",
    "ProfileError",
    "dumps",
    "from_data",
    "from_oci",
    "load",
    "loads",
    "parsed",
    "schema",
    "to_data",
]
