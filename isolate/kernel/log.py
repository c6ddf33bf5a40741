"""Debug messages for whoever listens: a logger for each module, silent by default, free where nobody logs."""

from __future__ import annotations

import sys

__all__ = ["debug"]


def debug(module: str, message: str, *values: object) -> None:
    """Log to the module's logger at DEBUG.

    A program that listens has imported :mod:`logging`; for another one it is not loaded, and nothing is made.
    """
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(module).debug(message, *values)
