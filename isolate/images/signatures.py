"""Signatures that lie beside an image in a registry: cosign's and notation's, verified against what the caller trusts.

Nothing here signs, and nothing asks a service: keys and certificates are given. Needs ``isolate-linux[signatures]``.

Formats: sigstore/cosign ``specs/SIGNATURE_SPEC.md`` and ``BUNDLE_SPEC.md``; secure-systems-lab/dsse ``protocol.md``;
notaryproject/specifications ``signature-specification.md`` and ``signature-envelope-jws.md``.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isolate.images.digests import check_digest, split
from isolate.images.documents import Descriptor, parse, read_manifest
from isolate.images.errors import DigestError, ImageError, RegistryError, SignatureError, printable
from isolate.kernel.extras import install

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.images.registry.client import Registry

__all__ = ["Signature", "find", "verify"]

COSIGN = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
NOTATION = "application/vnd.cncf.notary.signature"
JWS = "application/jose+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
_MOST = 100  # signatures of one image that are looked at
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Signature:
    """One signature as it lies in the registry: not verified by anybody.

    ``kind`` is ``"cosign"`` or ``"notation"``, ``form`` the media type, ``payload`` what was signed, ``envelope`` the
    rest that is needed to verify it.
    """

    kind: str
    form: str
    payload: bytes
    envelope: bytes


def find(registry: Registry, repository: str, digest: str) -> tuple[Signature, ...]:
    """The signatures of the manifest of this digest, by referrers and by cosign's tag. Nothing is verified.

    :raises RegistryError: the registry fails. :raises DigestError: it gives other bytes than it names.
    """
    check_digest(digest)
    found: list[Signature] = []
    for row in registry.referrers(repository, digest):
        if row.artifact_type in (COSIGN_ARTIFACT, BUNDLE, NOTATION) and len(found) < _MOST:
            found += _of_manifest(registry, repository, registry.manifest(repository, row.digest).data)
    try:
        tagged = registry.manifest(repository, f"{digest.replace(':', '-')}.sig")
    except RegistryError as error:
        if error.status != 404:
            raise
    else:
        found += _of_manifest(registry, repository, tagged.data)
    return tuple(found[:_MOST])


def _of_manifest(registry: Registry, repository: str, data: bytes) -> Iterator[Signature]:
    try:
        layers = read_manifest(data).layers
    except ImageError:
        return
    for layer in layers[:_MOST]:
        if layer.media_type in (COSIGN, JWS, BUNDLE) and layer.size <= _LARGEST:
            yield _signature(layer, registry.blob(repository, layer, _LARGEST))


def _signature(layer: Descriptor, blob: bytes) -> Signature:
    if layer.media_type == COSIGN:
        return Signature("cosign", COSIGN, blob, dict(layer.annotations).get(_SIGNATURE, "").encode())
    return Signature("cosign" if layer.media_type == BUNDLE else "notation", layer.media_type, blob, b"")


def verify(
    registry: Registry,
    repository: str,
    digest: str,
    *,
    keys: Iterable[bytes] = (),
    certificates: Iterable[bytes] = (),
) -> tuple[Signature, ...]:
    """The signatures of a manifest that one of the ``keys`` (PEM, for cosign) made, or somebody whose certificate one
    of the ``certificates`` (PEM, the roots for notation) vouches for. At least one, or it is an error.

    What was signed is this digest: pull by it (``repository@digest``) and nothing else can come.

    :raises SignatureError: there is none, or none that holds; it says of each why not.
    """
    trusted, roots = [_key(key) for key in keys], [_certificate(pem) for pem in certificates]
    if not trusted and not roots:
        raise ValueError("verify needs keys or certificates to trust")
    held, reasons = [], []
    for signature in find(registry, repository, digest):
        try:
            if signature.form == COSIGN:
                _verify_simple(signature, digest, trusted)
            elif signature.form == BUNDLE:
                _verify_bundle(signature, digest, trusted)
            else:
                _verify_jws(signature, digest, roots)
        except (_NotGood, ImageError, DigestError) as reason:
            reasons.append(f"{signature.kind}: {reason}")
        else:
            held.append(signature)
    if not held:
        raise SignatureError(digest, tuple(reasons))
    return tuple(held)


class _NotGood(Exception):
    """Why a signature does not hold."""


def _crypto() -> Any:
    try:
        import cryptography
    except ImportError as error:
        raise SignatureError("", (f"the package cryptography is missing: {install('signatures')}",)) from error
    return cryptography


def _key(pem: bytes) -> Any:
    _crypto()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return load_pem_public_key(pem)


def _certificate(pem: bytes) -> Any:
    _crypto()
    from cryptography.x509 import load_pem_x509_certificate

    return load_pem_x509_certificate(pem)


def _base64(text: object, *, url: bool = False) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise _NotGood("a field is missing")
    data = text.encode() if isinstance(text, str) else text
    if url:
        data += b"=" * (-len(data) % 4)
        data = data.replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _NotGood("a field is not base64") from None


def _by_one_of(keys: list[Any], signature: bytes, data: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256

    for key in keys:
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, data, ec.ECDSA(SHA256()))
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, data, padding.PKCS1v15(), SHA256())
            elif isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, data)
            else:
                continue
        except InvalidSignature:
            continue
        return
    raise _NotGood("none of the keys made it" if keys else "there are no keys for it")


def _verify_simple(signature: Signature, digest: str, keys: list[Any]) -> None:
    _by_one_of(keys, _base64(signature.envelope), signature.payload)
    critical = parse(signature.payload, "payload").get("critical")
    if not isinstance(critical, dict) or critical.get("type") != "cosign container image signature":
        raise _NotGood("what was signed is no image")
    image = critical.get("image")
    said = image.get("docker-manifest-digest") if isinstance(image, dict) else None
    if said != digest:
        raise _NotGood(f"what was signed is {printable(str(said))}")


def _verify_bundle(signature: Signature, digest: str, keys: list[Any]) -> None:
    envelope = parse(signature.payload, "bundle").get("dsseEnvelope")
    if not isinstance(envelope, dict):
        raise _NotGood("the bundle has no DSSE envelope")
    kind, payload, rows = envelope.get("payloadType"), _base64(envelope.get("payload")), envelope.get("signatures")
    if kind != "application/vnd.in-toto+json" or not isinstance(rows, list) or len(rows) > _MOST:
        raise _NotGood("the envelope is not of an in-toto statement")
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    for row in rows:
        try:
            _by_one_of(keys, _base64(row.get("sig") if isinstance(row, dict) else None), signed)
            break
        except _NotGood:
            continue
    else:
        raise _NotGood("none of the keys made it")
    statement = parse(payload, "statement")
    if statement.get("predicateType") != "https://sigstore.dev/cosign/sign/v1":
        raise _NotGood(f"the statement is {printable(str(statement.get('predicateType')))}, no signature of an image")
    algorithm, digits = split(digest)
    subjects = statement.get("subject")
    for subject in subjects if isinstance(subjects, list) else ():
        digests = subject.get("digest") if isinstance(subject, dict) else None
        if isinstance(digests, dict) and digests.get(algorithm) == digits:
            return
    raise _NotGood("what was signed is something else")


def _verify_jws(signature: Signature, digest: str, roots: list[Any]) -> None:
    document = parse(signature.payload, "signature")
    words = [document.get(name) for name in ("protected", "payload", "signature")]
    if not all(isinstance(word, str) and word.isascii() for word in words):
        raise _NotGood("it is no JWS in JSON")
    protected, payload, signed = (str(word) for word in words)
    head = parse(_base64(protected, url=True), "protected header")
    outside = document.get("header")
    chain = outside.get("x5c") if isinstance(outside, dict) else None
    if not isinstance(chain, list) or not 1 <= len(chain) <= 10:
        raise _NotGood("it has no certificates")
    if head.get("cty") != "application/vnd.cncf.notary.payload.v1+json":
        raise _NotGood("what was signed is no payload of notation's")
    if head.get("io.cncf.notary.signingScheme") != "notary.x509":
        raise _NotGood(f"the signing scheme is {printable(str(head.get('io.cncf.notary.signingScheme')))}")
    known = {"io.cncf.notary.signingScheme", "io.cncf.notary.expiry"}
    critical = head.get("crit")
    if not isinstance(critical, list) or not set(map(str, critical)) <= known:
        raise _NotGood("it has conditions that are not known here")
    leaf = _trusted([_base64(one) for one in chain], roots)
    _by_certificate(leaf, str(head.get("alg")), _base64(signed, url=True), f"{protected}.{payload}".encode())
    if "io.cncf.notary.expiry" in head:
        _not_after(str(head["io.cncf.notary.expiry"]))
    target = parse(_base64(payload, url=True), "payload").get("targetArtifact")
    said = target.get("digest") if isinstance(target, dict) else None
    if said != digest:
        raise _NotGood(f"what was signed is {printable(str(said))}")


def _trusted(chain: list[bytes], roots: list[Any]) -> Any:
    """The leaf of a chain that leads to one of the roots today.

    :raises _NotGood: it does not.
    """
    import datetime

    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        found = [x509.load_der_x509_certificate(data) for data in chain]
    except ValueError:
        raise _NotGood("a certificate cannot be read") from None
    now = datetime.datetime.now(datetime.timezone.utc)
    for index, own in enumerate(found):
        if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
            raise _NotGood("a certificate is not valid now")
        if index:
            try:
                found[index - 1].verify_directly_issued_by(own)
            except (ValueError, TypeError, InvalidSignature):
                raise _NotGood("the certificates are no chain") from None
            if not _may_issue(own):
                raise _NotGood("a certificate that may not issue others has issued one")
    leaf, last = found[0], found[-1]
    try:
        if not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            raise _NotGood("the certificate is not for signatures")
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CODE_SIGNING not in uses:
            raise _NotGood("the certificate is not for signing code")
    except x509.ExtensionNotFound as error:
        if error.oid != x509.ExtendedKeyUsage.oid:
            raise _NotGood("the certificate does not say what it is for") from None
    except (ValueError, x509.DuplicateExtension):
        raise _NotGood("a certificate cannot be read") from None
    for root in roots:
        if root == last and (len(found) == 1 or _may_issue(root)):
            return leaf
        try:
            last.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            continue
        if _may_issue(root) and root.not_valid_before_utc <= now <= root.not_valid_after_utc:
            return leaf
    raise _NotGood("none of the certificates that are trusted vouches for it")


def _may_issue(certificate: Any) -> bool:
    from cryptography import x509

    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _by_certificate(leaf: Any, algorithm: str, signature: bytes, data: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    sizes = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
    hashed: Any = sizes.get(algorithm[2:])
    key = leaf.public_key()
    try:
        if algorithm[:2] == "PS" and hashed is not None and isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
            key.verify(signature, data, padding.PSS(padding.MGF1(hashed), hashed.digest_size), hashed)
            return
        if algorithm[:2] == "ES" and hashed is not None and isinstance(key, ec.EllipticCurvePublicKey):
            half = len(signature) // 2
            pair = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            if len(signature) != 2 * ((key.key_size + 7) // 8):
                raise _NotGood("the signature has another length than its key")
            key.verify(encode_dss_signature(*pair), data, ec.ECDSA(hashed))
            return
    except InvalidSignature:
        raise _NotGood("the key of the certificate did not make it") from None
    raise _NotGood(f"the algorithm {printable(algorithm)} does not fit the key")


def _not_after(text: str) -> None:
    import datetime

    try:
        end = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
        late = end < datetime.datetime.now(datetime.timezone.utc)
    except (ValueError, TypeError):
        raise _NotGood("its end cannot be read") from None
    if late:
        raise _NotGood("it has expired")
