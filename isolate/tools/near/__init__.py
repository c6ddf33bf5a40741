"""The nearest command of another tool to a sandbox, and what that tool has no words for.

>>> from isolate import Sandbox, UserNamespace, UtsNamespace
>>> from isolate.tools.near import near
>>> found = near(Sandbox(UserNamespace(), UtsNamespace(hostname="box")), "bwrap", ["id"])
>>> found.words[:6]
['bwrap', '--unshare-user', '--uid', '0', '--gid', '0']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from isolate.kernel import checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.sandbox.box import Sandbox
    from isolate.tools.near.command import Near

__all__ = ["TOOLS", "near"]

#: The tools whose words are known, and the functions that know them. Loaded late: the command line lists the tools.
_HOMES = {
    "bwrap": ("bubblewrap", "bubblewrap"),
    "docker": ("docker", "docker"),
    "systemd-run": ("systemd", "systemd_run"),
}
TOOLS = tuple(_HOMES)


def near(box: Sandbox, tool: str, program: Sequence[str] = ("PROGRAM",)) -> Near:
    """The command of another tool that comes nearest to a sandbox: nothing is run.

    :param box: the sandbox; its defaults are translated too.
    :param tool: ``"bwrap"``, ``"docker"`` or ``"systemd-run"``.
    :param program: what the command runs.
    :raises ValueError: another tool.
    """
    from isolate.tools.near.command import Near

    module, name = _HOMES[checks.choice("tool", tool, TOOLS)]
    found = Near(tool, box, program)
    getattr(importlib.import_module(f"isolate.tools.near.{module}"), name)(found)
    return found
