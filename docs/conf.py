"""Sphinx: built with -W and nitpicky, so a reference that leads nowhere fails the build.

The theme is furo: it is readable on a phone, has a dark mode and the contents of each page beside it, and needs nothing
from a network. ``make docs`` builds it, ``make docs-archive`` packs it into one archive for any static host.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from isolate.engine.native import VERSION

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
import references

project = "isolate"
author = "The isolate authors"
project_copyright = "The isolate authors, MIT licence"
version = release = VERSION
extensions = ["sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx_copybutton", "references"]
exclude_patterns = ["_build", "_ext", "changes"]
nitpicky = True

_INVENTORY = Path(tempfile.mkdtemp(prefix="isolate-docs-")) / "objects.inv"
atexit.register(shutil.rmtree, _INVENTORY.parent, ignore_errors=True)
_INVENTORY.write_bytes(references.inventory())
intersphinx_mapping = {"python": ("https://docs.python.org/3", str(_INVENTORY))}

html_theme = "furo"
html_title = f"isolate {VERSION}"
html_static_path = ["_static"]
html_css_files = ["isolate.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "top_of_page_buttons": [],
}
pygments_style = "default"
pygments_dark_style = "monokai"
# Prompts of a shell and of Python are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ |# "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "class"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80


def _name_the_rest(app: object, docname: str, source: list[str]) -> None:
    """In the first page, put pages that no menu names yet in the place of the line ``*``: under How-to."""
    if docname != "index":
        return
    here = Path(__file__).parent
    named = {line.strip() for line in source[0].splitlines() if line.startswith("   ")}
    rest = sorted(page.stem for page in here.glob("*.rst") if page.stem not in named | {"index"})
    source[0] = source[0].replace("   *\n", "".join(f"   {page}\n" for page in rest))


def setup(app: object) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", _name_the_rest)  # type: ignore[attr-defined]
