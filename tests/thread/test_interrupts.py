"""Control-C at every opcode of entering and leaving: the thread is as before, no descriptor is left."""

from __future__ import annotations

import dis
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate.thread import entering
from tests.apart import apart
from tests.thread.test_blocks import PARTS, namespaces, state

if TYPE_CHECKING:
    from types import FrameType

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LAST: list[object] = []  # where it was, for a failure
HERE = str(Path(entering.__file__).parent)


def interrupted_at(part: Any, wanted: int) -> bool:
    """Enter and leave, with KeyboardInterrupt at one opcode; whether there was such an opcode."""
    count = -1

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        frame.f_trace_opcodes = True
        code = frame.f_code
        # Before the try of __exit__ the interpreter looks for signals once, which Python cannot help.
        early = code.co_name == "__exit__" and frame.f_lineno < code.co_firstlineno + 7
        # Between this and the with statement it does not look.
        late = code.co_name == "__enter__" and code.co_code[frame.f_lasti] == dis.opmap["RETURN_VALUE"]
        if event == "opcode" and not early and not late:
            count += 1
            if count == wanted:
                LAST[:] = [code.co_name, frame.f_lineno, frame.f_lasti]
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with part:
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return count >= wanted


def sweep(name: str) -> None:
    """In a process of its own: see :mod:`tests.apart`."""
    isolate.Sandbox().run(["true"])  # the launcher's descriptor is not a leak
    together = isolate.Sandbox(PARTS["uts"][0], PARTS["capabilities"][0])
    part = together if name == "together" else PARTS[name][0]
    with part:
        pass
    before = state()
    at = 0
    while interrupted_at(part, at):
        assert namespaces() == before["namespaces"], (at, LAST)
        at += 1
        if at % 50 == 0:
            assert state() == before, (at, LAST)
    assert at > 100
    assert state() == before


@pytest.mark.parametrize("name", ["uts", "capabilities", "credentials", "mount", "together"])
def test_interrupted_everywhere(name: str) -> None:
    apart(__name__, "sweep", name)
