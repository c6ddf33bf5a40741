"""Configurations and documents as values: round trips, what is refused, the published schemas."""

from __future__ import annotations

import json
import pickle

import pytest

from isolate.images import Config, DigestError, Health, ImageError, LayerError, RegistryError, StoreError
from isolate.images.documents import (
    DOCKER_LIST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    dump,
    packing_of,
    parse,
    read_index,
    read_manifest,
)

D = "sha256:" + "a" * 64
FULL = Config(
    user="1000:1000",
    env={"PATH": "/bin", "A": ""},
    entrypoint=["/app"],
    cmd=("-v",),
    workdir="/srv",
    volumes=["/data"],
    ports=["80/tcp"],
    labels={"a": "b"},
    stop_signal="SIGINT",
    shell=["/bin/bash", "-c"],
    on_build=["RUN x"],
    health=Health(("CMD", "true"), interval=1.5, timeout=1, start_period=2, retries=3),
)


def test_a_config_survives_the_way_out_and_in() -> None:
    assert Config.read(json.loads(dump(FULL.document()))) == FULL
    assert Config.read({}) == Config()
    assert Config().document() == {}
    assert pickle.loads(pickle.dumps(FULL)) == FULL
    assert hash(FULL)
    assert eval(repr(FULL)) == FULL


def test_what_go_writes_for_nothing_is_nothing() -> None:
    assert (
        Config.read({"User": "", "WorkingDir": "", "Volumes": None, "Cmd": None, "Labels": {}, "OnBuild": []})
        == Config()
    )
    assert Config.read({"WorkingDir": "srv"}).workdir == "/srv"


def test_one_config_over_another() -> None:
    base = Config(env={"PATH": "/bin", "A": "1"}, cmd=["sh"], labels={"x": "1"}, user="root")
    top = Config(env={"A": None, "B": "2"}, cmd=["ls"], labels={"y": "2"})
    both = top.over(base)
    assert both.environment == {"PATH": "/bin", "B": "2"}
    assert both.cmd == ("ls",)
    assert both.user == "root"
    assert dict(both.labels or ()) == {"x": "1", "y": "2"}
    assert Config(entrypoint=["/e"], cmd=["a"]).arguments() == ("/e", "a")
    assert Config(entrypoint=["/e"], cmd=["a"]).arguments(["b", "c"]) == ("/e", "b", "c")
    with pytest.raises(ValueError, match="names no program"):
        Config().arguments()


@pytest.mark.parametrize(
    ("said", "error", "why"),
    [
        ({"cmd": "ls -l"}, TypeError, "several str"),
        ({"workdir": "srv"}, ValueError, "absolute"),
        ({"volumes": ["data"]}, ValueError, "absolute"),
        ({"env": {"A=B": "x"}}, ValueError, "no '='"),
        ({"env": ["A=B"]}, TypeError, "mapping"),
        ({"user": "\0"}, ValueError, "NUL"),
        ({"cmd": ["\udc80"]}, ValueError, "JSON can carry"),
        ({"health": "true"}, TypeError, "Health"),
        ({"entry_point": ["x"]}, TypeError, "did you mean 'entrypoint'"),
        ({"environment": {}}, TypeError, "no 'environment'"),
    ],
)
def test_what_a_config_refuses(said: dict[str, object], error: type[Exception], why: str) -> None:
    with pytest.raises(error) as caught:
        Config(**said)  # type: ignore[arg-type]
    assert why in str(caught.value)


def manifest(**changes: object) -> bytes:
    layer = {"mediaType": OCI_LAYER, "digest": D, "size": 3}
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": D, "size": 2},
        "layers": [layer],
    }
    document.update(changes)
    return dump({key: value for key, value in document.items() if value is not ...})


def test_a_manifest_is_read() -> None:
    found = read_manifest(manifest(), OCI_MANIFEST)
    assert found.layers[0].size == 3
    assert found.config.media_type == OCI_CONFIG
    assert read_manifest(manifest(mediaType=...), OCI_MANIFEST) == found
    assert [packing_of(OCI_LAYER + end) for end in ("", "+gzip", "+zstd", "+xz")] == ["none", "gzip", "zstd", None]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"schemaVersion": NaN}', "no JSON"),
        (b'{"a": 1, "a": 2}', "stands there twice"),
        (b" " * (5 << 20), "at most"),
        (manifest(schemaVersion=1), "schema 1"),
        (manifest(schemaVersion="2"), "schemaVersion"),
        (manifest(manifests=[]), "two ways"),
        (manifest(mediaType=OCI_INDEX), "two ways"),
        (manifest(layers=None), "list"),
        (manifest(layers=[{}] * 1001), "at most 1000"),
        (manifest(layers=[1]), "object"),
        (manifest(layers=[{"mediaType": OCI_LAYER, "digest": "sha256:../../x", "size": 1}]), "digest"),
        (manifest(layers=[{"mediaType": OCI_LAYER, "digest": D, "size": -1}]), "size"),
        (manifest(layers=[{"mediaType": OCI_LAYER, "digest": D, "size": True}]), "size"),
        (manifest(layers=[{"mediaType": OCI_LAYER, "digest": D, "size": 1 << 60}]), "size"),
        (manifest(annotations={"a": 1}), "strings"),
        (manifest(config=[]), "object"),
    ],
)
def test_manifests_that_break_a_rule(data: bytes, why: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_manifest(data, OCI_MANIFEST)
    assert why in str(caught.value)


def test_an_index_is_no_manifest_and_the_reverse() -> None:
    row = {"mediaType": OCI_MANIFEST, "digest": D, "size": 1, "platform": {"architecture": "arm64", "os": "linux"}}
    index = dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [row]})
    found = read_index(index, OCI_INDEX)
    assert str(found.platforms[0]) == "linux/arm64"
    with pytest.raises(ImageError, match="two ways"):
        read_index(index, DOCKER_LIST)
    with pytest.raises(ImageError):
        read_manifest(index)
    with pytest.raises(ImageError):
        read_index(manifest())
    with pytest.raises(ImageError, match="two ways"):
        read_index(dump({"schemaVersion": 2, "manifests": [], "layers": []}))
    with pytest.raises(ImageError, match="platform"):
        read_index(dump({"schemaVersion": 2, "manifests": [{**row, "platform": {"os": "linux"}}]}))
    assert parse(b"{}", "config") == {}


def test_errors_survive_pickle_and_escape() -> None:
    errors = [
        LayerError(b"a\nb", "no newline"),
        DigestError(D, D, "layer"),
        ImageError("manifest", "bad"),
        RegistryError(404, "NAME_UNKNOWN", "x\x1b[2J", url="http://h/v2/", remedy="r"),
        StoreError("full", errno=28, path=b"/a\xff", cause="c", remedy="r"),
    ]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__
        assert "\x1b" not in str(error)
    assert "errno 28" in str(errors[-1])
    assert "\\n" in str(errors[0])
