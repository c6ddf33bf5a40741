"""Push and pull with Debian's docker-registry on loopback: what goes over the wire, what goes on after a kill."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from isolate.images import Config, Image, Progress, Reference, Registry, RegistryError, Store, StoreError
from isolate.images.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, dump
from isolate.images.registry.failures import error_of
from tests.images.make import image, layer, noise
from tests.images.registries import docker_registry, need

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_pushed_can_be_pulled(registry: str, store: Store, other: Store) -> None:
    made = image({"etc/a": b"a", "srv/x": noise(100_000)}, {"etc/b": b"b"}, cmd=("/srv/x",), user="1000")
    sent = store.push(made, f"{registry}/me/app:1")
    assert (sent.uploaded, sent.mounted, sent.skipped) == (3, 0, 0)
    seen: list[Progress] = []
    got = other.pull(f"{registry}/me/app:1", progress=seen.append)
    assert got.id == made.id
    assert got.digest == sent.digest
    assert got.config == Config(cmd=("/srv/x",), user="1000")
    lease, trees = other.lease(got)
    with lease:
        assert [sorted(os.listdir(tree)) for tree in trees] == [["etc", "srv"], ["etc"]]
    whats = {p.what for p in seen}
    assert whats == {"download", "extract"}
    last = {(p.what, p.digest): (p.done, p.total) for p in seen}
    assert all(done == total for done, total in last.values())
    assert other.tags() == {Reference.parse(f"{registry}/me/app:1"): sent.digest}
    assert other.open(f"{registry}/me/app:1") == got == other.open(sent.digest)
    # A second time nothing is fetched, and nothing sent.
    seen.clear()
    assert other.pull(f"{registry}/me/app:1", progress=seen.append) == got
    assert {p.what for p in seen} == {"exists"}
    seen.clear()
    assert store.push(made, f"{registry}/me/app:1", progress=seen.append).digest == sent.digest
    assert {p.what for p in seen} == {"exists"}  # what was compressed once is not once more
    again = other.push(got, Registry(registry), "me/app:2")
    assert (again.digest, again.uploaded, again.skipped) == (sent.digest, 0, 3)
    with Registry(registry) as client:
        assert sorted(client.tags("me/app")) == ["1", "2"]


def test_a_login_for_a_path_of_a_registry(
    store: Store, other: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's registry with a password: the only credentials are for a team's repositories."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    made = image({"a": b"1"})
    (tmp_path / "registry").mkdir()
    # By crypt(3) of "one", with the least rounds.
    hashed = "$2b$04$abcdefghijklmnopqrstuuuiMd1XkP3MYkehzxpPHB6m5Tr0FZSYG"
    with docker_registry(tmp_path / "registry", f"me:{hashed}\n") as host:
        entry = {"auth": base64.b64encode(b"me:one").decode()}
        (tmp_path / "config.json").write_text(json.dumps({"auths": {f"{host}/team": entry}}))
        store.push(made, f"{host}/team/app:1")
        assert other.pull(f"{host}/team/app:1").id == made.id
        with pytest.raises(RegistryError) as caught:
            store.push(made, f"{host}/other/app:1")
        assert caught.value.status == 401


def test_one_small_layer_more_costs_its_bytes(registry: str, store: Store, other: Store) -> None:
    base = image({"base": noise(3_000_000, "base")})
    more = base + layer({"more": noise(20_000, "more")})
    store.push(base, f"{registry}/grow/app:1")
    sent = store.push(more, f"{registry}/grow/app:2")
    assert (sent.uploaded, sent.skipped) == (2, 1)
    documents = len(sent_manifest := store.open(f"{registry}/grow/app:2").manifest) + len(more.document)
    assert sent.bytes <= 1.2 * 20_000 + documents, len(sent_manifest)
    # Into another repository of the same registry the large layer is mounted.
    third = store.push(more, f"{registry}/other/app:1")
    assert third.mounted == 3
    assert third.bytes == len(sent_manifest)
    # And a machine that has the base pulls the small one alone.
    other.pull(f"{registry}/grow/app:1")
    seen: list[Progress] = []
    other.pull(f"{registry}/grow/app:2", progress=seen.append)
    assert sum(p.done for p in seen if p.what == "download" and p.done == p.total) < 1.2 * 20_000


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_every_compression(registry: str, store: Store, other: Store, compression: str) -> None:
    made = image({"x": compression.encode() * 10_000})
    sent = store.push(made, f"{registry}/packed/{compression}:1", compression=compression)
    got = other.pull(f"{registry}/packed/{compression}:1")
    assert (got.id, got.digest) == (made.id, sent.digest)
    assert (sent.bytes < 5000) == (compression != "none")


def test_a_pull_goes_on_after_its_process_was_killed(registry: str, store: Store, tmp_path: Path) -> None:
    made = image({"big": noise(8_000_000, "killed")})
    store.push(made, f"{registry}/killed/app:1")
    place = tmp_path / "third"
    code = (
        "import os, signal, sys\nfrom isolate.images import Store\n"
        "def tell(p):\n    if p.what == 'download' and p.done > 3_000_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Store({str(place)!r}).pull({registry + '/killed/app:1'!r}, progress=tell)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -9
    (left,) = (place / "partial").iterdir()
    assert left.stat().st_size > 2_000_000
    with Store(place) as third:
        assert third.tags() == {}
        steps = [p for p in _pull(third, f"{registry}/killed/app:1") if p.what == "download"]
        fetched = [b.done - a.done for a, b in itertools.pairwise(steps)]
        assert sum(fetched) == steps[-1].total
        assert third.open(f"{registry}/killed/app:1").id == made.id
        assert list((place / "partial").iterdir()) == []


KILLED = """
import os, signal, sys, threading, time
from isolate.images import Store
store = Store(sys.argv[1])
print("ready", flush=True)
def end():
    time.sleep(float(sys.argv[3]))
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=end, daemon=True).start()
store.pull(sys.argv[2])
store.collect()
store.load(sys.argv[4], "k/loaded:1")
store.untag("k/loaded:1")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_kills_of_pulls_and_loads(registry: str, store: Store, tmp_path: Path) -> None:
    """After each nothing is wrong; and the next attempts go on until one is done."""
    import random

    chance = random.Random(3)
    layers = [{f"f{i}": noise(400_000, f"kills-{i}")} for i in range(6)]
    made = image(*layers)
    store.push(made, f"{registry}/kills/app:1")
    store.save(store.add(image({"other": noise(300_000, "other")})), tmp_path / "saved", format="oci-archive")
    done = 0
    for number in range(120):
        place = tmp_path / f"killed-{number % 6}"
        command = [sys.executable, "-c", KILLED, str(place), f"{registry}/kills/app:1"]
        command += [str(chance.uniform(0, 0.9)), str(tmp_path / "saved")]
        ended = subprocess.run(command, check=False, timeout=60, stdout=subprocess.DEVNULL)
        assert ended.returncode in (0, -9)
        with Store(place) as killed:
            assert killed.check(deep=number % 4 == 0) == []
            done += bool(killed.tags())
            if killed.tags():
                assert killed.open(f"{registry}/kills/app:1").id == made.id
    assert done
    with Store(tmp_path / "killed-0") as killed:
        killed.pull(f"{registry}/kills/app:1")
        killed.collect()
        for left in ("partial", "trash"):
            assert os.listdir(f"{killed.path}/{left}") == []


def _pull(store: Store, name: str) -> list[Progress]:
    seen: list[Progress] = []
    store.pull(name, progress=seen.append)
    return seen


def test_the_asynchronous_twins(registry: str, store: Store, other: Store) -> None:
    async def both() -> Image:
        made = await store.aadd(image({"a": noise(1000, "async")}), "async/app:1")
        await store.apush(made, f"{registry}/async/app:1")
        await store.asave(made, f"{store.path}.tar", format="oci-archive")
        await other.aload(f"{store.path}.tar")
        assert await other.acheck(deep=True) == []
        await other.acollect()
        return await other.apull(f"{registry}/async/app:1")

    assert asyncio.run(both()).layers


def test_a_cancelled_pull_leaves_what_came(registry: str, store: Store, other: Store) -> None:
    store.push(image({"a": noise(5_000_000, "cancel")}), f"{registry}/cancel/app:1")

    async def cancel() -> None:
        loop = asyncio.get_running_loop()
        started = asyncio.Event()

        def tell(p: Progress) -> None:
            if p.done > 1_000_000:
                loop.call_soon_threadsafe(started.set)

        task = asyncio.create_task(other.apull(f"{registry}/cancel/app:1", progress=tell))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert other.tags() == {} or other.open(f"{registry}/cancel/app:1")  # it may just have been done
    other.pull(f"{registry}/cancel/app:1")


def test_what_is_not_there(registry: str, store: Store) -> None:
    with pytest.raises(RegistryError) as caught:
        store.pull(f"{registry}/no/such:1")
    assert caught.value.status == 404
    assert caught.value.code in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN")
    with pytest.raises(StoreError, match="no image is named"):
        store.push(f"{registry}/no/such:1")
    with pytest.raises(RegistryError) as caught:
        store.pull("127.0.0.1:1/a:1")
    assert caught.value.code == "UNREACHABLE"
    assert "no connection: Failed to establish" in str(caught.value)
    assert "\n  remedy: try `curl -v http://127.0.0.1:1/v2/" in str(caught.value)


def test_what_helps_where_no_registry_is_reached(
    registry: str, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command of the remedy finds the same fault, and none where a registry is."""
    curl = need("curl")
    made = store.push(image({"a": b"1"}), f"{registry}/reached/app:1")
    for address, status in (("127.0.0.1:1", 7), (registry, 0)):
        done = subprocess.run([curl, "-sv", f"http://{address}/v2/"], capture_output=True, check=False)
        assert done.returncode == status
    assert store.pull(f"{registry}/reached/app:1").digest == made.digest
    # A proxy that is not there, then none.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(RegistryError) as caught:
        store.pull("registry.invalid/a:1")
    assert caught.value.code == "UNREACHABLE"
    assert "NO_PROXY" in (caught.value.remedy or "")
    from urllib3.exceptions import NameResolutionError

    error = error_of(NameResolutionError("registry.invalid", None, OSError()), "https://x/")  # type: ignore[arg-type]
    assert "getent hosts" in (error.remedy or "")


def test_an_index_gives_each_machine_its_own(registry: str, store: Store, other: Store) -> None:
    rows = []
    for platform in ("linux/amd64", "linux/arm64", "linux/arm/v7"):
        made = Image.empty(platform) + layer({"which": platform.encode()})
        sent = store.push(made, f"{registry}/multi/app:{platform.replace('/', '-')}")
        size = len(store.open(sent.digest, platform=platform).manifest)
        rows.append({**Descriptor(OCI_MANIFEST, sent.digest, size).document(), "platform": made.platform.document()})
    with Registry(registry) as client:
        index = dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows})
        digest = client.put_manifest("multi/app", index, OCI_INDEX, "1")
    for platform in ("linux/arm64", "linux/arm/v8"):
        got = other.pull(f"{registry}/multi/app:1", platform=platform)
        lease, trees = other.lease(got)
        with lease, open(os.open("which", os.O_RDONLY, dir_fd=trees[0]), "rb") as file:
            assert file.read().decode() == ("linux/arm64" if "64" in platform else "linux/arm/v7")
    assert other.pull(f"{registry}/multi/app@{digest}", platform="linux/amd64").platform.architecture == "amd64"
    # All of them: they can be pushed elsewhere as they are.
    other.pull(f"{registry}/multi/app:1", platform="all")
    assert other.tags()[Reference.parse(f"{registry}/multi/app:1")] == digest
    assert str(other.open(f"{registry}/multi/app:1", platform="linux/arm/v7").platform) == "linux/arm/v7"
    assert other.push(f"{registry}/multi/app:1", f"{registry}/multi/copy:1").digest == digest
    assert other.check(deep=True) == []
    with pytest.raises(ValueError, match=r"no image for linux/s390x; it has: linux/amd64, linux/arm/v7, linux/arm64"):
        other.pull(f"{registry}/multi/app:1", platform="linux/s390x")


def test_referrers_by_the_fallback_tag(registry: str, store: Store) -> None:
    sent = store.push(image({"a": b"signed"}), f"{registry}/signed/app:1")
    subject = Descriptor(OCI_MANIFEST, sent.digest, len(store.open(sent.digest).manifest))
    with Registry(registry) as client:
        assert client.referrers("signed/app", sent.digest) == ()
        empty = b"{}"
        from isolate.images.digests import digest_of

        client.upload("signed/app", digest_of(empty), 2, lambda start, end: [empty[start:end]])
        config = Descriptor("application/vnd.oci.empty.v1+json", digest_of(empty), 2)
        for kind in ("application/x.one", "application/x.two"):
            data = dump(
                {
                    "schemaVersion": 2,
                    "mediaType": OCI_MANIFEST,
                    "artifactType": kind,
                    "config": config.document(),
                    "layers": [config.document()],
                    "subject": subject.document(),
                }
            )
            client.put_manifest("signed/app", data, OCI_MANIFEST)
        found = client.referrers("signed/app", sent.digest)
        assert [d.artifact_type for d in found] == ["application/x.one", "application/x.two"]
        assert len(client.referrers("signed/app", sent.digest, "application/x.two")) == 1


def test_skopeo_reads_what_is_pushed_and_the_reverse(registry: str, store: Store, other: Store, tmp_path: Path) -> None:
    skopeo = need("skopeo")
    made = image({"etc/a": b"a"}, {"etc/b": noise(50_000, "skopeo")}, cmd=("/bin/true",), env={"A": "1"})
    sent = store.push(made, f"{registry}/skopeo/app:1")
    seen = json.loads(
        subprocess.check_output([skopeo, "inspect", "--tls-verify=false", f"docker://{registry}/skopeo/app:1"])
    )
    assert seen["Digest"] == sent.digest
    for form in ("oci", "v2s2"):
        source, target = f"docker://{registry}/skopeo/app:1", f"docker://{registry}/skopeo/{form}:1"
        subprocess.run(
            [
                skopeo,
                "--insecure-policy",
                "copy",
                "-q",
                "--format",
                form,
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                source,
                target,
            ],
            check=True,
            timeout=60,
        )
        got = other.pull(f"{registry}/skopeo/{form}:1")
        assert got.diffids == made.diffids
        assert got.config == made.config
