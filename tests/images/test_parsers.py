"""Any bytes: an archive is read or refused by a LayerError, facts by a ValueError. Nothing else ever happens."""

from __future__ import annotations

import gzip
import io
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from isolate.images import Fact, Facts, LayerError
from isolate.images.archive.compression import compression_of, decompressed
from isolate.images.archive.read import entries
from isolate.images.archive.source import Source
from isolate.images.archive.write import header
from tests.images.archives import Maker, pax
from tests.images.generated import Case, cases
from tests.images.more import more

if TYPE_CHECKING:
    from isolate.images.archive.entry import Entry

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}
BASE = (
    Maker()
    .directory("a")
    .file("a/b", b"x" * 700)
    .symlink("l", "a")
    .link("h", "a/b")
    .device("d", 1, 3)
    .add(pax({b"path": b"n" * 120, b"mtime": b"1.5", b"SCHILY.xattr.user.a": b"v"}))
    .file("x", b"y")
    .done()
)


def read(data: bytes, piece: int = 4096) -> list[Entry]:
    """The entries; the bytes of files are passed over."""
    stream = io.BytesIO(data)
    first = stream.read(piece)
    pieces = decompressed(first, lambda: stream.read(piece), compression_of(first))
    source, found = Source(iter(pieces)), []
    for entry in entries(source):
        found.append(entry)
        source.skip(entry.size, entry.path)
    return found


PLACES = st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=150, **QUIET)  # type: ignore[arg-type]
@given(PLACES, st.booleans())
@example([(0, 0)], False)
def test_changed_bytes(changes: list[tuple[int, int]], packed: bool) -> None:
    data = bytearray(gzip.compress(BASE, mtime=0) if packed else BASE)
    for at, value in changes:
        data[at % len(data)] = value
    try:
        read(bytes(data))
    except LayerError as error:
        str(error)


test_many_changed_bytes = more(test_changed_bytes, 10_000, PLACES, st.booleans())


@settings(max_examples=200, **QUIET)  # type: ignore[arg-type]
@given(st.binary(max_size=600), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"]))
def test_any_bytes(data: bytes, magic: bytes) -> None:
    try:
        assert read(magic + data) == []
    except LayerError as error:
        str(error)


@settings(max_examples=50, **QUIET)  # type: ignore[arg-type]
@given(cases(devices=True, forms=("ours",)), st.integers(1, 3000))
def test_what_is_written_is_read_in_whatever_pieces_it_comes(case: Case, piece: int) -> None:
    found = read(case.archive(), piece)
    assert found == [entry for entry, _ in case.rows]


test_many_archives_are_read_as_they_were_written = more(
    test_what_is_written_is_read_in_whatever_pieces_it_comes,
    1500,
    cases(devices=True, forms=("ours",)),
    st.integers(1, 3000),
)


@settings(**QUIET)  # type: ignore[arg-type]
@given(st.binary(max_size=2000))
def test_a_record_of_any_value(value: bytes) -> None:
    """The length of a PAX record counts itself, which is off by one somewhere."""
    from isolate.images.archive import entry as kinds
    from isolate.images.archive.entry import Entry

    entry = Entry(b"f", kinds.FILE, xattrs={b"user.a": value})
    assert read(header(entry) + bytes(1024)) == [entry]


FACTS = st.one_of(
    st.binary(max_size=80),
    st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.sampled_from(["uid", "kind", "device"])
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["uid", "gid", "mode", "kind", "device", "xattrs", "same", "other"]),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(["path", value]).encode()),
)


@settings(max_examples=150, **QUIET)  # type: ignore[arg-type]
@given(FACTS)
def test_facts_of_any_bytes(data: bytes) -> None:
    try:
        facts = Facts.from_bytes(data)
    except ValueError:
        return
    assert Facts.from_bytes(facts.to_bytes()) == facts


test_many_facts = more(test_facts_of_any_bytes, 3000, FACTS)


def test_facts_come_back() -> None:
    facts = Facts(
        {b"\xff": Fact(uid=5, xattrs={b"a.b": b"\0"}), b"d": Fact(1, 2, "3", (1, 3), 0o600, 9), b"e": Fact(same=b"d")}
    )
    assert Facts.from_bytes(facts.to_bytes()) == facts
    assert list(facts) == [b"\xff", b"d", b"e"] or list(facts) == sorted(facts)
    assert facts.get(b"none") is None
    with pytest.raises(KeyError):
        facts[b"none"]
