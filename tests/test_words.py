"""Messages stay good: each public class's constructor is called with a typo, a wrong type and a wrong unit.

What is refused is refused by a sentence that a person can act on: it says the value or the word, and for a typo the
nearest right one.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any

import pytest

import isolate

#: What each class needs to be made at all.
NEEDED: dict[str, tuple[Any, ...]] = {
    "Bind": ("/usr",),
    "Dir": ("/d",),
    "File": ("/f", b""),
    "IdMap": ([(0, 0, 1)], [(0, 0, 1)]),
    "IdRange": (0, 0),
    "Device": ("/n", (1, 3)),
    "FileSystem": ("tmpfs", "/f"),
    "HostProgram": (["/bin/true"],),
    "Sysctl": ({"user.x": 1},),
    "Mask": ("/m",),
    "ReadOnly": ("/r",),
    "Symlink": ("to", "/l"),
    "Tmpfs": ("/tmp",),
    "Overlay": ("/o",),
}
NAMED: dict[str, dict[str, Any]] = {"Overlay": {"lower": ["/usr"]}, "Landlock": {"read": ["/"]}}
MADE = {
    "Attached",
    "AsyncProcess",
    "Cap",
    "Change",
    "Container",
    "Context",
    "DetachedContainer",
    "Irreversible",
    "Learned",
    "Part",
    "Phase",
    "Prepared",
    "Process",
    "Result",
    "Reversible",
    "SecureBits",
    "Step",
    "Verdict",
    "FileInfo",
    "Cgroup",
    "CgroupPool",
    "Pool",
    "Sandbox",
    "Surroundings",
    "Seccomp",
    "Root",
    "SetIdFiles",
    "Workspace",
}
CLASSES = sorted(
    name
    for name in isolate.__all__
    if isinstance(getattr(isolate, name), type)
    and name not in MADE
    and not issubclass(getattr(isolate, name), BaseException)
)


def make(name: str, **more: Any) -> object:
    return getattr(isolate, name)(*NEEDED.get(name, ()), **{**NAMED.get(name, {}), **more})


def keywords(name: str) -> list[str]:
    found = getattr(isolate, name)
    if dataclasses.is_dataclass(found):
        fields = {field.name for field in dataclasses.fields(found) if field.init}
        return [word for word in inspect.signature(found).parameters if word in fields]
    return [word for word, p in inspect.signature(found).parameters.items() if p.kind is not p.VAR_POSITIONAL]


def refused(name: str, **more: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        make(name, **more)
    message = str(caught.value)
    assert len(message) > 10, message
    assert "object at 0x" not in message
    return message


@pytest.mark.parametrize("name", CLASSES)
def test_the_class_can_be_made(name: str) -> None:
    make(name)


@pytest.mark.parametrize("name", CLASSES)
def test_a_typo_names_the_nearest_word(name: str) -> None:
    for word in keywords(name):
        if len(word) < 4:
            continue
        typo = word[:-2] + word[-1]
        if typo in keywords(name):
            continue
        message = refused(name, **{typo: None})
        assert typo in message
        nearest = difflib.get_close_matches(typo, keywords(name), n=3, cutoff=0.5)
        assert any(near in message for near in nearest), message


@pytest.mark.parametrize("name", CLASSES)
def test_a_wrong_type_is_refused_and_shown(name: str) -> None:
    """An object that is nothing anywhere: the message says the parameter, or what was given."""
    positional = [p.name for p in list(inspect.signature(getattr(isolate, name)).parameters.values())]
    for word in keywords(name):
        taken = word in positional[: len(NEEDED.get(name, ()))]
        if taken or word in (
            "map",
            "idmap",
            "parent",
            "options",
        ):  # objects of the library: looked at when they are used
            continue
        message = refused(name, **{word: 3.5j})
        assert word in message or "3.5j" in message or "complex" in message, message


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("Limits", "memory", "64 parsecs"),
        ("Limits", "memory", "64MBit"),
        ("Limits", "cpu", "half"),
        ("Limits", "pids", "many"),
        ("Tmpfs", "size", "10 minutes"),
        ("Tmpfs", "size", "64Q"),
        ("Overlay", "size", "5s"),
        ("Dev", "shm", "wide"),
        ("Rlimits", "fsize", "5 apples"),
        ("Rlimits", "nofile", "a lot"),
        ("Rlimits", "cpu", "2 hours"),
        ("TimeNamespace", "boottime", "1 day"),
        ("Scheduling", "nice", "very"),
    ],
)
def test_a_wrong_unit_is_shown(name: str, word: str, value: str) -> None:
    message = refused(name, **{word: value})
    assert value in message or value.split()[-1] in message, message
