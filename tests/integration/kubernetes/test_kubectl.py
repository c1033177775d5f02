"""What a user does with kubectl works on the stand-in."""

import asyncio
import json

import pytest

from tests.integration.kubernetes.cluster import Cluster

pytestmark = pytest.mark.integration

ECHO = """
apiVersion: v1
kind: Service
metadata: {name: echo, annotations: {service.cilium.io/global: "true"}}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec: {containers: [{name: echo, image: clustermesh/echo, env: [{name: A, value: a}]}]}
"""

PEERS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: peers.example.io}
spec:
  group: example.io
  scope: Cluster
  names: {plural: peers, kind: Peer, shortNames: [pe]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties: {size: {type: integer, minimum: 1}, strict: {type: boolean, default: true}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""


async def test_apply_creates_then_changes_nothing_then_only_the_difference(cluster: Cluster) -> None:
    assert await cluster.kubectl("apply", "-f-", stdin=ECHO) == "service/echo created\ndeployment.apps/echo created\n"
    assert (
        await cluster.kubectl("apply", "-f-", stdin=ECHO) == "service/echo unchanged\ndeployment.apps/echo unchanged\n"
    )

    changed = ECHO.replace("{name: A, value: a}", "{name: B, value: b}")
    assert (
        await cluster.kubectl("apply", "-f-", stdin=changed)
        == "service/echo unchanged\ndeployment.apps/echo configured\n"
    )
    deployment = json.loads(await cluster.kubectl("get", "deploy", "echo", "-ojson"))
    assert deployment["metadata"]["generation"] == 2
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "B", "value": "b"}]


async def test_annotate_label_scale_and_delete(cluster: Cluster) -> None:
    await cluster.kubectl("apply", "-f-", stdin=ECHO)
    await cluster.kubectl("annotate", "service", "echo", "service.cilium.io/shared=false")
    await cluster.kubectl("label", "service", "echo", "tier=front")
    await cluster.kubectl("scale", "deployment", "echo", "--replicas=0")

    service = json.loads(await cluster.kubectl("get", "service", "echo", "-ojson"))
    assert service["metadata"]["annotations"]["service.cilium.io/shared"] == "false"
    assert service["metadata"]["labels"] == {"tier": "front"}
    assert "0/0" in await cluster.kubectl("get", "deployment", "echo")
    assert "app=echo" in await cluster.kubectl("describe", "service,deployment", "echo")
    assert await cluster.kubectl("get", "svc", "-l", "tier in (front),!other", "-oname") == "service/echo\n"

    await cluster.kubectl("delete", "-f-", stdin=ECHO)
    assert await cluster.kubectl("get", "service,deployment", "-oname") == ""


async def test_each_kind_of_patch_has_its_own_meaning_for_lists(cluster: Cluster) -> None:
    await cluster.kubectl("apply", "-f-", stdin=ECHO)

    async def names() -> list[str]:
        deployment = json.loads(await cluster.kubectl("get", "deploy", "echo", "-ojson"))
        return [container["name"] for container in deployment["spec"]["template"]["spec"]["containers"]]

    second = {"spec": {"template": {"spec": {"containers": [{"name": "second", "image": "x"}]}}}}
    await cluster.kubectl("patch", "deploy", "echo", "--type=strategic", "-p", json.dumps(second))
    assert sorted(await names()) == ["echo", "second"]
    remove = [{"op": "remove", "path": "/spec/template/spec/containers/0"}]
    await cluster.kubectl("patch", "deploy", "echo", "--type=json", "-p", json.dumps(remove))
    assert len(await names()) == 1
    third = {"spec": {"template": {"spec": {"containers": [{"name": "third", "image": "x"}]}}}}
    await cluster.kubectl("patch", "deploy", "echo", "--type=merge", "-p", json.dumps(third))
    assert await names() == ["third"]


async def test_get_watch_prints_what_comes_changes_and_goes(cluster: Cluster) -> None:
    process = await cluster.spawn_kubectl("get", "configmaps", "--watch", "--output-watch-events")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            await cluster.kubectl("create", "configmap", "one", "--from-literal=a=b")
            assert (await process.stdout.readline()).split()[:3] == [b"EVENT", b"NAME", b"DATA"]
            assert (await process.stdout.readline()).split()[:3] == [b"ADDED", b"one", b"1"]
            await cluster.kubectl("patch", "configmap", "one", "-p", '{"data":{"c":"d"}}')
            assert (await process.stdout.readline()).split()[:3] == [b"MODIFIED", b"one", b"2"]
            await cluster.kubectl("delete", "configmap", "one")
            assert (await process.stdout.readline()).split()[:3] == [b"DELETED", b"one", b"2"]
    finally:
        process.kill()
        await process.communicate()


async def test_a_definition_makes_a_kind_with_columns_status_and_scale(cluster: Cluster) -> None:
    await cluster.kubectl("apply", "-f-", stdin=PEERS)
    await cluster.kubectl("wait", "--for=condition=Established", "crd/peers.example.io", "--timeout=5s")
    peer = "{apiVersion: example.io/v1, kind: Peer, metadata: {name: green}, spec: {size: 3}, status: {x: 1}}"
    await cluster.kubectl("apply", "-f-", stdin=peer)
    ready = '{"status": {"conditions": [{"type": "Ready", "status": "True"}]}}'
    await cluster.kubectl("patch", "pe", "green", "--subresource=status", "--type=merge", "-p", ready)
    await cluster.kubectl("scale", "pe/green", "--replicas=5")

    lines = (await cluster.kubectl("get", "pe")).splitlines()
    assert [line.split() for line in lines] == [["NAME", "SIZE", "READY"], ["green", "5", "True"]]
    stored = json.loads(await cluster.kubectl("get", "pe", "green", "-ojson"))
    assert stored["spec"] == {"size": 5, "strict": True}
    assert stored["metadata"]["generation"] == 2
    assert list(stored["status"]) == ["conditions"]

    status, _, error = await cluster.try_kubectl("patch", "pe", "green", "--type=merge", "-p", '{"spec":{"size":0}}')
    assert status == 1
    assert "spec.size in body should be greater than or equal to 1" in error
    status, _, error = await cluster.try_kubectl("apply", "-f-", stdin=peer.replace("size: 3", "size: 3, bogus: 1"))
    assert status == 1
    assert 'unknown field "spec.bogus"' in error

    await cluster.kubectl("delete", "crd", "peers.example.io")
    status, _, _ = await cluster.try_kubectl("get", "pe")
    assert status == 1


async def test_what_kubectl_create_sends_as_protobuf_is_understood(cluster: Cluster) -> None:
    await cluster.kubectl("create", "namespace", "shop")
    await cluster.kubectl("-nshop", "create", "configmap", "settings", "--from-literal=a=b")
    await cluster.kubectl("-nshop", "create", "secret", "generic", "key", "--from-literal=k=v")
    await cluster.kubectl(
        "-nshop", "create", "deployment", "web", "--image=clustermesh/echo", "--port=80", "--replicas=2"
    )

    secret = json.loads(await cluster.kubectl("-nshop", "get", "secret", "key", "-ojson"))
    assert secret["data"] == {"k": "dg=="}
    web = json.loads(await cluster.kubectl("-nshop", "get", "deployment", "web", "-ojson"))
    assert web["spec"]["replicas"] == 2
    assert web["spec"]["template"]["spec"]["containers"][0]["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert await cluster.kubectl("auth", "can-i", "delete", "nodes") == "yes\n"


async def test_server_side_apply_removes_what_its_manager_no_longer_wants(cluster: Cluster) -> None:
    settings = "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {a: '1', b: '2'}}"
    await cluster.kubectl("apply", "--server-side", "-f-", stdin=settings)
    await cluster.kubectl("patch", "configmap", "settings", "--type=merge", "-p", '{"data":{"other":"3"}}')
    await cluster.kubectl("apply", "--server-side", "-f-", stdin=settings.replace("b: '2'", "c: '4'"))

    stored = json.loads(await cluster.kubectl("get", "configmap", "settings", "-ojson"))
    assert stored["data"] == {"a": "1", "c": "4", "other": "3"}


async def test_a_deleted_namespace_takes_everything_with_it(cluster: Cluster) -> None:
    await cluster.kubectl("create", "namespace", "shop")
    await cluster.kubectl("apply", "-nshop", "-f-", stdin=ECHO)
    await cluster.kubectl("delete", "namespace", "shop", "--timeout=20s")

    assert await cluster.kubectl("get", "deployments,services", "-A", "-oname") == ""
    status, _, error = await cluster.try_kubectl("apply", "-nshop", "-f-", stdin=ECHO)
    assert status == 1
    assert 'namespaces "shop" not found' in error
