"""Run under systemd by tests/vm/systemd-root: a group that was not delegated, then a scope asked for over D-Bus.

Ends with a line "scope: passed" or with a traceback.
"""

from __future__ import annotations

import os
import sys

import isolate
from isolate.cgroups.hierarchy import discover

BOMB = [sys.executable, "-I", "-S", "-c", "x = bytearray(160 << 20)"]


def own() -> str:
    """This process's group."""
    v2 = discover().v2
    assert v2 is not None
    return v2.own


def main() -> None:
    """The whole way."""
    before = own()
    print(f"uid {os.geteuid()} in {before}", flush=True)
    assert before.endswith(".service"), before
    if os.geteuid():
        remedy = ""
        try:
            isolate.Sandbox(isolate.Limits(memory="64M"))
        except isolate.UnsupportedError as error:
            print(error, flush=True)
            remedy = str(error.remedy)
        assert "systemd-run --user --scope -p Delegate=yes" in remedy, remedy
    top = isolate.Cgroup.take_over()
    print(f"now in {own()}", flush=True)
    assert top != before
    assert top.endswith(".scope"), top
    assert os.path.dirname(own()) == top
    # An ordinary user may drop the groups of its login in a user namespace only.
    user = [isolate.UserNamespace()] if os.geteuid() else []
    result = isolate.Sandbox(isolate.Limits(memory="64M", pids=20), *user).run(BOMB)
    assert result.verdict is isolate.Verdict.OOM, result
    free = isolate.Sandbox(isolate.Limits(pids=20), *user).run(BOMB)
    assert free.verdict is isolate.Verdict.OK, free
    with isolate.Cgroup(isolate.Limits(memory="64M")) as group:
        assert os.path.dirname(group.path) == top
        assert group.run(["true"], sandbox=isolate.Sandbox(*user)).verdict is isolate.Verdict.OK
    assert isolate.Cgroup.take_over() == top
    assert not [n for n in os.listdir(top) if n.startswith("isolate-") and not n.endswith("-self")]
    print("scope: passed", flush=True)


main()
