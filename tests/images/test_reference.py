"""Names of images, platforms and digests: read as docker reads them, or refused with the reason."""

from __future__ import annotations

import pickle
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.images import Platform, Reference
from isolate.images.digests import check_digest, digest_of

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "whole", "short"),
    [
        ("debian", "docker.io/library/debian:latest", "debian"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("me/app", "docker.io/me/app:latest", "me/app"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian"),
        ("localhost/app", "localhost/app:latest", "localhost/app"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app"),
        ("Host/app", "Host/app:latest", "Host/app"),
        ("registry.example/a/b/c:v1.2", "registry.example/a/b/c:v1.2", "registry.example/a/b/c:v1.2"),
        (f"debian@sha256:{HEX}", f"docker.io/library/debian@sha256:{HEX}", f"debian@sha256:{HEX}"),
        (f"r.example/d:12@sha256:{HEX}", f"r.example/d:12@sha256:{HEX}", f"r.example/d:12@sha256:{HEX}"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a"),
        ("a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest", "a__b/c-d--e.f"),
    ],
)
def test_names_are_read_as_docker_reads_them(text: str, whole: str, short: str) -> None:
    found = Reference.parse(text)
    assert (str(found), found.short) == (whole, short)
    assert Reference.parse(whole) == Reference.parse(short) == found
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 1024"),
        ("Debian", "lower-case: 'library/debian'"),
        ("https://r.example/a", "no scheme"),
        ("r.example/a:", "tag"),
        ("r.example/a:-x", "tag"),
        ("r.example/a@", "sha256"),
        ("r.example/a@sha256:abc", "64 lower-case"),
        (f"r.example/a@md5:{HEX}", "sha256 and sha512"),
        ("r.example/", "repository"),
        ("r.example//a", "repository"),
        ("r.example/../a", "repository"),
        ("r.example/a/../b", "repository"),
        ("r.example/a b", "repository"),
        ("r.example/a\n", "repository"),
        ("r.example:99999/a", "65535"),
        ("-r.example/a", "registry"),
        ("r.example/" + "a" * 255, "255"),
        ("a:b\u0660", "tag"),
    ],
)
def test_other_names_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        Reference.parse(text)
    assert why in str(caught.value)


@given(st.text(string.ascii_letters + string.digits + "./:@_-[]", max_size=40) | st.text(max_size=20))
def test_a_name_is_read_or_a_value_error(text: str) -> None:
    try:
        found = Reference.parse(text)
    except ValueError:
        return
    assert Reference.parse(str(found)) == Reference.parse(found.short) == found


def test_platforms() -> None:
    host = Platform.parse("arm64")
    assert host == Platform("arm64")
    assert str(Platform.parse("linux/arm/v7")) == "linux/arm/v7"
    assert Platform.parse("linux/x86_64") == Platform("amd64")
    assert Platform.host().os == "linux"
    assert host.runs(Platform("arm64", "linux", "v8"))
    assert Platform("arm64", "linux", "v8").runs(host)
    v7 = Platform("arm", "linux", "v7")
    assert v7.runs(Platform("arm", "linux", "v6"))
    assert not Platform("arm", "linux", "v6").runs(v7)
    others = [
        Platform("arm", "linux", "v5"),
        Platform("amd64"),
        Platform("arm", "linux", "v6"),
        Platform("arm", "windows"),
    ]
    assert v7.choose(others) == 2
    assert Platform("s390x").choose(others) is None
    for bad in ("", "linux/", "a/b/c/d", "linux//x"):
        with pytest.raises(ValueError):
            Platform.parse(bad)


def test_digests() -> None:
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert check_digest(digest_of([b"a", b"b"], "sha512")) == digest_of(b"ab", "sha512")
    for bad in ("sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha1:" + "a" * 40, f"sha256:{HEX}\n"):
        with pytest.raises(ValueError):
            check_digest(bad)
