"""What a change of a tree is: of an image as of a sandbox's memory."""

from __future__ import annotations

from isolate.mounts.changes import KINDS, Change, Changes

__all__ = ["KINDS", "Change", "Changes"]
