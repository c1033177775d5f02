"""Authorities, requests and what a signer refuses."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from clustermesh import pki
from clustermesh.pki import CertificateAuthority, PkiError


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("red")


def test_an_authority_survives_being_saved(authority: CertificateAuthority) -> None:
    loaded = CertificateAuthority.load(authority.cert, authority.key)
    client = loaded.issue_client("local-red")
    assert pki.signed_by(client.cert, authority.cert)
    assert pki.belongs(client.cert, client.key)


def test_an_authority_does_not_load_with_anothers_key(authority: CertificateAuthority) -> None:
    with pytest.raises(PkiError, match="does not belong to its key"):
        CertificateAuthority.load(authority.cert, CertificateAuthority.create("red").key)


def test_a_leaf_does_not_load_as_authority(authority: CertificateAuthority) -> None:
    leaf = authority.issue_client("local-red")
    with pytest.raises(PkiError, match="no certificate authority"):
        CertificateAuthority.load(leaf.cert, leaf.key)


def test_a_server_certificate_names_hosts_and_addresses(authority: CertificateAuthority) -> None:
    pair = authority.issue_server("etcd", [pki.server_name("red"), "localhost", "127.0.0.1", "fd00::1"])
    said = pki.describe(pair.cert)
    assert said.names == ("red.mesh.cilium.io", "localhost", "127.0.0.1", "fd00::1")
    assert said.issuer == "red"
    assert not said.is_authority


def test_a_request_becomes_a_client_certificate_for_a_year(authority: CertificateAuthority) -> None:
    request = pki.make_request("remote-green")
    cert = authority.sign_request(request.csr, "remote-green")
    said = pki.describe(cert)
    assert said.common_name == "remote-green"
    assert timedelta(days=364) < said.not_after - datetime.now(UTC) <= timedelta(days=365)
    assert not said.expired(datetime.now(UTC))
    assert pki.belongs(cert, request.key)
    assert pki.answers(cert, request.csr)
    usages = x509.load_pem_x509_certificate(cert).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_request_for_a_kept_key_keeps_it() -> None:
    first = pki.make_request("remote-green")
    assert pki.make_request("remote-green", first.key).key == first.key


def test_a_request_in_another_name_is_refused(authority: CertificateAuthority) -> None:
    request = pki.make_request("remote-blue")
    with pytest.raises(PkiError, match=r"remote-blue.*only 'CN=remote-green'"):
        authority.sign_request(request.csr, "remote-green")


def test_extensions_and_further_names_of_a_request_are_not_taken(authority: CertificateAuthority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    common = x509.NameAttribute(NameOID.COMMON_NAME, "remote-green")
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([common]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("red.mesh.cilium.io")]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    said = pki.describe(authority.sign_request(greedy, "remote-green"))
    assert not said.is_authority
    assert said.names == ()

    group = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters")
    privileged = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([group, common]))
    pem = privileged.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(PkiError, match="system:masters"):
        authority.sign_request(pem, "remote-green")


def test_a_key_of_another_kind_is_refused(authority: CertificateAuthority) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "remote-green")])
    pem = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with pytest.raises(PkiError, match="P-256"):
        authority.sign_request(pem.public_bytes(serialization.Encoding.PEM), "remote-green")


def test_a_request_whose_signature_was_changed_is_refused(authority: CertificateAuthority) -> None:
    request = x509.load_pem_x509_csr(pki.make_request("remote-green").csr)
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(PkiError):
        tampered = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
        authority.sign_request(tampered, "remote-green")


def test_a_namesake_authority_did_not_sign(authority: CertificateAuthority) -> None:
    stranger = CertificateAuthority.create("red").issue_client("local-red")
    assert not pki.signed_by(stranger.cert, authority.cert)


@given(st.binary(max_size=200))
def test_no_bytes_crash_a_reader(raw: bytes) -> None:
    authority = _AUTHORITY
    for read in (pki.describe, pki.load_key, lambda pem: authority.sign_request(pem, "remote-green")):
        with pytest.raises(PkiError):
            read(raw)


@given(st.data())
def test_no_damaged_request_crashes_the_signer(data: st.DataObject) -> None:
    pem = bytearray(_REQUEST.csr)
    pem[data.draw(st.integers(0, len(pem) - 1))] = data.draw(st.integers(0, 255))
    try:
        cert = _AUTHORITY.sign_request(bytes(pem), "remote-green")
    except PkiError:
        return
    assert pki.describe(cert).common_name == "remote-green"


_AUTHORITY = CertificateAuthority.create("red")
_REQUEST = pki.make_request("remote-green")


def rsa_authority(name: str) -> CertificateAuthority:
    """As Cilium's Helm chart makes one."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=3))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    pem = key.private_bytes(encoding, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    return CertificateAuthority.load(cert.public_bytes(encoding), pem)


def test_an_rsa_authority_signs_a_request_in_the_name_that_it_chooses() -> None:
    foreign = rsa_authority("Cilium CA")
    request = pki.make_request("remote-red")
    assert pki.asks_for(request.csr, request.key) and not pki.asks_for(request.csr, foreign.key)
    issued = foreign.sign_request(request.csr, "remote-red", common_name="remote")
    assert pki.describe(issued).common_name == "remote"
    assert pki.signed_by(issued, foreign.cert) and pki.belongs(issued, request.key)
    with pytest.raises(PkiError, match="only 'CN=remote-green' is signed"):
        foreign.sign_request(request.csr, "remote-green", common_name="remote")
