"""Layouts and archives in and out: the same bytes each time, read by others, and what others write."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from isolate.images import DigestError, Image, ImageError, Layer, LayerError, Store, StoreError
from isolate.images.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, dump, layer_type
from tests.images.make import archive, image, layer, noise
from tests.images.registries import need

SCHEMAS = Path(__file__).parents[2] / ".." / "shared" / "corpora" / "oci-schema"
HEX = "sha256:" + "a" * 64
FORMATS = ("oci", "oci-archive", "docker-archive")


@pytest.mark.parametrize("form", FORMATS)
def test_out_and_in_again(store: Store, other: Store, tmp_path: Path, form: str) -> None:
    made = store.add(image({"a": b"1"}, {"b": noise(100_000)}, cmd=("x",), user="7"), "me/app:1")
    second = store.add(made + layer({"c": b"3"}), "me/app:2")
    target = tmp_path / "out"
    store.save(["me/app:1", "me/app:2"], target, format=form)
    got = other.load(target)
    assert [one.id for one in got] == [made.id, second.id]
    assert {r.short for r in other.tags()} == {"me/app:1", "me/app:2"}
    assert other.open("me/app:2").diffids == second.diffids
    assert other.check(deep=True) == []
    if form != "docker-archive":
        assert [one.digest for one in got] == [made.digest, second.digest]
    if form == "oci":
        store.save("me/app:1", target)  # again: nothing changes
        assert len(other.load(target)) == 2
    else:
        store.save(["me/app:1", "me/app:2"], tmp_path / "again", format=form)
        assert (tmp_path / "again").read_bytes() == target.read_bytes()


def test_a_compressed_archive_through_a_pipe(store: Store, other: Store) -> None:
    store.add(image({"a": noise(50_000)}), "me/app:1")
    out = io.BytesIO()
    store.save("me/app:1", out, format="docker-archive")
    (got,) = other.load(gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(out.getvalue()))), "x/y:2")  # type: ignore[arg-type]
    assert other.open("x/y:2") == got
    (again,) = other.load(io.BytesIO(gzip.compress(out.getvalue())))
    assert again == got


def test_what_cannot_be_written_whole_gets_no_name(store: Store, tmp_path: Path) -> None:
    made = store.add(image({"a": noise(50_000)}), "me/app:1")
    os.unlink(f"{store.path}/blobs/sha256/{made.layers[0].digest[7:]}")
    with pytest.raises(StoreError, match="not in the store"):
        store.save("me/app:1", tmp_path / "out", format="oci-archive")
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(ValueError, match="format must be"):
        store.save("me/app:1", tmp_path / "out", format="tar")
    with pytest.raises(TypeError, match="a layout is a directory"):
        store.save("me/app:1", io.BytesIO())


@pytest.mark.parametrize("form", [pytest.param("oci", marks=pytest.mark.slow), *FORMATS[1:]])
def test_skopeo_reads_it(store: Store, other: Store, tmp_path: Path, form: str) -> None:
    skopeo = need("skopeo")
    made = store.add(image({"a": b"1"}, {"b": noise(10_000)}, cmd=("x",)), "me/app:1")
    store.save("me/app:1", tmp_path / "out", format=form)
    source = f"{form}:{tmp_path}/out" + ("" if form == "docker-archive" else ":1")
    for back in ("oci:x", "oci-archive:x.tar:x", "docker-archive:y.tar:me/back:1"):
        kind, name, *rest = back.split(":")
        target = ":".join((kind, str(tmp_path / name), *rest))
        subprocess.run([skopeo, "--insecure-policy", "copy", "-q", source, target], check=True, timeout=60)
        (got,) = other.load(tmp_path / name)
        assert got.diffids == made.diffids
        assert got.config == made.config
    assert [r.short for r in other.tags()] == ["me/back:1"]


def test_umoci_unpacks_the_same_tree(store: Store, tmp_path: Path) -> None:
    umoci = need("umoci")
    store.add(image({"etc/a": b"1"}, {"etc/b": noise(10_000)}), "me/app:1")
    store.save("me/app:1", tmp_path / "out")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    command = [umoci, "raw", "unpack", *rootless, "--image", f"{tmp_path}/out:1", str(tmp_path / "tree")]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "tree/etc/a").read_bytes() == b"1"
    assert (tmp_path / "tree/etc/b").read_bytes() == noise(10_000)


@pytest.mark.parametrize("form", ["docker-archive", pytest.param("oci-archive", marks=pytest.mark.slow)])
def test_podman_runs_what_is_saved_and_saves_what_runs(store: Store, other: Store, tmp_path: Path, form: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("podman's storage here is root's")
    podman, runc = need("podman"), need("runc")  # crun refuses the hybrid hierarchies that some hosts have
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("busybox is not installed")
    own = Layer.files({"bin/busybox": busybox.read_bytes()}, mode=0o755)
    made = store.add(Image.empty() + own, "localhost/me/box:1")
    store.save("localhost/me/box:1", tmp_path / "out", format=form)
    known = set(podmans_groups())
    place = tempfile.mkdtemp(prefix="isolate-podman-")  # a short path: podman puts sockets there
    where = ["--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver=vfs"]

    def run(*words: str) -> bytes:
        command = [podman, "--runtime", runc, "--cgroup-manager=cgroupfs", *where, *words]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    try:
        run("load", "-q", "-i", str(tmp_path / "out"))
        assert json.loads(run("images", "--format", "json"))[0]["Id"] == made.id[7:]
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"]
        program = ["localhost/me/box:1", "/bin/busybox", "echo", "seen"]
        assert run("run", "--rm", "--network=none", *limits, *program) == b"seen\n"
        for back in ("oci-archive", "docker-archive"):
            target = tmp_path / f"back-{back}"
            run("save", "-q", "--format", back, "-o", str(target), "localhost/me/box:1")
            (got,) = other.load(target)
            assert got.diffids == made.diffids
    finally:
        with contextlib.suppress(AssertionError):
            run("system", "reset", "-f")
        shutil.rmtree(place, ignore_errors=True)
        end = time.monotonic() + 5
        while (left := set(podmans_groups()) - known) and time.monotonic() < end:
            for group in sorted(left, reverse=True):  # the deepest first
                with contextlib.suppress(OSError):  # conmon is on its way out, or it is another podman's by now
                    group.rmdir()
            time.sleep(0.05)


def podmans_groups() -> list[Path]:
    """The groups that podman leaves behind, in every hierarchy."""
    tops = [*Path("/sys/fs/cgroup").glob("libpod_parent"), *Path("/sys/fs/cgroup").glob("*/libpod_parent")]
    return [Path(place) for top in tops for place, _, _ in os.walk(top)]


def docker(**changes: object) -> dict[str, bytes]:
    made = image({"a": b"1"})
    data = made.layers[0].open().read()
    row: dict[str, object] = {"Config": "c.json", "RepoTags": ["x/y:1"], "Layers": ["l/layer.tar"], **changes}
    return {"manifest.json": dump([row]), "c.json": made.document, "l/layer.tar": data}


def test_layers_that_are_links_as_old_dockers_wrote(store: Store) -> None:
    files = docker(Layers=["m/layer.tar"])
    (got,) = store.load(io.BytesIO(archive(files, {"m/layer.tar": "../l/layer.tar"})))
    assert store.open("x/y:1") == got


@pytest.mark.parametrize(
    ("files", "error", "why"),
    [
        ({}, ImageError, "neither an index.json"),
        ({"manifest.json": b"{}"}, ImageError, "a list"),
        ({"manifest.json": b"[1]"}, ImageError, "list of objects"),
        (docker(Config="d.json"), ImageError, "no d.json"),
        (docker(Config=None), ImageError, "Config"),
        (docker(Layers=["n/layer.tar"]), ImageError, "not there"),
        (docker(Layers=["../../etc/passwd"]), ImageError, "not there"),
        (docker(Layers=[]), ImageError, "names 1 layers, and the manifest 0"),
        ({**docker(), "l/layer.tar": layer({"a": b"2"}).open().read()}, DigestError, "a layer in the archive"),
        ({**docker(Config=f"{'a' * 64}.json"), f"{'a' * 64}.json": b"{}"}, DigestError, "configuration"),
        ({f"blobs/sha256/{'a' * 64}": b"x"}, DigestError, "blobs/sha256"),
        ({"blobs/sha256/short": b"x"}, ImageError, "no name that image-spec"),
        ({"oci-layout": b'{"imageLayoutVersion":"2.0.0"}', "index.json": b"{}"}, ImageError, "version '2.0.0'"),
        ({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}, ImageError, "no index.json"),
        (
            {
                "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
                "index.json": dump({"schemaVersion": 2, "manifests": [Descriptor(OCI_MANIFEST, HEX, 3).document()]}),
            },
            ImageError,
            "which is not there",
        ),
    ],
)
def test_archives_that_break_a_rule(store: Store, files: dict[str, bytes], error: type[Exception], why: str) -> None:
    with pytest.raises(error) as caught:
        store.load(io.BytesIO(archive(files)))
    assert why in str(caught.value)
    assert store.tags() == {}
    store.load(io.BytesIO(archive(docker())))  # the control


def test_links_that_lead_outside_or_in_circles(store: Store) -> None:
    for links, why in (({"m": "../../etc"}, "outside"), ({"m": "n", "n": "m"}, "circle"), ({"m": "/etc"}, "outside")):
        with pytest.raises(ImageError, match=why):
            store.load(io.BytesIO(archive(docker(Layers=["m"]), links)))
    with pytest.raises(LayerError):
        store.load(io.BytesIO(b"no archive at all" * 100))
    with pytest.raises(LayerError):
        store.load(io.BytesIO(gzip.compress(archive(docker()))[:-20]))


def test_a_layout_of_several_platforms(store: Store, other: Store, tmp_path: Path) -> None:
    rows = []
    for platform in ("linux/amd64", "linux/arm64"):
        made = store.add(Image.empty(platform) + layer({"which": platform.encode()}), unpack=False)
        rows.append(
            {
                **Descriptor(OCI_MANIFEST, made.digest, len(made.manifest)).document(),
                "platform": made.platform.document(),
            }
        )
    index = dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows})
    from isolate.images.digests import digest_of

    os.close(store.opened.blobs.add(index, digest_of(index)))
    store.tag(digest_of(index), "me/multi:1")
    store.save("me/multi:1", tmp_path / "out")
    other.load(tmp_path / "out")
    for platform in ("linux/amd64", "linux/arm64"):
        assert str(other.open("me/multi:1", platform=platform).platform) == platform
    assert other.check(deep=True) == []
    assert other.collect().blobs == 0


def test_what_is_written_fits_the_published_schemas(store: Store, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from referencing import Registry as Schemas
    from referencing import Resource
    from referencing.jsonschema import DRAFT4

    if not SCHEMAS.is_dir():
        pytest.skip("shared/corpora is not beside the checkout")
    contents: dict[str, Any] = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    schemas: Any = Schemas(
        retrieve=lambda uri: Resource(contents=contents[uri.rpartition("/")[2]], specification=DRAFT4)  # type: ignore[call-arg]
    )

    def fits(data: bytes, name: str) -> None:
        jsonschema.Draft4Validator(contents[name], registry=schemas).validate(json.loads(data))

    made = image({"a": b"1"}, cmd=("x",), env={"A": "1"}, volumes=["/v"], ports=["1/tcp"], labels={"a": "b"})
    store.add(made, "me/app:1")
    store.save("me/app:1", tmp_path / "out")
    fits((tmp_path / "out/index.json").read_bytes(), "image-index-schema.json")
    fits((tmp_path / "out/oci-layout").read_bytes(), "image-layout-schema.json")
    fits(made.manifest, "image-manifest-schema.json")
    fits(made.document, "config-schema.json")
    with pytest.raises(jsonschema.ValidationError):
        fits(b'{"schemaVersion": 3}', "image-index-schema.json")


def test_a_plain_layer_under_the_type_of_gzip(store: Store, other: Store, tmp_path: Path) -> None:
    """As Docker pushes one that the registry has as a plain archive already."""
    own = layer({"etc/a": noise(5000)})
    said = Layer(own.diffid, own.digest, own.size, layer_type("gzip"), own.source)
    made = store.add(Image.empty() + said, "me/plain:1")
    assert made.layers[0].media_type.endswith("gzip")
    assert store.check(deep=True) == []
    for form in ("docker-archive", "oci-archive"):
        store.save("me/plain:1", tmp_path / form, format=form)
        (got,) = other.load(tmp_path / form)
        assert got.diffids == made.diffids
    assert other.check(deep=True) == []
