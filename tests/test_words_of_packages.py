"""Messages of the constructors of networks, images, builds and handles, as :mod:`tests.test_words` has it of the parts.

Every public class of a package is called here with a typo, a wrong type and a wrong unit, or is named as one that the
library alone makes.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PidNamespace, Sandbox, UserNamespace
from isolate.images import Image, Layer, Store
from isolate.network import Network
from tests.test_words import CLASSES, MADE

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What each class needs to be made at all; a name in brackets is an object of the fixture ``things``.
NEEDED: dict[str, tuple[Any, ...]] = {
    "isolate.Cgroup": (),
    "isolate.CgroupPool": (),
    "isolate.Pool": ("<box>",),
    "isolate.Root": (),
    "isolate.Sandbox": (),
    "isolate.Seccomp": (),
    "isolate.Surroundings": (),
    "isolate.Workspace": (),
    "isolate.network.Connect": ("db:5432",),
    "isolate.network.Domains": ("a.example",),
    "isolate.network.Egress": (["db:5432"],),
    "isolate.network.Ingress": (["web:5432"],),
    "isolate.network.Interface": ("<network>",),
    "isolate.network.Network": (),
    "isolate.network.Publish": (80, 80),
    "isolate.network.Userspace": (),
    "isolate.images.Bounds": (),
    "isolate.images.Config": (),
    "isolate.images.Health": (["CMD", "x"],),
    "isolate.images.History": (),
    "isolate.images.ImageRoot": ("<image>",),
    "isolate.images.Platform": ("amd64",),
    "isolate.images.Reference": ("docker.io", "a/b"),
    "isolate.images.Registry": ("docker.io",),
    "isolate.images.Store": ("<path>",),
    "isolate.images.Upper": ("<store>",),
    "isolate.build.Context": ("/tmp",),
    "isolate.build.Ignore": (),
    "isolate.build.Mount": (),
    "isolate.build.Recipe": (),
    "isolate.build.Stage": ("scratch",),
}
#: What the library alone makes, or makes from documents: Image and Layer by their functions.
RESULTS = {
    "network": {"Asked", "Connection", "Counters", "Shared"},
    "images": {"Change", "Changes", "Collected", "Extracted", "Fact", "Facts", "Fault", "Image", "Layer", "Progress"}
    | {"Sent"},
    "build": {"Built", "Dockerfile", "Step"},
}
UNITS = [
    ("isolate.network.Interface", "rate", "20 parsecs"),
    ("isolate.network.Interface", "burst", "5 minutes"),
    ("isolate.network.Interface", "mtu", "1500 bytes"),
    ("isolate.network.Network", "mtu", "big"),
    ("isolate.network.Network", "subnet", "10.88.0.0/255 bits"),
    ("isolate.network.Userspace", "mtu", "big"),
    ("isolate.network.Domains", "port", "https"),
    ("isolate.network.Connect", "listen", "http"),
    ("isolate.images.Bounds", "bytes", "5 apples"),
    ("isolate.images.Bounds", "file", "64Q"),
    ("isolate.images.ImageRoot", "size", "10 minutes"),
    ("isolate.images.Registry", "timeout", "1 day"),
    ("isolate.images.Health", "interval", "30 seconds"),
    ("isolate.Workspace", "size", "5 apples"),
    ("isolate.Workspace", "files", "many"),
    ("isolate.Pool", "size", "few"),
    ("isolate.CgroupPool", "size", "few"),
    ("isolate.build.Mount", "mode", "rwx"),
]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    path = tmp_path_factory.mktemp("words") / "store"
    with Network() as lan, Store(path) as store:
        image = Image.empty() + Layer.files({"a": b"x"})
        yield {
            "<box>": Sandbox(UserNamespace(), PidNamespace()),
            "<network>": lan,
            "<store>": store,
            "<path>": path,
            "<image>": image,
        }


def of(name: str) -> Any:
    package, _, word = name.rpartition(".")
    return getattr(importlib.import_module(package), word)


def parameters(name: str) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [word for word, p in inspect.signature(of(name)).parameters.items() if p.kind not in kinds]


def refused(things: dict[str, Any], name: str, /, **more: Any) -> str:
    given = [things.get(each, each) if isinstance(each, str) else each for each in NEEDED[name]]
    extra = {"store": things["<store>"]} if name.endswith("ImageRoot") else {}
    with pytest.raises((TypeError, ValueError)) as caught:
        of(name)(*given, **{**extra, **more})
    return str(caught.value)


def test_every_public_class_is_here_or_made_by_the_library() -> None:
    for package in ("network", "images", "build"):
        module = importlib.import_module(f"isolate.{package}")
        classes = {name for name in module.__all__ if isinstance(getattr(module, name), type)}
        users = {name for name in classes if not issubclass(getattr(module, name), BaseException)} - RESULTS[package]
        assert users == {name.rpartition(".")[2] for name in NEEDED if name.startswith(f"isolate.{package}.")}
    handles = {name.rpartition(".")[2] for name in NEEDED if name.count(".") == 1}
    assert handles <= MADE
    assert not handles & set(CLASSES)


@pytest.mark.parametrize("name", NEEDED)
def test_a_typo_names_the_nearest_word(name: str, things: dict[str, Any]) -> None:
    known = parameters(name)
    for word in known:
        typo = word[:-2] + word[-1]
        if len(word) < 4 or typo in known or name == "isolate.images.Config":  # whose other keys are kept as they are
            continue
        message = refused(things, name, **{typo: None})
        assert typo in message
        assert any(near in message for near in difflib.get_close_matches(typo, known, n=3, cutoff=0.5)), message


@pytest.mark.parametrize("name", NEEDED)
def test_a_wrong_type_is_refused_and_shown(name: str, things: dict[str, Any]) -> None:
    for word in parameters(name)[len(NEEDED[name]) :]:
        message = refused(things, name, **{word: 3.5j})
        assert word in message or "3.5j" in message or "complex" in message, message


@pytest.mark.parametrize(("name", "word", "value"), UNITS)
def test_a_wrong_unit_is_shown(name: str, word: str, value: str, things: dict[str, Any]) -> None:
    message = refused(things, name, **{word: value})
    assert value in message or value.split()[-1] in message, message
