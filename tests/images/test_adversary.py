"""A registry that lies, ends too early, never ends, drips, redirects in circles, sends credentials elsewhere: each has
its error, nothing half made has a name, and the same registry without that works."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from isolate.images import Bounds, DigestError, Image, ImageError, LayerError, Registry, RegistryError, Store
from isolate.images.digests import digest_of
from isolate.images.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, dump, layer_type
from isolate.images.image import make_manifest
from isolate.images.registry.auth import challenges
from isolate.images.registry.credentials import files, lookup
from tests.images.adversary import Adversary, Request, adversary
from tests.images.make import image, layer, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = image({"a": noise(100_000, "adversary")}, {"b": b"2"})
LAYER = GOOD.layers[0]
QUICK = 1.0  # seconds: the timeout where one is waited for. Elsewhere a busy machine takes its time.


def pull(store: Store, server: Adversary, name: str = "me/app:1", *, unpack: bool = True, timeout: float = 30) -> Image:
    with Registry(server.host, timeout=timeout, credentials=()) as registry:
        return store.pull(f"{server.host}/{name}", registry=registry, unpack=unpack)


def only(kind: str, do: Callable[[Request], object], wanted: str = "") -> Callable[[Request], bool]:
    """Misbehave for one kind of thing only."""

    def instead(request: Request) -> bool:
        if f"/{kind}/{wanted}" not in request.path:
            return False
        do(request)
        return True

    return instead


def drip(request: Request) -> None:
    size, said = LAYER.size, request.headers.get("Range")
    request.send_response(206 if said else 200)
    if said:
        request.send_header("Content-Range", f"bytes {said[6:-1]}-{size - 1}/{size}")
    request.send_header("Content-Length", str(size))
    request.end_headers()
    start = int((request.headers.get("Range") or "bytes=0-")[6:-1])
    while not request.server.stopped.wait(0.1):
        request.wfile.write(LAYER.open().read()[start : start + 1])
        start += 1


def drip_headers(request: Request) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not request.server.stopped.wait(0.1):
        request.wfile.write(b"X")


def endless(request: Request) -> None:
    request.send_response(200)
    request.send_header("Content-Type", OCI_MANIFEST)
    request.end_headers()
    request.close_connection = True
    while not request.server.stopped.is_set():
        request.wfile.write(b" " * 65536)


def silent(request: Request) -> None:
    request.server.stopped.wait(10)


def cut_off(request: Request) -> None:
    data = request.server.blobs[LAYER.digest]
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data[:10])
    request.close_connection = True


def other_platform(request: Request) -> None:
    request.answer(200, GOOD.manifest, Content_Type=OCI_INDEX)


def circle(request: Request) -> None:
    request.redirect(request.path + "x" if not request.path.endswith("x") else request.path[:-1])


def farther(request: Request) -> None:
    request.redirect(request.path + "x")


def status(number: int, data: bytes = b"", **headers: str) -> Callable[[Request], object]:
    return lambda request: request.answer(number, data, **headers)


def challenge(text: str) -> Callable[[Request], bool]:
    return only("manifests", status(401, WWW_Authenticate=text))


def manifest(do: Callable[[Request], object]) -> Callable[[Request], bool]:
    return only("manifests", do)


def blob(digest: str, do: Callable[[Request], object]) -> Callable[[Request], bool]:
    return only("blobs", do, digest)


def leads(where: str) -> Callable[[Request], bool]:
    return only("manifests", lambda request: request.redirect(where))


LIE = "sha256:" + "a" * 64
OTHER_CONFIG = b"{}" + b" " * (len(GOOD.document) - 2)
SIZE = LAYER.size
PART = status(206, b"x", Content_Range="bytes 5-5/6")
DRIPS, HEADERS, SILENT, LAYER_DRIPS = (
    manifest(drip),
    manifest(drip_headers),
    manifest(silent),
    blob(LAYER.digest, drip),
)
SLOW = (DRIPS, HEADERS, SILENT, LAYER_DRIPS)
CASES = {
    "a lying header": (manifest(status(200, GOOD.manifest, Docker_Content_Digest=LIE)), DigestError, "its own header"),
    "a manifest that is none": (manifest(status(200, b"<html>", Content_Type="text/html")), ImageError, "manifest"),
    "a manifest that is called an index": (manifest(other_platform), ImageError, "two ways"),
    "an endless manifest": (manifest(endless), RegistryError, "TOO_LARGE"),
    "a manifest in drips": (DRIPS, RegistryError, "TIMEOUT"),
    "headers in drips": (HEADERS, RegistryError, "TIMEOUT"),
    "a silent registry": (SILENT, RegistryError, "TIMEOUT"),
    "redirects in a circle": (manifest(circle), RegistryError, "in a circle"),
    "redirects without end": (manifest(farther), RegistryError, "more than 8 times"),
    "a redirect to a file": (leads("file:///etc/passwd"), RegistryError, "leads to"),
    "a redirect without TLS": (leads("http://registry.invalid/"), RegistryError, "without TLS"),
    "a redirect to nowhere": (manifest(status(307)), RegistryError, "no place to go on"),
    "another config": (blob(GOOD.id, status(200, OTHER_CONFIG)), DigestError, "blob"),
    "a longer config": (blob(GOOD.id, status(200, GOOD.document + b" ")), RegistryError, "TOO_LARGE"),
    "a lying layer": (blob(LAYER.digest, status(200, bytes(SIZE))), DigestError, "layer of"),
    "a longer layer": (blob(LAYER.digest, status(200, bytes(SIZE + 1))), RegistryError, "TOO_LARGE"),
    "a layer that ends early": (blob(LAYER.digest, cut_off), RegistryError, "BROKEN|CUT_OFF"),
    "a layer in drips": (LAYER_DRIPS, RegistryError, "less than 1024 bytes a second|nothing came in time"),
    "a range that was not asked for": (blob(LAYER.digest, PART), RegistryError, "PROTOCOL|TOO_LARGE|CUT_OFF"),
    "no layer": (blob(LAYER.digest, status(404)), RegistryError, "404"),
    "a server that fails": (manifest(status(500, b"\x1b[2J", Retry_After="0")), RegistryError, "500"),
    "a server that fails and says no time": (manifest(status(500)), RegistryError, "500"),
    "an error that is no JSON": (manifest(status(403, b"[" * 50_000)), RegistryError, "403"),
    "an unknown challenge": (challenge("Magic x=1"), RegistryError, "not known"),
    "a token server elsewhere": (
        challenge('Bearer realm="https://evil.invalid/t"'),
        RegistryError,
        "elsewhere: https://evil.invalid/t",
    ),
    "a token server without TLS": (challenge('Bearer realm="http://evil.invalid/t"'), RegistryError, "without TLS"),
    "a token server that is none": (challenge('Bearer realm="file:///etc/passwd"'), RegistryError, "is none"),
}


# With no time said, it is waited for 0.5 and 1 s.
@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if "no time" in c else c for c in CASES])
def test_a_registry_that_misbehaves(store: Store, case: str) -> None:
    instead, error, why = CASES[case]
    with adversary(GOOD, instead=instead) as server:
        timeout = QUICK if instead in SLOW else 30
        with pytest.raises(error) as caught:
            pull(store, server, unpack=False, timeout=timeout)
        text = str(caught.value)
        assert any(word in text for word in why.split("|")), text
        assert "\x1b" not in text
        assert store.tags() == {}
        assert store.check(deep=True) == []
        server.instead = None
        assert pull(store, server, unpack=False) == GOOD  # the control, with what came before still there


def test_a_lying_manifest_by_digest(store: Store) -> None:
    with adversary(GOOD) as server:
        server.manifests[GOOD.digest] = OCI_MANIFEST, image({"evil": b"1"}).manifest
        with pytest.raises(DigestError) as caught:
            pull(store, server, f"me/app@{GOOD.digest}")
        assert caught.value.asked == GOOD.digest
        server.manifests[GOOD.digest] = OCI_MANIFEST, GOOD.manifest
        assert pull(store, server, f"me/app@{GOOD.digest}").digest == GOOD.digest


def test_a_diffid_that_lies(store: Store) -> None:
    """The compressed form is what the manifest says, and the plain archive is not what the configuration says."""
    from isolate.images.packing import compressed

    other = b"".join(compressed([layer({"evil": b"1"}).open().read()], "gzip"))
    form = Descriptor(layer_type("gzip"), digest_of(other), len(other))
    one = image({"a": b"1"})
    manifest = make_manifest(one.document, [form])
    with adversary() as server:
        server.manifests["1"] = OCI_MANIFEST, manifest
        server.blobs = {one.id: one.document, form.digest: other}
        with pytest.raises(DigestError) as caught:
            pull(store, server)
        assert caught.value.asked == one.layers[0].diffid
        assert store.tags() == {}
        assert not os.listdir(f"{store.path}/layers")


def test_a_bomb_ends_at_its_bounds(store: Store) -> None:
    from isolate.images.packing import compressed

    plain = layer({"zeros": bytes(3_000_000)})
    packed = b"".join(compressed([plain.open().read()], "gzip"))
    one = Image.empty() + plain
    manifest = make_manifest(one.document, [Descriptor(layer_type("gzip"), digest_of(packed), len(packed))])
    with adversary() as server:
        server.manifests["1"] = OCI_MANIFEST, manifest
        server.blobs = {one.id: one.document, digest_of(packed): packed}
        with Registry(server.host, credentials=()) as registry:
            with pytest.raises(LayerError, match="beyond the bounds"):
                store.pull(f"{server.host}/a:1", registry=registry, bounds=Bounds(bytes="1M"))
            assert store.tags() == {}
            assert store.pull(f"{server.host}/a:1", registry=registry, bounds=Bounds(bytes="4M")).layers


def test_a_manifest_of_very_many_layers(store: Store) -> None:
    row = Descriptor(layer_type("none"), LAYER.digest, LAYER.size).document()
    data = dump({"schemaVersion": 2, "config": Descriptor("a/b", GOOD.id, 1).document(), "layers": [row] * 1001})
    with adversary(GOOD) as server:
        server.manifests["1"] = OCI_MANIFEST, data
        with pytest.raises(ImageError, match="at most 1000"):
            pull(store, server)


def test_a_broken_connection_goes_on_where_it_broke(store: Store) -> None:
    data = LAYER.open().read()
    starts: list[int] = []

    def third(request: Request) -> None:
        start = int((request.headers.get("Range") or "bytes=0-")[6:-1])
        starts.append(start)
        end = min(start + 40_000, len(data))
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(data) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        request.wfile.write(data[start:end])
        request.close_connection = True

    with adversary(GOOD, instead=only("blobs", third, LAYER.digest)) as server:
        assert pull(store, server) == GOOD
        assert starts == [0, 40_000, 80_000]


def test_a_registry_without_ranges_starts_again(store: Store) -> None:
    os.makedirs(f"{store.path}/partial", exist_ok=True)
    with open(f"{store.path}/partial/{LAYER.digest.replace(':', '-')}", "wb") as file:
        file.write(b"wrong" * 100)
    whole = only("blobs", lambda r: r.answer(200, r.server.blobs[LAYER.digest]), LAYER.digest)
    with adversary(GOOD, instead=whole) as server:
        assert pull(store, server) == GOOD


def test_what_was_left_was_wrong(store: Store) -> None:
    """Bytes that another program, or a failing disk, left: found by the digest, and fetched from the beginning."""
    with open(f"{store.path}/partial/{LAYER.digest.replace(':', '-')}", "wb") as file:
        file.write(b"wrong" * 100)
    with adversary(GOOD) as server:
        assert pull(store, server) == GOOD
        ranges = [headers.get("Range") for _, path, headers in server.asked if LAYER.digest in path]
        assert ranges == ["bytes=500-", None]


# ---- who may what ------------------------------------------------------------------------------------------------


def token_server(server: Adversary, tokens: list[tuple[str, str | None]]) -> Callable[[Request], bool]:
    def instead(request: Request) -> bool:
        if request.path.startswith("/token"):
            tokens.append((request.path, request.headers.get("Authorization")))
            request.answer(200, json.dumps({"token": "good", "expires_in": 300}).encode())
            return True
        if request.headers.get("Authorization") != "Bearer good":
            realm = f'Bearer realm="http://{server.host}/token",service="here",scope="repository:me/app:pull"'
            request.answer(401, WWW_Authenticate=realm)
            return True
        return False

    return instead


def test_a_token_is_asked_for_once(store: Store) -> None:
    tokens: list[tuple[str, str | None]] = []
    with adversary(GOOD) as server:
        server.instead = token_server(server, tokens)
        with Registry(server.host, credentials=("me", "se:cret")) as registry:
            store.pull(f"{server.host}/me/app:1", registry=registry)
        assert len(tokens) == 1
        path, header = tokens[0]
        assert "scope=repository%3Ame%2Fapp%3Apull" in path
        assert "service=here" in path
        assert header == "Basic " + base64.b64encode(b"me:se:cret").decode()


def test_credentials_stay_with_their_host(store: Store) -> None:
    """A blob that lies elsewhere is fetched without them; to a token server elsewhere they are not sent."""
    with adversary(GOOD) as storage, adversary(GOOD) as server:
        there = storage.host.replace("127.0.0.1", "localhost")

        def instead(request: Request) -> bool:
            if request.headers.get("Authorization") is None:
                request.answer(401, WWW_Authenticate='Basic realm="x"')
            elif f"/blobs/{LAYER.digest}" in request.path:
                request.redirect(f"http://{there}{request.path}")
            else:
                return False
            return True

        server.instead = instead
        with Registry(server.host, credentials=("me", "secret")) as registry:
            assert store.pull(f"{server.host}/me/app:1", registry=registry) == GOOD
        assert storage.count("blobs") == 1
        assert "Authorization" not in storage.asked[0][2]
        assert all("secret" not in repr(asked) for asked in storage.asked)


def test_a_push_to_a_registry_without_time(store: Store) -> None:
    """Each thing that is asked is refused once (429, 503), and asked again. The place to upload to is the
    registry's own however its name is written, so it gets the authorization."""
    kept = store.add(GOOD)
    refused: dict[str, int] = {}

    def instead(request: Request) -> bool:
        data = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Authorization") is None:
            request.answer(401, WWW_Authenticate='Basic realm="x"')
            return True
        name = f"{request.command} {request.path}"
        if request.command != "HEAD" and refused.setdefault(name, 0) == 0:
            refused[name] = 429 if len(refused) % 2 else 503
            request.answer(refused[name], Retry_After="0")
        elif request.command == "POST":
            request.answer(202, Location=f"http://LocalHost:{server.server_address[1]}/v2/me/app/blobs/uploads/1?x=y")
        elif request.command == "PUT":
            kept = server.blobs if "/uploads/" in request.path else server.manifests
            kept[request.path] = data  # type: ignore[assignment]
            request.answer(201)
        else:
            request.answer(404)
        return True

    with adversary(instead=instead) as server:
        host = f"localhost:{server.server_address[1]}"
        with Registry(host, credentials=("me", "secret")) as client:
            store.push(kept, client, "me/app:1")
        assert set(refused.values()) == {429, 503}
        assert kept.document in server.blobs.values()
        assert len(server.manifests) == 1

        def never(request: Request) -> bool:
            request.rfile.read(int(request.headers.get("Content-Length") or 0))
            request.answer(429, Retry_After="0")
            return True

        server.instead = never
        with Registry(host, credentials=()) as client, pytest.raises(RegistryError) as caught:
            store.push(kept, client, "me/app:2")
        assert caught.value.status == 429, "control: not for ever"


def test_a_wrong_password_and_none(store: Store) -> None:
    refuse = only("manifests", lambda r: r.answer(401, b"{}", WWW_Authenticate='Basic realm="x"'))
    with adversary(GOOD, instead=refuse) as server:
        for credentials, why in ((("me", "wrong"), "HTTP status 401"), ((), "wants a user and a password")):
            with Registry(server.host, credentials=credentials) as registry:  # type: ignore[arg-type]
                with pytest.raises(RegistryError) as caught:
                    store.pull(f"{server.host}/a:1", registry=registry)
                assert why in str(caught.value)
                assert "log in" in str(caught.value)


def test_challenges_are_parsed() -> None:
    header = 'Bearer realm="https://a/b,c",service="x\\"y", scope="p:q" , Basic realm=plain'
    one, two = challenges(header)
    assert (one.scheme, one.get("realm"), one.get("service"), one.get("scope")) == (
        "bearer",
        "https://a/b,c",
        'x"y',
        "p:q",
    )
    assert (two.scheme, two.get("realm")) == ("basic", "plain")
    assert challenges("") == challenges("=") == []
    assert challenges("Bearer " + "a" * 10_000) == []


def test_credentials_of_docker_and_their_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        "#!/bin/sh\nread server\ncase $server in\n"
        '*one*) echo "{\\"Username\\":\\"u\\",\\"Secret\\":\\"s-$server\\"}";;\n'
        '*token*) echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"refresh\\"}";;\n'
        '*bad*) echo nonsense;;\n*) echo "credentials not found in native keychain"; exit 1;;\nesac\n'
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    config: dict[str, object] = {
        "auths": {
            "r.example": {"auth": base64.b64encode(b"user:pass").decode()},
            "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
            "broken.example": {"auth": "!!!"},
        },
        "credHelpers": {
            "one.example": "test",
            "token.example": "test",
            "bad.example": "test",
            "absent.example": "test",
            "evil.example": "../../bin/sh",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    def found(registry: str) -> tuple[str, str, str] | None:
        one = lookup(registry)
        return None if one is None else (one.user, one.password, one.identity)

    assert found("r.example") == ("user", "pass", "")
    assert found("docker.io") == ("hub", "p", "")
    assert found("one.example") == ("u", "s-one.example", "")
    assert found("token.example") == ("", "", "refresh")
    assert found("absent.example") is None
    assert found("nowhere.example") is None
    for registry, why in (("broken.example", "base64"), ("bad.example", "no credentials"), ("evil.example", "name")):
        with pytest.raises(RegistryError, match=why):
            lookup(registry)
    assert "pass" not in repr(lookup("r.example"))
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "test"}))
    assert found("one.example") == ("u", "s-one.example", "")
    # podman's, in a session and without one.
    entry = {"auths": {"https://p.example/v2/": {"auth": base64.b64encode(b"pod:man").decode()}}}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers/auth.json").write_text(json.dumps(entry))
    for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        assert found("p.example") is None
        with monkeypatch.context() as patch:
            patch.setenv(name, str(tmp_path))
            assert found("p.example") == ("pod", "man", "")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert "/run/containers/4242/auth.json" in files()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RegistryError, match="cannot be read"):
        lookup("r.example")


PATHS = {
    "{}": ("host", "h"),
    "{}/team": ("team", "t"),
    "{}/team/app": ("app", "a"),
    "https://{}/v1/team/url": ("url", "u"),  # what no program writes
    "{}/tea": ("tea", "x"),
}


@pytest.fixture
def logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write the user's file."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    (tmp_path / "docker").mkdir()

    def write(entries: dict[str, tuple[str, str]], **more: object) -> None:
        auths = {key: {"auth": base64.b64encode(":".join(who).encode()).decode()} for key, who in entries.items()}
        (tmp_path / "docker/config.json").write_text(json.dumps({"auths": auths, **more}))

    return write


def test_credentials_for_a_path_of_a_registry(logged_in: Callable[..., None]) -> None:
    """The longest entry that fits, word by word (containers-auth.json(5)); a helper is for the registry as a whole."""

    def found(repository: str, registry: str = "r.example") -> str | None:
        one = lookup(registry, repository)
        return None if one is None else one.user

    logged_in({key.format("r.example"): who for key, who in PATHS.items()})
    wanted = {"team/app": "app", "team/app/deeper": "app", "team/other": "team", "team": "team", "team/url": "team"}
    wanted |= {"teams/app": "host", "app": "host", "": "host"}
    assert {name: found(name) for name in wanted} == wanted
    assert found("team/app", "other.example") is None
    logged_in({"r.example/team": ("team", "t")})
    assert (found("team/app"), found("other/app"), found("")) == ("team", None, None)
    logged_in({"docker.io/library/debian": ("deb", "d"), "https://index.docker.io/v1/": ("hub", "h")})
    assert (found("library/debian", "docker.io"), found("library/x", "docker.io")) == ("deb", "hub")
    logged_in({"r.example/team": ("team", "t")}, credHelpers={"r.example": "no/helper"})
    with pytest.raises(RegistryError, match="no credential helper"):
        lookup("r.example", "team/app")
    logged_in({"r.example/team": ("team", "t")}, credsStore="no/helper")
    assert found("team/app") == "team"
    with pytest.raises(RegistryError, match="no credential helper"):
        lookup("r.example", "other/app")


def test_each_repository_is_asked_for_as_its_own_user(store: Store, logged_in: Callable[..., None]) -> None:
    """One client, three users; a blob is not taken over from a repository of another user."""
    basic = {f"Basic {base64.b64encode(':'.join(who).encode()).decode()}": who[0] for who in PATHS.values()}
    seen: set[tuple[str, str]] = set()
    mounts: list[str] = []

    def instead(request: Request) -> bool:
        request.rfile.read(int(request.headers.get("Content-Length") or 0))
        header = request.headers.get("Authorization")
        if header is None:
            request.answer(401, WWW_Authenticate='Basic realm="x"')
            return True
        kind = next(word for word in ("/manifests/", "/blobs/", "/tags/") if word in request.path)
        seen.add((request.path.partition(kind)[0].removeprefix("/v2/"), basic[header]))
        if request.command == "POST":
            mounts.append(request.path)
            request.answer(201 if "mount=" in request.path else 202, Location="/v2/team/app/blobs/uploads/1")
        elif request.command == "GET":
            return False
        else:
            request.answer(404 if request.command == "HEAD" else 201)
        return True

    with adversary(GOOD, instead=instead) as server:
        logged_in({key.format(server.host): who for key, who in PATHS.items()})
        with Registry(server.host) as client:
            for name in ("team/app", "team/other", "other", "team/third"):
                assert store.pull(f"{server.host}/{name}:1", registry=client) == GOOD
            assert seen == {("team/app", "app"), ("team/other", "team"), ("other", "host"), ("team/third", "team")}
            assert client.mount("team/other", LAYER.digest, "team/third") is None, "control: of the same user"
            assert client.mount("team/app", LAYER.digest, "team/third") is not None
        assert [path.partition("uploads/")[2] != "" for path in mounts] == [True, False]


def test_an_identity_token_is_exchanged(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[bytes] = []
    with adversary(GOOD) as server:

        def instead(request: Request) -> bool:
            if request.path.startswith("/token"):
                posted.append(request.rfile.read(int(request.headers["Content-Length"])))
                request.answer(200, json.dumps({"access_token": "good"}).encode())
            elif request.headers.get("Authorization") != "Bearer good":
                request.answer(401, WWW_Authenticate=f'Bearer realm="http://{server.host}/token",service="s"')
            else:
                return False
            return True

        server.instead = instead
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        auths = {server.host: {"identitytoken": "refresh-me"}}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        assert store.pull(f"{server.host}/me/app:1") == GOOD
        assert b"grant_type=refresh_token" in posted[0]
        assert b"refresh_token=refresh-me" in posted[0]


def test_mirrors_come_first_and_are_not_believed(store: Store, other: Store) -> None:
    evil = image({"evil": b"1"})
    with adversary(GOOD) as mirror, adversary(GOOD) as server:
        with Registry(server.host, mirrors=(mirror.host,), credentials=()) as registry:
            assert store.pull(f"{server.host}/me/app:1", registry=registry) == GOOD
        assert server.asked == []
        assert mirror.count("blobs") == 3
        # By digest a mirror cannot give anything else, and one that is not there costs nothing but time.
        mirror.manifests[GOOD.digest] = OCI_MANIFEST, evil.manifest
        for host in (mirror.host, "127.0.0.1:1"):
            with Registry(server.host, mirrors=(host,), credentials=()) as registry:
                got = other.pull(f"{server.host}/me/app@{GOOD.digest}", registry=registry)
            assert got == GOOD


def test_a_list_of_tags_has_its_pages_and_its_end(store: Store) -> None:
    def pages(request: Request) -> bool:
        if "last" in request.path:
            request.answer(200, b'{"tags":["b"]}')
        else:
            request.answer(200, b'{"tags":["a"]}', Link="</v2/me/app/tags/list?last=a>; rel=next")
        return True

    with adversary(instead=pages) as server, Registry(server.host, credentials=()) as registry:
        assert registry.tags("me/app") == ["a", "b"]
        server.instead = lambda r: r.answer(200, b'{"tags":["a"]}', Link=f"<{r.path}>; rel=next") or True  # type: ignore[func-returns-value]
        with pytest.raises(RegistryError, match="no end"):
            registry.tags("me/app")


@pytest.mark.parametrize(
    ("said", "error", "why"),
    [
        (("https://r.example",), ValueError, "no scheme"),
        (("r example",), ValueError, "host name"),
        ((5,), TypeError, "host must be a str"),
    ],
)
def test_registries_that_cannot_be_meant(said: tuple[str], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        Registry(*said)
    for wrong in ({"timeout": 0}, {"parallel": 0}, {"parallel": True}, {"timeout": "1"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Registry("r.example", **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="credentials must be"):
        Registry("r.example", credentials=("a",))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="several hosts"):
        Registry("r.example", mirrors="m.example")


def test_two_pulls_at_once_fetch_once(store: Store) -> None:
    """One downloads, the other waits and finds it there."""
    with adversary(GOOD) as server:
        started, go_on = threading.Event(), threading.Event()
        calls: list[int] = []

        def slow(request: Request) -> None:
            calls.append(1)
            started.set()
            go_on.wait(30)
            request.server.right(request)

        server.instead = only("blobs", slow, LAYER.digest)
        got: list[Image] = []

        def one() -> None:
            with Store(store.path) as own, Registry(server.host, credentials=()) as registry:
                got.append(own.pull(f"{server.host}/me/app:1", registry=registry))

        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert started.wait(30)
        store.collect()  # beside them: nothing of theirs goes
        go_on.set()
        for thread in threads:
            thread.join(30)
        assert got == [GOOD, GOOD]
        assert len(calls) == 1
        assert store.check(deep=True) == []
