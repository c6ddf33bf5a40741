"""The entry point of the plugin for pytest: see :doc:`/pytest`; what it does is in :mod:`isolate.tools.pytest_hooks`.

pytest imports this in every run on the machine, whether or not a test asks for anything of isolate's. So it never
raises: where the plugin cannot work (a pytest that lacks what it needs), the run's header says so, and all else goes
on.
"""

from __future__ import annotations

try:
    from isolate.tools.pytest_hooks import *  # noqa: F403  # hooks and fixtures are found by their names
except Exception as _error:
    _why = f"{type(_error).__name__}: {_error}"

    def pytest_report_header() -> str:
        """Why there are no fixtures and options of isolate's."""
        from isolate.errors import printable

        return printable(f"isolate: its plugin is off, since it does not work with this pytest ({_why})")
