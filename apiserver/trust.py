"""Trust with one peer: our key and request, the certificate we issue, the certificate we were issued.

Our private key is made here, kept in a Secret of this cluster and never leaves it. What travels between clusters are
requests, certificates and authorities' certificates, through the spec and status of ClusterMeshPeer objects.
"""

import logging
from datetime import UTC, datetime, timedelta

from apiserver.status import TrustView
from clustermesh import pki
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import AlreadyExists, NotFound
from clustermesh.kube.objects import (
    HANDED_KEY,
    SECRETS,
    SYSTEM_NAMESPACE,
    ClusterMeshPeer,
    ClusterMeshPeerSpec,
    ObjectMeta,
    Secret,
    peer_secret,
)
from clustermesh.kvstore.connection import TlsPem
from clustermesh.pki import CertificateAuthority, PkiError, Request

log = logging.getLogger(__name__)

CA_SECRET = "clustermesh-ca"
PEER_LABEL = "clustermesh.io/peer"
# A certificate with less time left is issued anew.
RENEW_BEFORE = timedelta(days=pki.LEAF_DAYS // 3)


async def load_authority(client: KubeClient) -> CertificateAuthority:
    """This cluster's authority; PkiError names the Secret and the remedy, KubeError when it cannot be read."""
    where = f"Secret {SYSTEM_NAMESPACE}/{CA_SECRET}"
    try:
        secret = await client.get(SECRETS, CA_SECRET, SYSTEM_NAMESPACE)
    except NotFound:
        raise PkiError(f"{where} is missing: create it with ca.crt and ca.key of the CA that etcd trusts") from None
    cert, key = secret.data.get("ca.crt"), secret.data.get("ca.key")
    if cert is None or key is None:
        raise PkiError(f"{where} needs both ca.crt and ca.key")
    try:
        return CertificateAuthority.load(cert, key)
    except PkiError as error:
        raise PkiError(f"{where}: {error}") from None


async def own_request(client: KubeClient, cluster: str, peer: str) -> Request:
    """Our key for `peer` and the request for it, made at the first call and the same from then on."""
    while True:
        try:
            secret = await client.get(SECRETS, peer_secret(peer), SYSTEM_NAMESPACE)
        except NotFound:
            made = pki.make_request(pki.remote_user(cluster))
            fresh = _secret(peer, made)
            try:
                await client.create(SECRETS, fresh)
            except AlreadyExists:
                continue  # another instance was faster
            log.info("peer %s: made a key in Secret %s", peer, peer_secret(peer))
            return made
        key, csr = secret.data.get("tls.key"), secret.data.get("tls.csr")
        if key is None:
            raise PkiError(f"Secret {SYSTEM_NAMESPACE}/{peer_secret(peer)} has no tls.key: delete the Secret")
        if csr is not None:
            return Request(key, csr)
        made = pki.make_request(pki.remote_user(cluster), key)
        await client.apply(SECRETS, _secret(peer, made))
        return made


async def handed_key(client: KubeClient, peer: str) -> bytes | None:
    """The key that the peer made for all who read it, if `connect` was given one."""
    try:
        secret = await client.get(SECRETS, peer_secret(peer), SYSTEM_NAMESPACE)
    except NotFound:
        return None
    return secret.data.get(HANDED_KEY)


async def delete_key(client: KubeClient, peer: str) -> None:
    await client.delete(SECRETS, peer_secret(peer), SYSTEM_NAMESPACE, missing_ok=True)


async def stored_keys(client: KubeClient) -> set[str]:
    """The peers that a key is stored for."""
    secrets = await client.list(SECRETS, SYSTEM_NAMESPACE, label_selector=PEER_LABEL)
    return {(secret.metadata.labels or {}).get(PEER_LABEL, "") for secret in secrets}


def issue(authority: CertificateAuthority, peer: ClusterMeshPeer, now: datetime) -> str:
    """The certificate (PEM) for the peer's request, "" without one; what was issued before is kept while it is good.

    PkiError when the request asks for anything but a certificate in the peer's own name.
    """
    request = peer.spec.certificate_request.encode()
    if not request:
        return ""
    before = peer.status.issued_certificate
    if before and _still_good(before.encode(), request, authority, now):
        return before
    return authority.sign_request(request, pki.remote_user(peer.name)).decode()


def _still_good(issued: bytes, request: bytes, authority: CertificateAuthority, now: datetime) -> bool:
    try:
        return (
            pki.answers(issued, request)
            and pki.signed_by(issued, authority.cert)
            and pki.describe(issued).not_after - now > RENEW_BEFORE
        )
    except PkiError:
        return False


def credentials(
    spec: ClusterMeshPeerSpec, request: Request, now: datetime, handed: bytes | None = None
) -> TlsPem | None:
    """What to show to the peer and whom to believe; None while the peer has not signed yet.

    `handed`: a key of the peer's that may belong to the certificate instead of ours. PkiError when what was handed to
    us cannot work.
    """
    if not spec.client_certificate or not spec.ca_bundle:
        return None
    certificate = spec.client_certificate.encode()
    for field, pem in (("caBundle", spec.ca_bundle.encode()), ("clientCertificate", certificate)):
        try:
            pki.describe(pem)
        except PkiError as error:
            raise PkiError(f"spec.{field}: {error}: run `clustermesh connect` again to put it right") from None
    key = next((key for key in (request.key, handed) if key is not None and pki.belongs(certificate, key)), None)
    if key is None:
        raise PkiError("spec.clientCertificate was not made for our key: run `clustermesh connect` again")
    said = pki.describe(certificate)
    if said.expired(now):
        raise PkiError(
            f"spec.clientCertificate expired on {said.not_after:%Y-%m-%d}: run `clustermesh connect` again to renew it"
        )
    return TlsPem(spec.ca_bundle.encode(), certificate, key)


def view(request: Request | None, issued: str, tls: TlsPem | None, error: str = "") -> TrustView:
    """The state of the exchange for the peer's status."""
    if error:
        reason, message = "Refused", error
    elif tls is None:
        reason, message = "Pending", "waiting for the peer's certificate in spec.clientCertificate"
    elif not issued:
        reason, message = "Pending", "waiting for the peer's request in spec.certificateRequest"
    else:
        reason, message = "Exchanged", ""
    return TrustView(
        certificate_request=request.csr.decode() if request else "",
        issued_certificate=issued,
        complete=reason == "Exchanged",
        reason=reason,
        message=message,
    )


def now() -> datetime:
    return datetime.now(UTC)


def _secret(peer: str, request: Request) -> Secret:
    meta = ObjectMeta(name=peer_secret(peer), namespace=SYSTEM_NAMESPACE, labels={PEER_LABEL: peer})
    return Secret(metadata=meta, data={"tls.key": request.key, "tls.csr": request.csr})
