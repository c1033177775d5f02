"""Certificates: one authority a cluster, trusted for that cluster alone.

A cluster's authority signs its own server and client certificates and, from a request, the client certificate of each
peer. Of a request only the public key and the proof of its possession are taken; names, usages and extensions are
chosen by the signer, so that no peer can ask for more than a client certificate in its own name. Keys are ECDSA P-256;
authorities and certificates that others made (Cilium's Helm chart makes RSA) are read as they are.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
# A certificate is valid a little before it was made, for peers whose clock is behind.
_CLOCK_SKEW = timedelta(minutes=5)

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_REMEDY_REQUEST = "delete the ClusterMeshPeer on the requesting side and connect again"


class PkiError(ValueError):
    """A key, certificate or request that cannot be used; the text names what is wrong and the remedy."""


class KeyPair(NamedTuple):
    """A private key and its certificate, both PEM."""

    key: bytes
    cert: bytes


class Request(NamedTuple):
    """A private key and a signing request for it, both PEM."""

    key: bytes
    csr: bytes


@dataclass(frozen=True, slots=True)
class Description:
    """What a certificate says of itself."""

    common_name: str
    issuer: str
    names: tuple[str, ...]  # DNS names and addresses of the server
    not_before: datetime
    not_after: datetime
    fingerprint: str  # SHA-256, hexadecimal
    is_authority: bool

    def expired(self, now: datetime) -> bool:
        return now > self.not_after


def server_name(cluster: str) -> str:
    """The name that the etcd certificate of a cluster must carry."""
    return f"{cluster}.mesh.cilium.io"


def remote_user(cluster: str) -> str:
    """The common name, and etcd user, under which `cluster` reads its peers."""
    return f"remote-{cluster}"


class CertificateAuthority:
    """Signs for one cluster."""

    def __init__(self, cert: x509.Certificate, key: SigningKey) -> None:
        self._cert = cert
        self._key = key

    @classmethod
    def create(cls, name: str, *, days: int = AUTHORITY_DAYS) -> "CertificateAuthority":
        """A new authority that signs itself."""
        key = _new_key()
        subject = _name(name)
        cert = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(cert, key)

    @classmethod
    def load(cls, cert: bytes, key: bytes) -> "CertificateAuthority":
        """Read an authority from PEM; PkiError unless both fit together and may sign."""
        certificate = _load_certificate(cert)
        private = _load_signing_key(key)
        if certificate.public_key() != private.public_key():
            raise PkiError("the authority's certificate does not belong to its key: restore both from one backup")
        if not _is_authority(certificate):
            raise PkiError(f"{_common_name(certificate.subject)!r} is no certificate authority (basicConstraints CA)")
        return cls(certificate, private)

    @property
    def cert(self) -> bytes:
        """The authority's certificate, PEM."""
        return self._cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key(self) -> bytes:
        """The authority's private key, PEM."""
        return _key_pem(self._key)

    def issue_server(self, common_name: str, names: Sequence[str], *, days: int = LEAF_DAYS) -> KeyPair:
        """A server's key and certificate; `names` are DNS names and IP addresses."""
        key = _new_key()
        cert = (
            self._leaf(common_name, key.public_key(), days, ExtendedKeyUsageOID.SERVER_AUTH)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return KeyPair(_key_pem(key), cert.public_bytes(serialization.Encoding.PEM))

    def issue_client(self, common_name: str, *, organization: str | None = None, days: int = LEAF_DAYS) -> KeyPair:
        """A client's key and certificate; `organization` is the group that Kubernetes reads from it."""
        key = _new_key()
        builder = self._leaf(common_name, key.public_key(), days, ExtendedKeyUsageOID.CLIENT_AUTH, organization)
        cert = builder.sign(self._key, hashes.SHA256())
        return KeyPair(_key_pem(key), cert.public_bytes(serialization.Encoding.PEM))

    def sign_request(
        self, csr: bytes, expected_cn: str, *, common_name: str | None = None, days: int = LEAF_DAYS
    ) -> bytes:
        """The client certificate (PEM) for a request that asks for exactly `expected_cn`.

        It is issued in that name unless the signer chooses another `common_name`. Extensions of the request are
        ignored. PkiError when it is malformed, not signed by its own key, in another name, or its key is not on P-256.
        """
        request = _load_request(csr)
        if not _signature_valid(request):
            raise PkiError(f"the signing request is not signed by its own key: {_REMEDY_REQUEST}")
        attributes = list(request.subject)
        if len(attributes) != 1 or attributes[0].oid != NameOID.COMMON_NAME or attributes[0].value != expected_cn:
            raise PkiError(
                f"the signing request is for {request.subject.rfc4514_string()!r}, but only 'CN={expected_cn}' "
                f"is signed: {_REMEDY_REQUEST}"
            )
        public = request.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise PkiError(f"the signing request's key is not ECDSA P-256: {_REMEDY_REQUEST}")
        builder = self._leaf(common_name or expected_cn, public, days, ExtendedKeyUsageOID.CLIENT_AUTH)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _leaf(
        self,
        common_name: str,
        public: ec.EllipticCurvePublicKey,
        days: int,
        usage: x509.ObjectIdentifier,
        organization: str | None = None,
    ) -> x509.CertificateBuilder:
        issuer_key = self._key.public_key()
        return (
            _builder(_name(common_name, organization), self._cert.subject, public, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        )


def make_request(common_name: str, key: bytes | None = None) -> Request:
    """A signing request; for a new key unless an existing one (PEM) is given."""
    private = _new_key() if key is None else load_key(key)
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name))
    request = builder.sign(private, hashes.SHA256())
    return Request(_key_pem(private), request.public_bytes(serialization.Encoding.PEM))


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted ECDSA P-256 key; PkiError otherwise."""
    key = _load_signing_key(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PkiError("the private key is not ECDSA P-256: replace it by a new one")
    return key


def _load_signing_key(pem: bytes) -> SigningKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError(f"not a usable private key in PEM: {error}") from None
    if not isinstance(key, SigningKey):
        raise PkiError("the private key is neither ECDSA nor RSA: replace it by a new one")
    return key


def describe(cert: bytes) -> Description:
    """What the first certificate of a PEM text says; PkiError when there is none."""
    certificate = _load_certificate(cert)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(str(name.value) for name in extension.value)
    except x509.ExtensionNotFound:
        names = ()
    return Description(
        common_name=_common_name(certificate.subject),
        issuer=_common_name(certificate.issuer),
        names=names,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        is_authority=_is_authority(certificate),
    )


def belongs(cert: bytes, key: bytes) -> bool:
    """Whether a certificate was made for a private key."""
    return _load_certificate(cert).public_key() == _load_signing_key(key).public_key()


def asks_for(csr: bytes, key: bytes) -> bool:
    """Whether a signing request was made for a private key."""
    return _load_request(csr).public_key() == _load_signing_key(key).public_key()


def answers(cert: bytes, csr: bytes) -> bool:
    """Whether a certificate was made for the key of a signing request."""
    return _load_certificate(cert).public_key() == _load_request(csr).public_key()


def signed_by(cert: bytes, authority: bytes) -> bool:
    """Whether one of the certificates of `authority` (PEM, one or more) issued `cert`."""
    certificate = _load_certificate(cert)
    try:
        candidates = x509.load_pem_x509_certificates(authority)
    except ValueError:
        raise PkiError("not a certificate in PEM") from None
    for candidate in candidates:
        try:
            certificate.verify_directly_issued_by(candidate)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion):
        raise PkiError("not a certificate in PEM") from None


def _load_request(pem: bytes) -> x509.CertificateSigningRequest:
    try:
        return x509.load_pem_x509_csr(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise PkiError(f"not a signing request in PEM: {error}; {_REMEDY_REQUEST}") from None


def _signature_valid(request: x509.CertificateSigningRequest) -> bool:
    try:
        return request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        return False


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: SigningKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _common_name(name: x509.Name) -> str:
    return "".join(str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME))


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
