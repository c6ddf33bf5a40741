"""Signatures of cosign's and notation's forms, made here by their specifications: what holds, and what does not."""

from __future__ import annotations

import base64
import datetime
import json
from typing import TYPE_CHECKING, Any

import pytest

from isolate.images import Registry, SignatureError, Store
from isolate.images.digests import digest_of
from isolate.images.documents import OCI_EMPTY, OCI_MANIFEST, Descriptor, dump
from isolate.images.signatures import BUNDLE, COSIGN, JWS, NOTATION, find, verify
from tests.images.make import image

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def pem(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    data: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    return data


def sign(key: Any, data: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    found: bytes = key.sign(data)
    return found


class Signed:
    """An image in a registry, beside which signatures can be put."""

    def __init__(self, registry: str, name: str, store: Store) -> None:
        self.client = Registry(registry)
        self.name = name
        self.store = store
        sent = store.push(image({"a": name.encode()}), f"{registry}/{name}:1")
        self.digest = sent.digest
        self.size = len(store.open(sent.digest).manifest)

    def blob(self, data: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
        self.client.upload(self.name, digest_of(data), len(data), lambda start, end: [data[start:end]])
        row = Descriptor(media_type, digest_of(data), len(data)).document()
        return {**row, "annotations": annotations} if annotations else row

    def put(self, layer: dict[str, Any], artifact: str | None, tag: str | None = None) -> None:
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(b"{}", OCI_EMPTY),
            "layers": [layer],
        }
        if artifact is not None:
            document["artifactType"] = artifact
            document["subject"] = Descriptor(OCI_MANIFEST, self.digest, self.size).document()
        self.client.put_manifest(self.name, dump(document), OCI_MANIFEST, tag)

    def cosign(self, key: Any, digest: str | None = None, kind: str = "cosign container image signature") -> None:
        said = {"docker-manifest-digest": digest or self.digest}
        payload = json.dumps({"critical": {"type": kind, "image": said, "identity": {}}, "optional": None}).encode()
        text = base64.b64encode(sign(key, payload)).decode()
        layer = self.blob(payload, COSIGN, **{"dev.cosignproject.cosign/signature": text})
        self.put(layer, None, f"{self.digest.replace(':', '-')}.sig")

    def bundle(self, key: Any, digest: str | None = None) -> None:
        subject = {"digest": {"sha256": (digest or self.digest)[7:]}}
        statement = {"subject": [subject], "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {}}
        payload, kind = json.dumps(statement).encode(), b"application/vnd.in-toto+json"
        signed = sign(key, b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
        rows = [{"sig": base64.b64encode(signed).decode()}]
        envelope = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind.decode(),
            "signatures": rows,
        }
        data = json.dumps({"mediaType": BUNDLE, "dsseEnvelope": envelope}).encode()
        self.put(self.blob(data, BUNDLE), BUNDLE)

    def notation(self, key: Any, chain: list[x509.Certificate], **head: Any) -> None:
        protected: dict[str, Any] = {
            "alg": "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "PS256",
            "cty": "application/vnd.cncf.notary.payload.v1+json",
            "crit": ["io.cncf.notary.signingScheme"],
            "io.cncf.notary.signingScheme": "notary.x509",
            "io.cncf.notary.signingTime": NOW.isoformat(),
            **head,
        }
        target = Descriptor(OCI_MANIFEST, protected.pop("digest", self.digest), self.size).document()
        words = [_url(json.dumps(part).encode()) for part in (protected, {"targetArtifact": target})]
        data = ".".join(words).encode()
        if isinstance(key, ec.EllipticCurvePrivateKey):
            pair = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
            signed = b"".join(n.to_bytes(32, "big") for n in pair)
        else:
            signed = key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
        x5c = [base64.b64encode(one.public_bytes(serialization.Encoding.DER)).decode() for one in chain]
        document = {"protected": words[0], "payload": words[1], "signature": _url(signed), "header": {"x5c": x5c}}
        self.put(self.blob(json.dumps(document).encode(), JWS), NOTATION)

    def verify(self, **trust: Any) -> int:
        return len(verify(self.client, self.name, self.digest, **trust))

    def refused(self, **trust: Any) -> str:
        with pytest.raises(SignatureError) as caught:
            self.verify(**trust)
        return str(caught.value)


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def certificate(
    name: str, key: Any, issuer: tuple[str, Any] | None = None, *, ca: bool = False, days: int = 2
) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    issued_by, issuing = issuer or (name, key)
    usage = x509.KeyUsage(not ca, False, False, False, False, ca, False, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issued_by))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 3 * DAY)
        .not_valid_after(NOW - 3 * DAY + datetime.timedelta(days=days + 3))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(usage, critical=True)
    )
    if not ca:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return made.sign(issuing, hashes.SHA256())


def as_pem(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def signed(registry: str, store: Store, request: pytest.FixtureRequest) -> Iterator[Signed]:
    name = "".join(c for c in request.node.name.lower() if c.isalnum())
    made = Signed(registry, f"signatures/{name}", store)
    yield made
    made.client.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["ec", "rsa", "ed25519"],
)
def test_cosign_with_a_key(signed: Signed, make: Any) -> None:
    mine, other = make(), make()
    assert "there is none" in signed.refused(keys=[pem(mine)])
    signed.cosign(mine)
    assert signed.verify(keys=[pem(mine)]) == 1
    assert signed.verify(keys=[pem(other), pem(mine)]) == 1
    assert "none of the keys made it" in signed.refused(keys=[pem(other)])
    assert [one.kind for one in find(signed.client, signed.name, signed.digest)] == ["cosign"]


def test_cosign_of_something_else(signed: Signed) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signed.cosign(key, "sha256:" + "a" * 64)
    assert "what was signed is sha256:aaaa" in signed.refused(keys=[pem(key)])
    signed.cosign(key, kind="attestation")
    assert "no image" in signed.refused(keys=[pem(key)])
    signed.cosign(key)
    assert signed.verify(keys=[pem(key)]) == 1


def test_bundles(signed: Signed) -> None:
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signed.bundle(key, "sha256:" + "a" * 64)
    assert "something else" in signed.refused(keys=[pem(key)])
    signed.bundle(key)
    assert signed.verify(keys=[pem(key)]) == 1
    assert "none of the keys" in signed.refused(keys=[pem(other)])


def test_notation(signed: Signed) -> None:
    top, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("root", top, ca=True)
    leaf = certificate("leaf", key, ("root", top))
    signed.notation(key, [leaf, root])
    assert signed.verify(certificates=[as_pem(root)]) == 1
    other = certificate("root", key, ca=True)
    assert "none of the certificates that are trusted" in signed.refused(certificates=[as_pem(other)])
    assert "there are no keys" in signed.refused(keys=[pem(key)]) or "none of" in signed.refused(keys=[pem(key)])


def test_notation_by_rsa_and_in_between(signed: Signed) -> None:
    top, middle, key = (rsa.generate_private_key(65537, 2048) for _ in range(3))
    root = certificate("root", top, ca=True)
    between = certificate("between", middle, ("root", top), ca=True)
    signed.notation(key, [certificate("leaf", key, ("between", middle)), between])
    assert signed.verify(certificates=[as_pem(root)]) == 1


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an end that is over": ({}, {"io.cncf.notary.expiry": (NOW - DAY).isoformat()}, "expired"),
    "an unknown condition": ({}, {"crit": ["io.cncf.notary.signingScheme", "x"]}, "conditions that are not known"),
    "another scheme": ({}, {"io.cncf.notary.signingScheme": "notary.x509.signingAuthority"}, "signing scheme"),
    "another payload": ({}, {"cty": "text/plain"}, "no payload"),
    "another image": ({}, {"digest": "sha256:" + "a" * 64}, "what was signed is"),
    "another algorithm": ({}, {"alg": "none"}, "does not fit"),
    "an old certificate": ({"days": -1}, {}, "not valid now"),
}


@pytest.mark.parametrize("case", BAD)
def test_notation_that_does_not_hold(signed: Signed, case: str) -> None:
    made, head, why = BAD[case]
    top, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("root", top, ca=True)
    signed.notation(key, [certificate("leaf", key, ("root", top), **made), root], **head)
    assert why in signed.refused(certificates=[as_pem(root)])
    # The control: the same without that.
    signed.notation(key, [certificate("leaf", key, ("root", top)), root])
    assert signed.verify(certificates=[as_pem(root)]) >= 1


def test_who_may_not_issue(signed: Signed) -> None:
    top, middle, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = certificate("root", top, ca=True)
    between = certificate("between", middle, ("root", top), ca=False)
    signed.notation(key, [certificate("leaf", key, ("between", middle)), between, root])
    assert "may not issue" in signed.refused(certificates=[as_pem(root)])
    with pytest.raises(ValueError, match="keys or certificates"):
        signed.verify()
