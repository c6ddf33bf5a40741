"""What starts where, by the table that ``python tests/hosts.py`` prints."""

from __future__ import annotations

import pytest

from tests import hosts

pytestmark = [pytest.mark.slow, pytest.mark.root]

_ALWAYS = ["nothing named", "Seccomp", "Landlock", "Rlimits", "Pool"]
_NAMESPACES = [*_ALWAYS, "UserNamespace", "Pid+Net+Ipc", "Root"]
_STARTS = {
    "root": [*_NAMESPACES, "untrusted()", "untrusted(limits)", "Limits"],
    "login user": [*_NAMESPACES, "untrusted()"],
    "uid 65534": [*_NAMESPACES, "untrusted()"],
    "Docker": _ALWAYS,
    "podman": _NAMESPACES,
    "bubblewrap": [*_NAMESPACES, "untrusted()"],
    "untrusted()": _ALWAYS,
}


@pytest.mark.parametrize("host", hosts.HOSTS)
def test_26_what_starts(host: str) -> None:
    """And what does not says why: never that a program of a caller's would have to be root who is root already."""
    try:
        table = hosts.HOSTS[host]()
    except hosts.Missing as error:
        pytest.skip(str(error))
    failed = {name: row["why"] for name, row in table.items() if not row["ok"]}
    assert not set(failed) & set(_STARTS[host]), failed
    for why in failed.values():
        assert "cause: " in why, why
        assert "remedy: " in why, why
