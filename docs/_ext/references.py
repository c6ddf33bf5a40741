"""References of the documentation: Python's own names without a network, and names as users import them.

Nitpicky mode makes each reference that leads nowhere an error. Two kinds of names need help to lead somewhere.

Python's own documentation is linked by an inventory that is made from ``python-names.txt``: a build asks no network.

A class is written as users import it (``isolate.SetupError``), and as the module that defines it knows it
(``isolate.errors.SetupError``, or ``SetupError`` alone in a signature). Both lead to the one place that documents the
name. A name that two places document is left alone, and so is an error.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HERE = Path(__file__).resolve().parent
_URIS = {
    "module": "library/{0}.html#module-$",
    "class": "library/{0}.html#$",
    "function": "library/{0}.html#$",
    "method": "library/{0}.html#$",
    "attribute": "library/{0}.html#$",
    "data": "library/{0}.html#$",
    "exception": "library/{0}.html#$",
}


def inventory() -> bytes:
    """Sphinx' format of inventories, version 2: a head of four lines, then one line a name, compressed."""
    rows = []
    for line in (HERE / "python-names.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            role, name, page = line.split()
            rows.append(f"{name} py:{role} 1 {_URIS[role].format(page)} -")
    head = "# Sphinx inventory version 2\n# Project: Python\n# Version: 3\n# The remainder is compressed using zlib.\n"
    return head.encode() + zlib.compress("\n".join([*rows, ""]).encode())


def _documented(env: BuildEnvironment, target: str, package: str) -> str | None:
    """The documented name that a target means: one with the same last words, the own package's first."""
    objects = env.get_domain("py").objects  # type: ignore[attr-defined]
    last = target.rpartition(".")[2]
    found = [name for name, entry in objects.items() if name.rpartition(".")[2] == last and not entry.aliased]
    if "." in target and len(found) > 1:
        owner = target.split(".")[-2]
        found = [name for name in found if name.split(".")[-2:-1] == [owner]] or found
    near = [name for name in found if package.count(".") and name.startswith(package + ".")]
    top = [name for name in found if name.startswith("isolate.") and name.count(".") == 1]
    for names in (found, _shallowest(near), _home(last, found), top, _shallowest(found)):
        if len(names) == 1:
            return names[0]
    return None


def _shallowest(names: list[str]) -> list[str]:
    """Those that the fewest modules lead to: ``isolate.network.Network`` before one of a module of its own."""
    least = min((name.count(".") for name in names), default=0)
    return [name for name in names if name.count(".") == least]


def _home(word: str, found: list[str]) -> list[str]:
    """Where the package's own name of that word is documented."""
    import isolate

    if word not in isolate.__all__:
        return []
    home = f"{getattr(getattr(isolate, word), '__module__', '')}.{word}"
    return [name for name in found if name == home]


class Exact(SphinxPostTransform):
    """Names of types in signatures: the one that is meant, in place of any that ends alike."""

    default_priority = 5  # before Sphinx resolves references

    def run(self, **_: object) -> None:
        """Go through the document."""
        for node in self.document.findall(addnodes.pending_xref):
            if node.get("refdomain") == "py" and "refspecific" in node:
                name = _documented(self.env, node["reftarget"], _package(node))
                if name is not None:
                    node["reftarget"] = name
                    del node["refspecific"]


def _package(node: pending_xref) -> str:
    return ".".join((node.get("py:module") or "").split(".")[:2])


def _in_signature(node: nodes.Node) -> bool:
    while node.parent is not None:
        if isinstance(node, addnodes.desc_signature):
            return True
        node = node.parent
    return False


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> Any:
    """Lead a name that nothing has exactly to the one place that documents it."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    name = None if target.partition(".")[0] in _LIBRARY else _documented(env, target, _package(node))
    if name is None:
        # A type that users have no name for is text in a signature. In prose it stays an error.
        return content if _in_signature(node) else None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)


_LIBRARY = frozenset({"os", "subprocess", "collections", "sys", "pathlib", "typing", "asyncio", "socket", "ipaddress"})


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("missing-reference", resolve)
    app.add_post_transform(Exact)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
