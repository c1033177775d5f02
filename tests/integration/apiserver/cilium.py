"""A stand-in for a cluster that runs Cilium, which no package ships: only what others see of it.

Its Kubernetes API (the testbed's) holds what Cilium's Helm chart installs; its etcd is real, with Cilium's users, roles
and certificates, and filled with what a real clustermesh-apiserver wrote. Users of peers follow the ConfigMap, as
Cilium's API server makes them. Its clients are played by `Reader`: what they are told, they do to the letter.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from clustermesh.cilium import layout, users
from clustermesh.cilium.objects import (
    AGENTS_SECRET,
    API_SERVER,
    CA,
    CONFIG,
    MIRROR_SECRET,
    NAMESPACE,
    REMOTE_CERT,
    REMOTE_USERS,
)
from clustermesh.kube import config
from clustermesh.kube.client import KubeClient
from clustermesh.kube.errors import NotFound
from clustermesh.kube.objects import CONFIG_MAPS, SECRETS, ConfigMap, ObjectMeta, Secret
from clustermesh.kube.reflector import Reflector
from clustermesh.kvstore.auth import AuthAdmin, Permission
from clustermesh.kvstore.connection import Connection, TlsFiles
from tests.integration.etcd_process import EtcdProcess
from tests.integration.kubernetes.cluster import Cluster

NAME = "cluster1"  # as recorded
ID = 1
RECORDED = Path("tests/golden/exported-by-cilium.txt")
OTHERS = {"other": b"endpoints:\n- https://other.example:2379\n"}
USERS = "users:\n# by hand\n- name: remote-other\n  role: remote\n"

CILIUM_NODES_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "ciliumnodes.cilium.io"},
    "spec": {
        "group": "cilium.io",
        "scope": "Cluster",
        "names": {
            "kind": "CiliumNode",
            "listKind": "CiliumNodeList",
            "plural": "ciliumnodes",
            "singular": "ciliumnode",
        },
        "versions": [
            {
                "name": "v2",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


class CiliumCluster:
    """`legacy`: as before 1.19, all peers share one user and KVStoreMesh is off; its authority is kept elsewhere."""

    def __init__(self, etcd: EtcdProcess, directory: Path, *, legacy: bool = False) -> None:
        self.etcd = etcd
        self.kubernetes = Cluster(etcd, directory)
        self.legacy = legacy
        self.version = "v1.18.2" if legacy else "v1.20.1"

    def client(self) -> KubeClient:
        return KubeClient(config.load(self.kubernetes.kubeconfig))

    async def install(self, settings: Mapping[str, str] | None = None) -> None:
        """What `helm install` and `cilium clustermesh enable` bring, and a cluster's records."""
        await self._serve()
        await self.kubernetes.start()
        async with self.client() as client:
            await self._configure(client, settings or {})
            await self._certificates(client)
        await self._service()
        await self._nodes()
        await self._fill()

    async def _serve(self) -> None:
        await self.etcd.stop()
        names = ["clustermesh-apiserver.cilium.io", "*.mesh.cilium.io", "clustermesh-apiserver.kube-system.svc"]
        # The real one has 127.0.0.1 as well, by which tests and probes reach it.
        pair = self.etcd.ca.issue_server("clustermesh-apiserver.cilium.io", [*names, "127.0.0.1", "::1"])
        self.etcd.server.cert.write_bytes(pair.cert)
        self.etcd.server.key.write_bytes(pair.key)
        await self.etcd.start()

    async def _configure(self, client: KubeClient, settings: Mapping[str, str]) -> None:
        data = {
            "cluster-name": NAME,
            "cluster-id": str(ID),
            "max-connected-clusters": "255",
            "routing-mode": "tunnel",
            "tunnel-protocol": "vxlan",
            "identity-allocation-mode": "crd",
            "enable-ipv4": "true",
            **settings,
        }
        await client.create(CONFIG_MAPS, ConfigMap(metadata=_meta(CONFIG), data=data))
        # With legacy it may lie about from other days; nobody reads it then.
        await client.create(CONFIG_MAPS, ConfigMap(metadata=_meta(REMOTE_USERS), data={users.FILE: USERS}))
        if not self.legacy:
            for name in (AGENTS_SECRET, MIRROR_SECRET):
                await client.create(SECRETS, Secret(metadata=_meta(name), data=OTHERS))

    async def _certificates(self, client: KubeClient) -> None:
        authority = self.etcd.ca
        if not self.legacy:
            data = {"ca.crt": authority.cert, "ca.key": authority.key}
            await client.create(SECRETS, Secret(metadata=_meta(CA), data=data))
        shared = authority.issue_client("remote")
        data = {"ca.crt": authority.cert, "tls.crt": shared.cert, "tls.key": shared.key}
        await client.create(SECRETS, Secret(metadata=_meta(REMOTE_CERT), data=data))

    async def _service(self) -> None:
        meta = {"name": API_SERVER, "namespace": NAMESPACE}
        ports = [{"name": "etcd", "port": self.etcd.port, "protocol": "TCP"}]
        spec = {"type": "LoadBalancer", "ports": ports, "selector": {"k8s-app": API_SERVER}}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
        await self._post(f"/api/v1/namespaces/{NAMESPACE}/services", service)
        path = f"/api/v1/namespaces/{NAMESPACE}/services/{API_SERVER}/status"
        patch = {"status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}}
        answer = await self.kubernetes.call("PATCH", path, patch, "application/merge-patch+json")
        assert answer.status == 200, answer.body
        names = ["etcd", "apiserver"] + ([] if self.legacy else ["kvstoremesh"])
        volumes = [] if self.legacy else [{"name": "etcd-users-config", "configMap": {"name": REMOTE_USERS}}]
        image = f"quay.io/cilium/clustermesh-apiserver:{self.version}@sha256:0"
        template = {
            "metadata": {"labels": {"k8s-app": API_SERVER}},
            "spec": {"containers": [{"name": name, "image": image} for name in names], "volumes": volumes},
        }
        spec = {"selector": {"matchLabels": {"k8s-app": API_SERVER}}, "template": template, "replicas": 0}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
        await self._post(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", deployment)

    async def _nodes(self) -> None:
        await self._post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", CILIUM_NODES_CRD)
        for name, number in (("node-a", 0), ("node-b", 1)):
            addresses = [{"type": "InternalIP", "ip": f"172.18.0.1{number + 1}"}]
            spec = {"addresses": addresses, "ipam": {"podCIDRs": [f"10.1.{number}.0/24"]}}
            node = {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": name}, "spec": spec}
            await self._post("/apis/cilium.io/v2/ciliumnodes", node)

    async def _post(self, path: str, body: Any) -> None:
        answer = await self.kubernetes.post(path, body)
        assert answer.status == 201, answer.body

    async def _fill(self) -> None:
        root = self.etcd.connection()
        lines = RECORDED.read_text().splitlines()
        for key, value in zip(lines[::2], lines[1::2], strict=True):
            await root.put(key, value.encode())
        admin = AuthAdmin(root)
        read = [
            Permission("read", "cilium/.heartbeat"),
            Permission("read", "cilium/state/"),
            Permission("read", f"cilium/synced/{NAME}/"),
            Permission("read", f"cilium/cluster-config/{NAME}", exact=True),
        ]
        await admin.ensure_role("remote", read)
        for user, role in (("root", "root"), (f"admin-{NAME}", "root"), ("remote", "remote")):
            await admin.ensure_user(user, (role,))
        await admin.enable()

    async def run(self) -> None:
        """Cilium's part that the connection waits for: users of peers, as the ConfigMap lists them if it is used."""
        if self.legacy:
            await asyncio.Event().wait()
        admin = AuthAdmin(self.etcd.connection())
        async with self.client() as client, aclosing(Reflector(client, CONFIG_MAPS, NAMESPACE).batches()) as batches:
            async for batch in batches:
                for listed in batch.upserts:
                    if listed.name == REMOTE_USERS:
                        await self._keep_users(admin, set(users.names(listed.data.get(users.FILE, ""))))

    @staticmethod
    async def _keep_users(admin: AuthAdmin, wanted: set[str]) -> None:
        for user in wanted:
            await admin.ensure_user(user, ("remote",))
        for user in set(await admin.users()) - wanted:
            if user.startswith("remote-"):
                await admin.delete_user(user)

    async def secret(self, name: str) -> dict[str, bytes] | None:
        async with self.client() as client:
            try:
                return dict((await client.get(SECRETS, name, NAMESPACE)).data)
            except NotFound:
                return None

    async def users_file(self) -> str:
        async with self.client() as client:
            return (await client.get(CONFIG_MAPS, REMOTE_USERS, NAMESPACE)).data[users.FILE]

    async def close(self) -> None:
        await self.kubernetes.stop()


@asynccontextmanager
async def reader(files: Mapping[str, bytes], cluster: str, directory: Path) -> AsyncIterator[Connection]:
    """Connects to `cluster` as Cilium's clients do: by the files of a mounted Secret and nothing else."""
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    found = layout.read((directory / cluster).read_bytes())
    here = [directory / Path(name).name for name in (found.trusted_ca_file, found.cert_file, found.key_file)]
    assert all(name.startswith(layout.DIRECTORY) for name in (found.trusted_ca_file, found.cert_file, found.key_file))
    async with Connection(found.endpoints, TlsFiles(*here)) as connection:
        yield connection


def _meta(name: str) -> ObjectMeta:
    return ObjectMeta(name=name, namespace=NAMESPACE)
