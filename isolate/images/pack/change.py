"""A change of a tree: of an image, or of a sandbox's memory."""

from __future__ import annotations

from isolate.mounts.changes import KINDS, Change, Changes

__all__ = ["KINDS", "Change", "Changes"]
