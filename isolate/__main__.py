"""``python -m isolate``: see :mod:`isolate.tools.cli`."""

from __future__ import annotations

import sys

from isolate.tools.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
