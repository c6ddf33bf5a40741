"""A sandbox and a root are edited like values, and say how where they refuse."""

from __future__ import annotations

import pytest

import isolate
from isolate import (
    Bind,
    ConflictError,
    Dir,
    File,
    Limits,
    NetNamespace,
    PidNamespace,
    Proc,
    Rlimits,
    Root,
    Sandbox,
    Seccomp,
    Tmpfs,
    UserNamespace,
    UtsNamespace,
    presets,
)

BASE = Sandbox(UserNamespace(), PidNamespace(), Root(Bind("/usr"), Tmpfs("/tmp", size="1M")))


def part(box: Sandbox, kind: type) -> object:
    (found,) = [each for each in box.parts if isinstance(each, kind)]
    return found


def test_plus_adds_parts_and_refuses_a_kind_that_is_there() -> None:
    assert part(BASE + UtsNamespace(), UtsNamespace) == UtsNamespace()
    assert (BASE.__add__([UtsNamespace(), NetNamespace()])).parts == (*BASE.parts, UtsNamespace(), NetNamespace())
    assert (BASE + Sandbox(UtsNamespace())).parts == (*BASE.parts, UtsNamespace())
    with pytest.raises(ConflictError) as caught:
        BASE + PidNamespace()
    assert str(caught.value) == "PidNamespace is there already: .replace(PidNamespace(…)) puts another in its place"
    assert len((BASE + Seccomp.default() + Seccomp.default()).parts) == 5  # of a kind that may be there twice
    with pytest.raises(TypeError, match=r"did you mean UtsNamespace\(\)"):
        BASE + UtsNamespace  # type: ignore[operator]


def test_replace_puts_a_part_in_its_place() -> None:
    new = UserNamespace(uid=5, gid=5)
    assert BASE.replace(new).parts == (new, *BASE.parts[1:])
    assert BASE.replace(Rlimits(nofile=64)).parts == (*BASE.parts, Rlimits(nofile=64))
    twice = BASE + Seccomp.default() + Seccomp.default()
    assert len(twice.replace(Seccomp.strict()).parts) == 4
    assert BASE.replace(UserNamespace()) == BASE


def test_without_leaves_parts_and_entries_out() -> None:
    assert BASE.without(PidNamespace).parts == (BASE.parts[0], BASE.parts[2])
    assert part(BASE.without(Tmpfs), Root) == Root(Bind("/usr"))
    with pytest.raises(ValueError, match="there is no Limits here"):
        BASE.without(Limits)
    with pytest.raises(TypeError, match="kind must be a class of parts"):
        BASE.without(PidNamespace())  # type: ignore[arg-type]


def test_an_entry_goes_into_the_root() -> None:
    assert part(BASE + File("/note", "x"), Root) == Root(Bind("/usr"), Tmpfs("/tmp", size="1M"), File("/note", "x"))
    both = BASE + Dir("/a") + UtsNamespace()
    assert part(both, Root) == Root(Bind("/usr"), Tmpfs("/tmp", size="1M"), Dir("/a"))
    with pytest.raises(ConflictError, match=r"\+ Root\(Bind\(…\)\)"):
        Sandbox(UserNamespace()) + Bind("/usr")
    assert (presets.untrusted() + File("/note", "inside")).run(["cat", "/note"]).stdout == b"inside"


def test_the_root_alone() -> None:
    root = Root(Bind("/usr"), Tmpfs("/tmp"), size="2M")
    assert root + Dir("/a") == Root(Bind("/usr"), Tmpfs("/tmp"), Dir("/a"), size="2M")
    assert root.replace(Tmpfs("/tmp", size="1M")) == Root(Bind("/usr"), Tmpfs("/tmp", size="1M"), size="2M")
    assert root.replace(Tmpfs("/var")) == Root(Bind("/usr"), Tmpfs("/tmp"), Tmpfs("/var"), size="2M")
    assert root.without("/tmp") == root.without(Tmpfs) == Root(Bind("/usr"), size="2M")
    with pytest.raises(ValueError, match="no entry Proc"):
        root.without(Proc)
    with pytest.raises(ValueError, match="no entry '/x'"):
        root.without("/x")


def test_presets_take_parts_among_their_entries() -> None:
    box = presets.untrusted(File("/note", "x"), UtsNamespace(hostname="other"), limits=None)
    assert box.run(["cat", "/note", "/proc/sys/kernel/hostname"]).stdout == b"xother\n"
    joined = presets.untrusted(network=NetNamespace())
    assert part(joined, NetNamespace) == NetNamespace()
    limits = Limits(pids=50)
    assert part(presets.container("/", limits=limits), Limits) == limits
    assert not any(isinstance(each, NetNamespace) for each in presets.container("/", network=True).parts)
    assert part(presets.container("/"), NetNamespace) == NetNamespace()


def test_a_preset_for_containers_whose_proc_is_covered() -> None:
    """Inside of a sandbox whose /proc is masked, as Docker's is."""
    inside = (
        "from isolate import presets, SetupError\n"
        "try: print('untrusted', presets.untrusted().run(['true']).verdict)\n"
        "except SetupError as error: print('refused', 'presets.nested()' in str(error))\n"
        "print('nested', presets.nested().run(['sh', '-c', 'test -r /proc/self/status && test ! -w /proc']).verdict)\n"
    )
    outer = Sandbox(
        UserNamespace(nested=True, map=isolate.IdMap.unprivileged())
        if isolate.namespaces.ids.is_host_root()
        else UserNamespace(nested=True),
        PidNamespace(),
        Root(Bind("/", "/", dev=True), Proc()),
        isolate.Capabilities.all(),
        Seccomp(otherwise="allow", foreign="allow"),
    )
    import sys

    result = outer.run([sys.executable, "-c", inside], text=True)
    assert result.stdout == "refused True\nnested OK\n", result


def test_executable_and_another_name() -> None:
    box = presets.untrusted()
    told = (
        box.run(["another name", "-c", "echo $0; cat /proc/$$/cmdline"], executable="/bin/sh", text=True).stdout or ""
    )
    assert told.startswith("another name\n")
    assert "another name\0-c" in told
    with box.open() as c:
        assert c.run(["-sh", "-c", "echo $0"], executable="sh").stdout == b"-sh\n"
    with pytest.raises(isolate.SetupError):
        box.run(["sh"], executable="/no/such")
    with pytest.raises(ValueError, match="executable is empty"):
        box.run(["sh"], executable="")
