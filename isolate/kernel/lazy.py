"""Packages whose names are imported when they are first used: a start should not wait for what it does not need."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing: `import isolate` imports this module
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["face", "names"]


def names(homes: dict[str, str]) -> list[str]:
    """The names of a face. ``homes`` has for each module, as ``"files"``, what it defines, as ``"Dir File Mask"``."""
    return sorted(name for words in homes.values() for name in words.split())


def face(
    package: str, homes: dict[str, str], modules: frozenset[str] = frozenset()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package (PEP 562); ``modules`` are reached as attributes, too."""
    module_of = {name: module for module, words in homes.items() for name in words.split()}

    def __getattr__(name: str) -> object:
        import importlib

        home = module_of.get(name)
        if home is not None:
            value = getattr(importlib.import_module(f"{package}.{home}"), name)
        elif name in modules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            message = f"module {package!r} has no attribute {name!r}"
            if name.startswith("_"):  # asked by inspect, doctest and by the import of the extension: no typing error
                raise AttributeError(message)
            from isolate.kernel.checks import nearest

            raise AttributeError(message + nearest(name, [*modules, *module_of]))
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of, *modules})

    return __getattr__, __dir__
