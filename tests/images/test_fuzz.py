"""Documents of strangers are read, or refused with the error for it: nothing else ever comes out."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from isolate.images import Image, ImageError, RegistryError
from isolate.images.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, dump, read_index, read_manifest
from isolate.images.registry.addresses import origin, without_secrets
from isolate.images.registry.auth import challenges
from tests.images.make import image
from tests.images.more import more

if TYPE_CHECKING:
    from collections.abc import Callable

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
GOOD = image({"a": b"1"}, cmd=("x",), env={"A": "1"}, volumes=["/v"], labels={"a": "b"}, user="1")
ROW = {**Descriptor(OCI_MANIFEST, GOOD.digest, 3).document(), "platform": {"architecture": "amd64", "os": "linux"}}
INDEX = dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ROW]})


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    found = [path]
    if isinstance(document, dict):
        for key in document:
            found += places(document[key], (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            found += places(value, (*path, index))
    return found


@st.composite
def changed(draw: Callable[[st.SearchStrategy[Any]], Any], data: bytes) -> bytes:
    """A good document in which something was replaced, added or taken away."""
    document = json.loads(data)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(document)))
        if not path:
            continue
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            holder[path[-1]] = draw(JSON)
        elif what == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(JSON)
    return json.dumps(document).encode()


MANIFESTS = changed(GOOD.manifest) | st.binary(max_size=40) | JSON.map(lambda v: json.dumps(v).encode())
CONFIGURATIONS = changed(GOOD.document) | JSON.map(lambda v: json.dumps(v).encode())


@settings(max_examples=60, deadline=None)
@given(MANIFESTS)
def test_manifests(data: bytes) -> None:
    try:
        found = read_manifest(data, OCI_MANIFEST)
    except ImageError:
        return
    assert all(layer.size >= 0 for layer in found.layers)


@settings(max_examples=60, deadline=None)
@given(changed(INDEX) | st.binary(max_size=40))
def test_indexes(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        read_index(data)


@settings(max_examples=80, deadline=None)
@given(CONFIGURATIONS)
def test_configurations(data: bytes) -> None:
    try:
        found = Image(GOOD.layers, data)
    except ImageError:
        return
    # Whatever was taken can be shown, changed and written.
    assert found.id
    assert found.digest
    assert repr(found)
    assert found.history is not None
    assert found.platform.os
    assert (found.created or "") is not None
    assert found.config.environment is not None
    again = found.with_(type(found.config)(user="2"))
    assert again.config.user == "2"


test_many_manifests = more(test_manifests, 3000, MANIFESTS)
test_many_indexes = more(test_indexes, 3000, changed(INDEX) | st.binary(max_size=40))
test_many_configurations = more(test_configurations, 5000, CONFIGURATIONS)


@given(st.text(max_size=200) | st.from_regex(r'(Bearer|Basic) ([a-z]+="?[^"]*"?,? ?){0,4}'))
def test_challenges(header: str) -> None:
    for challenge in challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{0,20}(:[0-9]{0,7})?/.{0,20}"))
def test_addresses(url: str) -> None:
    for read in (origin, without_secrets):
        with contextlib.suppress(RegistryError):
            read(url)


def test_a_history_of_other_things() -> None:
    document = json.loads(GOOD.document)
    document["history"] = [5, {"created": [], "created_by": 7, "empty_layer": 1}, {"created": "1970-01-01T00:00:00Z"}]
    rows = Image(GOOD.layers, json.dumps(document).encode()).history
    assert [(row.created, row.created_by, row.empty) for row in rows] == [
        (None, "7", True),
        ("1970-01-01T00:00:00Z", "", False),
    ]
