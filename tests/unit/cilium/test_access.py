"""By which certificate a cluster reads a Cilium cluster's etcd."""

from datetime import UTC, datetime, timedelta

import pytest

from clustermesh import pki
from clustermesh.cilium import access
from clustermesh.cilium.installation import CiliumError, Installation
from clustermesh.cilium.objects import REMOTE_CERT
from clustermesh.pki import CertificateAuthority, KeyPair, PkiError
from tests.unit.cilium.installations import AUTHORITY, SHARED, installation

NOW = datetime.now(UTC)
REQUEST = pki.make_request("remote-red")
ASKED = REQUEST.csr.decode()
FOREIGN = CertificateAuthority.create("other")


def certificate(of: Installation) -> pki.Description:
    way = access.choose(of, "red", NOW)
    made = access.certificate(way, of, "red", ASKED)
    assert access.serves(made, way, of, ASKED, NOW)
    return pki.describe(made.encode())


def test_its_authority_signs_for_a_user_of_our_own_where_it_has_such_users() -> None:
    assert certificate(installation()).common_name == "remote-red"
    assert certificate(installation(users=None)).common_name == "remote"
    assert certificate(installation(shared=None)).issuer == "Cilium CA"


def test_without_its_authority_the_shared_certificate_serves() -> None:
    for of in (installation(signer=None), installation(signer=KeyPair(FOREIGN.key, FOREIGN.cert))):
        way = access.choose(of, "red", NOW)
        assert (way.user, way.authority) == ("remote", None)
        assert access.certificate(way, of, "red", ASKED) == SHARED.cert.decode()


def strict() -> KeyPair:
    return AUTHORITY.issue_client("remote-east")


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (
            installation(signer=None, shared=None, forbidden=("secrets kube-system/cilium-ca",)),
            "right get on secrets cilium-ca in kube-system",
        ),
        (
            installation(signer=None, shared=None, forbidden=(f"secrets kube-system/{REMOTE_CERT}",)),
            "right get on secrets clustermesh-apiserver-remote-cert",
        ),
        (installation(signer=None, shared=None), "enable the mesh there first"),
        (installation(signer=None, shared=strict()), "for user remote-east (authMode cluster)"),
        (installation(signer=None, shared=KeyPair(FOREIGN.key, SHARED.cert)), "does not belong"),
        (installation(signer=None, shared=KeyPair(b"nonsense", SHARED.cert)), "not a usable private key"),
        (installation(signer=None, shared=KeyPair(SHARED.key, b"nonsense")), "not a certificate"),
        (installation(signer=KeyPair(b"nonsense", AUTHORITY.cert), shared=None), "not a usable private key"),
    ],
)
def test_what_is_missing_is_named(of: Installation, why: str) -> None:
    with pytest.raises(CiliumError) as refusal:
        access.choose(of, "red", NOW)
    assert why in str(refusal.value)


def test_nothing_that_expired_is_used() -> None:
    with pytest.raises(CiliumError, match=r"cilium-ca expired.*remote-cert expired"):
        access.choose(installation(), "red", NOW + timedelta(days=11 * 365))


def test_a_certificate_is_made_anew_when_it_no_longer_serves() -> None:
    of = installation()
    way = access.choose(of, "red", NOW)
    good = access.certificate(way, of, "red", ASKED)
    assert not access.serves(good, way, of, ASKED, NOW + timedelta(days=300))
    assert not access.serves(good, way, of, pki.make_request("remote-red").csr.decode(), NOW)
    assert not access.serves(good, way, of, "", NOW)
    assert not access.serves("", way, of, ASKED, NOW)
    foreign = FOREIGN.sign_request(REQUEST.csr, "remote-red").decode()
    assert not access.serves(foreign, way, of, ASKED, NOW)
    legacy = installation(users=None)
    assert not access.serves(good, access.choose(legacy, "red", NOW), legacy, ASKED, NOW)
    handed = installation(signer=None)
    assert not access.serves(good, access.choose(handed, "red", NOW), handed, ASKED, NOW)


def test_nobody_elses_request_is_signed() -> None:
    of = installation()
    with pytest.raises(PkiError, match="only 'CN=remote-red' is signed"):
        access.certificate(access.choose(of, "red", NOW), of, "red", pki.make_request("remote-blue").csr.decode())
