"""By which certificate a cluster reads a Cilium cluster's etcd: the best that the operator's rights allow. Pure.

Best is a certificate that Cilium's authority signs for the cluster's own key: no private key travels. Where the
authority may not be used there is the certificate that Cilium makes together with its key for all its peers.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from clustermesh import pki
from clustermesh.cilium.installation import CiliumError, Installation
from clustermesh.cilium.objects import CA, REMOTE_CERT
from clustermesh.pki import CertificateAuthority, PkiError

SHARED_USER = "remote"
# A certificate with less time left is made anew.
RENEW_BEFORE = timedelta(days=pki.LEAF_DAYS // 3)


class Way(NamedTuple):
    """How a cluster will read: under which user of Cilium's etcd, and whose key it uses."""

    user: str
    authority: CertificateAuthority | None  # signs a request; None: the shared certificate and its key are used

    def __str__(self) -> str:
        how = f"a certificate signed by {CA}" if self.authority is not None else f"the certificate of {REMOTE_CERT}"
        return f"{how}, user {self.user}"


def choose(installation: Installation, cluster: str, now: datetime) -> Way:
    """The way for `cluster`; CiliumError names every right or object that is missing."""
    obstacles = []
    try:
        authority = _authority(installation, now)
        return Way(pki.remote_user(cluster) if installation.user_per_peer else SHARED_USER, authority)
    except CiliumError as error:
        obstacles.append(str(error))
    try:
        _check_shared(installation, now)
        return Way(SHARED_USER, None)
    except CiliumError as error:
        obstacles.append(str(error))
    raise CiliumError("; ".join(obstacles))


def certificate(way: Way, installation: Installation, cluster: str, request: str) -> str:
    """The certificate (PEM) for a cluster's request; PkiError when it is no request of that cluster."""
    if way.authority is None:
        assert installation.shared is not None  # or it would not have been chosen
        return installation.shared.cert.decode()
    user = pki.remote_user(cluster)
    return way.authority.sign_request(request.encode(), user, common_name=way.user).decode()


def serves(certificate: str, way: Way, installation: Installation, request: str, now: datetime) -> bool:
    """Whether a certificate that the cluster has already is still as good as a new one."""
    try:
        said = pki.describe(certificate.encode())
        if said.common_name != way.user:
            return False
        if way.authority is None:
            return installation.shared is not None and certificate == installation.shared.cert.decode()
        return (
            pki.answers(certificate.encode(), request.encode())
            and pki.signed_by(certificate.encode(), way.authority.cert)
            and said.not_after - now > RENEW_BEFORE
        )
    except PkiError:
        return False


def _authority(installation: Installation, now: datetime) -> CertificateAuthority:
    where = f"Secret {installation.namespace}/{CA}"
    if installation.signer is None:
        if any(name.endswith(f"/{CA}") for name in installation.forbidden):
            raise CiliumError(f"{where} may not be read (right get on secrets {CA} in {installation.namespace})")
        raise CiliumError(f"{where} with ca.crt and ca.key is not there")
    try:
        authority = CertificateAuthority.load(installation.signer.cert, installation.signer.key)
        if installation.shared is not None and not pki.signed_by(installation.shared.cert, authority.cert):
            raise CiliumError(f"{where} is not what signs the mesh's certificates ({REMOTE_CERT} is another's)")
        if (said := pki.describe(authority.cert)).expired(now):
            raise CiliumError(f"{where} expired on {said.not_after:%Y-%m-%d}: make it anew")
    except PkiError as error:
        raise CiliumError(f"{where}: {error}") from None
    return authority


def _check_shared(installation: Installation, now: datetime) -> None:
    where = f"Secret {installation.namespace}/{REMOTE_CERT}"
    if installation.shared is None:
        if any(name.endswith(f"/{REMOTE_CERT}") for name in installation.forbidden):
            raise CiliumError(f"{where} may not be read (right get on secrets {REMOTE_CERT})")
        raise CiliumError(f"{where} with tls.crt and tls.key is not there: enable the mesh there first")
    try:
        said = pki.describe(installation.shared.cert)
        fits = pki.belongs(installation.shared.cert, installation.shared.key)
    except PkiError as error:
        raise CiliumError(f"{where}: {error}") from None
    if not fits:
        raise CiliumError(f"{where}: tls.crt does not belong to tls.key: make both anew")
    if said.common_name != SHARED_USER:
        raise CiliumError(f"{where} is for user {said.common_name} (authMode cluster), which nobody else may use")
    if said.expired(now):
        raise CiliumError(f"{where} expired on {said.not_after:%Y-%m-%d}: make it anew")
