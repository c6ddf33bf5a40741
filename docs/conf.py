"""Sphinx: built with -W, so a reference that leads nowhere fails the build."""

from __future__ import annotations

from isolate.engine.native import VERSION

project = "isolate"
author = "The isolate authors"
project_copyright = "The isolate authors, MIT licence"
version = release = VERSION
extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build", "changes"]
html_theme = "alabaster"
html_theme_options = {
    "description": "The kernel's isolation primitives, as parts that compose",
    "page_width": "1060px",
    "fixed_sidebar": True,
}
html_show_sourcelink = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"Argument": "Argument", "Op": "Op"}
autodoc_preserve_defaults = True
autoclass_content = "class"
add_module_names = False
python_use_unqualified_type_names = True
