"""Debug messages for whoever listens: a logger for each module, silent by default, free where nobody logs."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["debug"]


def debug(module: str, message: str, *values: object) -> None:
    """Log to the module's logger at DEBUG.

    A program that listens has imported :mod:`logging`; for another one it is not loaded, and nothing is made.
    """
    logging = sys.modules.get("logging")
    if logging is not None and _listens(logging, module):
        logging.getLogger(module).debug(message, *values)


def _listens(logging: Any, module: str) -> bool:
    """Whether the module's logger, made or not, would log at DEBUG.

    ``getLogger`` and ``isEnabledFor`` take a lock of the whole program's. An exception of a signal handler, such as
    KeyboardInterrupt, may leave it taken, and then every other thread waits for it without end. So it is not taken
    by starts that nobody logs.
    """
    root = logging.root
    kind, lowest = logging.Logger, logging.DEBUG
    logger: Any = None
    name = module
    while name and not isinstance(logger, kind):
        logger = root.manager.loggerDict.get(name)
        name = name.rpartition(".")[0]
    if not isinstance(logger, kind):
        logger = root
    return bool(root.manager.disable < lowest and logger.getEffectiveLevel() <= lowest)
