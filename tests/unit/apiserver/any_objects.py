"""Services and endpoint slices of every shape that their types let through, for hypothesis."""

from typing import Any

import msgspec
from hypothesis import strategies as st

from clustermesh.kube.objects import EndpointSlice, Service

_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
_MAPS = st.none() | st.dictionaries(_TEXT, _TEXT, max_size=3)
_ADDRESSES = st.sampled_from(("10.7.0.1", "10.7.0.2", "fd00:7::1", "FD00:7:0::1", "::ffff:10.7.0.1")) | st.one_of(
    st.ip_addresses().map(str), st.just("fe80::1%eth0"), st.just("example.org"), _TEXT
)
_TRUTH = st.none() | st.booleans()
_PORT_NUMBERS = st.sampled_from((0, 1, 80, 65535, 65536)) | st.integers(-(2**63), 2**63 - 1)
_PROTOCOLS = st.sampled_from(("TCP", "UDP", "SCTP", "DCCP", ""))
_TRUE = st.sampled_from(("true", "True", "false", "")) | _TEXT
_ANNOTATIONS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "service.cilium.io/global": _TRUE,
        "io.cilium/global-service": _TRUE,
        "service.cilium.io/shared": _TRUE,
        "service.cilium.io/affinity": st.sampled_from(("local", "remote", "none")) | _TEXT,
    },
)


def _object(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def _lists(items: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[list[Any] | None]:
    return st.none() | st.lists(items, max_size=most)


def services() -> st.SearchStrategy[Service]:
    """All of one name, mostly global."""
    metadata = st.fixed_dictionaries(
        {
            "name": st.just("web"),
            "namespace": st.just("demo"),
            "annotations": st.just({"service.cilium.io/global": "true"}) | _ANNOTATIONS,
            "labels": _MAPS,
        }
    )
    port = _object(name=_TEXT, protocol=_PROTOCOLS, port=_PORT_NUMBERS)
    spec = _object(
        type=st.sampled_from(("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")) | _TEXT,
        clusterIP=_ADDRESSES | st.just("None"),
        clusterIPs=_lists(_ADDRESSES | st.just("None")),
        ports=_lists(port),
        selector=_MAPS,
    )
    return st.builds(lambda m, s: msgspec.convert({"metadata": m, "spec": s}, Service), metadata, spec)


def slices() -> st.SearchStrategy[EndpointSlice]:
    """Mostly of that Service."""
    labels = st.just({"kubernetes.io/service-name": "web"}) | _MAPS
    metadata = st.fixed_dictionaries(
        {
            "name": st.sampled_from(("web-1", "web-2", "web-3")),
            "namespace": st.sampled_from(("demo", "shop")),
            "labels": labels,
            "annotations": _MAPS,
        }
    )
    zones = _object(forZones=_lists(_object(name=_TEXT), 8))
    conditions = _object(ready=_TRUTH, serving=_TRUTH, terminating=_TRUTH)
    endpoint = _object(
        addresses=_lists(_ADDRESSES),
        conditions=st.none() | conditions,
        hostname=st.none() | _TEXT,
        nodeName=st.none() | _TEXT,
        zone=st.none() | _TEXT,
        hints=st.none() | zones,
        deprecatedTopology=_MAPS,
    )
    port = _object(
        name=st.none() | _TEXT,
        protocol=st.none() | _PROTOCOLS,
        port=st.none() | _PORT_NUMBERS,
    )
    body = _object(
        addressType=st.sampled_from(("IPv4", "IPv6", "FQDN")) | _TEXT, endpoints=_lists(endpoint), ports=_lists(port)
    )
    return st.builds(lambda m, b: msgspec.convert({"metadata": m, **b}, EndpointSlice), metadata, body)
