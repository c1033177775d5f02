"""What `connect` carries to one side, without the command: a CA, the peer's object, its answer to the request."""

from collections.abc import Sequence

from clustermesh.kube.client import KubeClient
from clustermesh.kube.objects import CLUSTER_MESH_PEERS, SECRETS, SYSTEM_NAMESPACE, ObjectMeta, Secret
from clustermesh.pki import CertificateAuthority, remote_user
from tests.integration.waiting import eventually


async def introduce(
    client: KubeClient,
    own: CertificateAuthority,
    own_name: str,
    *,
    peer: CertificateAuthority,
    peer_name: str,
    peer_id: int,
    endpoints: Sequence[str],
) -> None:
    """Make the peer known to the API server of `own_name`; returns once that one is connected to its etcd."""
    meta = ObjectMeta(name="clustermesh-ca", namespace=SYSTEM_NAMESPACE)
    await client.create(SECRETS, Secret(metadata=meta, data={"ca.crt": own.cert, "ca.key": own.key}))
    spec = {"clusterID": peer_id, "endpoints": list(endpoints), "caBundle": peer.cert.decode()}
    await client.create(CLUSTER_MESH_PEERS, {"metadata": {"name": peer_name}, "spec": spec})

    async def requested() -> bool:
        return bool((await client.get(CLUSTER_MESH_PEERS, peer_name)).status.certificate_request)

    await eventually(requested)
    request = (await client.get(CLUSTER_MESH_PEERS, peer_name)).status.certificate_request
    signed = peer.sign_request(request.encode(), remote_user(own_name)).decode()
    await client.merge_patch(CLUSTER_MESH_PEERS, peer_name, {"spec": {"clientCertificate": signed}})

    async def connected() -> bool:
        return (await client.get(CLUSTER_MESH_PEERS, peer_name)).status.connection.state == "connected"

    await eventually(connected)
