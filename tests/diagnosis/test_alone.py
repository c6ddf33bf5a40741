"""Newer ways to a mount namespace: what this kernel answers, and what answers mean."""

from __future__ import annotations

import errno
import os
import platform
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate.diagnosis.alone import answer, made_alone
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from tests.snapshot import Snapshot

ASK = "from isolate.diagnosis.alone import made_alone; print(made_alone())"


@pytest.mark.parametrize(
    ("known", "unknown", "meaning"),
    [
        (-errno.EINVAL, -errno.EINVAL, False),  # the kernel has no such flag
        (-errno.EBADF, -errno.EINVAL, True),  # it came as far as the descriptor
        (-errno.EPERM, -errno.EINVAL, True),  # or as the right, which it asks for after the flags
        (-errno.EPERM, -errno.EPERM, None),  # a filter; or fsmount before Linux 7.1, without a right to mount
        (-errno.ENOSYS, -errno.ENOSYS, None),  # clone3 in a container
        (0, 0, None),  # a filter that says 0 to everything
        (3, -errno.EINVAL, None),
    ],
)
def test_what_an_answer_means(known: int, unknown: int, meaning: bool | None) -> None:
    assert answer(known, unknown) is meaning


def test_what_this_kernel_answers(clean: Snapshot) -> None:
    version = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
    found = made_alone()
    for name, since in (("open_tree", (7, 0)), ("fsmount", (7, 1)), ("clone3", (7, 1))):
        if found[name] is not None and version < since:
            assert found[name] is False, name
    if os.geteuid() == 0 and version >= (7, 1):
        assert found == dict.fromkeys(found, True)


def test_as_an_ordinary_user() -> None:
    version = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
    told = as_ordinary_user(ASK)
    assert version >= (7, 0) or "True" not in told, told


def test_a_filter_is_no_kernel() -> None:
    """Where the call itself is refused, nothing is said of the kernel."""
    refused = isolate.Seccomp(
        isolate.seccomp.rule("EPERM", "open_tree", "fsmount"),
        isolate.seccomp.rule("ENOSYS", "clone3"),
        otherwise="allow",
    )
    assert set(isolate.in_thread(made_alone, refused).values()) == {None}
