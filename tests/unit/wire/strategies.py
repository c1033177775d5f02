"""Records as Cilium may write them, and what may have become of their bytes on the way."""

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from msgspec import UNSET

from clustermesh.wire import endpoint_slices, labels, private, records

TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
NAME = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=6)
U8, U16, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
ADDRESS = st.ip_addresses().map(str)
PROTOCOL = st.sampled_from(["TCP", "UDP", "SCTP"])


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.just(UNSET) | strategy


def maps(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[Any]:
    return st.dictionaries(keys, values, min_size=least, max_size=3)


def tuples(items: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[Any]:
    return st.lists(items, min_size=least, max_size=3).map(tuple)


CIDR = st.builds(
    lambda address, length: records.Cidr.of(
        ipaddress.ip_network(f"{address}/{length if address.version == 6 else length % 33}", strict=False)
    ),
    st.ip_addresses(),
    st.integers(0, 128),
)
CLUSTER_CONFIGS = st.builds(
    records.ClusterConfig,
    U32,
    st.builds(
        records.Capabilities,
        synced_canaries=st.booleans(),
        cached=st.booleans(),
        max_connected_clusters=U32,
        service_exports_enabled=optional(st.booleans()),
        endpoint_slices_export_mode=st.sampled_from(["", records.SERVICES_AND_SLICES, records.SLICES_ONLY]),
    ),
)
NODES = st.builds(
    records.Node,
    name=TEXT,
    cluster=TEXT,
    ip_addresses=st.none() | tuples(st.builds(records.NodeAddress, TEXT, ADDRESS)),
    ipv4_alloc_cidr=st.none() | CIDR,
    ipv4_secondary_alloc_cidrs=st.none() | tuples(CIDR),
    ipv6_alloc_cidr=st.none() | CIDR,
    ipv6_secondary_alloc_cidrs=st.none() | tuples(CIDR),
    ipv4_health_ip=TEXT,
    ipv6_health_ip=TEXT,
    ipv4_ingress_ip=TEXT,
    ipv6_ingress_ip=TEXT,
    cluster_id=U32,
    source=TEXT,
    encryption_key=U8,
    labels=st.none() | maps(TEXT, TEXT),
    annotations=st.none() | maps(TEXT, TEXT),
    node_identity=U32,
    wireguard_pub_key=TEXT,
    boot_id=TEXT,
)
ADDRESSES = st.builds(
    records.AddressRecord,
    ip=TEXT,
    mask=st.none() | TEXT,
    host_ip=TEXT,
    identity=U32,
    key=U8,
    metadata=TEXT,
    namespace=optional(TEXT),
    pod_name=optional(TEXT),
    service_account=optional(TEXT),
    named_ports=optional(tuples(st.builds(records.NamedPort, TEXT, U16, PROTOCOL), least=1)),
)
PORT_MAPS = maps(ADDRESS, maps(TEXT, st.builds(records.Port, PROTOCOL, U16)))
SERVICES = st.builds(
    records.ServiceRecord,
    cluster=TEXT,
    namespace=TEXT,
    name=TEXT,
    frontends=PORT_MAPS,
    backends=PORT_MAPS,
    hostnames=optional(maps(ADDRESS, TEXT)),
    zones=optional(
        maps(
            ADDRESS,
            st.builds(records.BackendZone, TEXT, st.none() | tuples(st.builds(records.ForZone, TEXT))),
            least=1,
        )
    ),
    labels=maps(TEXT, TEXT),
    selector=maps(TEXT, TEXT),
    include_external=st.booleans(),
    shared=st.booleans(),
    cluster_id=U32,
)
SERVICE_EXPORTS = st.builds(
    records.ServiceExport,
    cluster=NAME,
    name=NAME,
    namespace=NAME,
    annotations=optional(maps(TEXT, TEXT, least=1)),
    labels=optional(maps(TEXT, TEXT, least=1)),
    export_creation_timestamp=st.datetimes()
    .map(lambda at: at.replace(microsecond=0).isoformat() + "Z")
    .filter(lambda text: text > "0001-01-01T00:00:00Z"),
    ports=tuples(st.builds(records.ExportedPort, name=TEXT, protocol=PROTOCOL, app_protocol=optional(TEXT), port=U16)),
    type=st.sampled_from([records.CLUSTER_SET_IP, records.HEADLESS]),
    session_affinity=st.sampled_from(["ClientIP", "None", ""]),
    session_affinity_config=optional(
        st.builds(records.SessionAffinityConfig, optional(st.builds(records.ClientIpConfig, optional(U32))))
    ),
    ip_families=optional(tuples(st.sampled_from(["IPv4", "IPv6"]), least=1)),
    internal_traffic_policy=optional(st.sampled_from(["Cluster", "Local"])),
    traffic_distribution=optional(TEXT),
)
IDENTITIES = maps(
    st.builds("{}:{}".format, st.sampled_from(["k8s", "any", "cidr"]), NAME.filter(lambda n: not set("=;:") & set(n))),
    st.text(st.characters(codec="utf-8", exclude_characters=";"), max_size=6),
    least=1,
)


def _slices(family: str, version: int) -> st.SearchStrategy[endpoint_slices.ClusterEndpointSlice]:
    maybe = st.none() | st.booleans()
    text = st.none() | TEXT
    return st.builds(
        endpoint_slices.ClusterEndpointSlice,
        cluster=NAME,
        cluster_id=U32,
        namespace=NAME,
        name=NAME,
        address_type=st.just(family),
        labels=maps(TEXT, TEXT),
        annotations=maps(TEXT, TEXT),
        endpoints=tuples(
            st.builds(
                endpoint_slices.SliceEndpoint,
                addresses=tuples(st.ip_addresses(v=version).map(str)),  # type: ignore[arg-type]
                ready=maybe,
                serving=maybe,
                terminating=maybe,
                hostname=text,
                node_name=text,
                zone=text,
                for_zones=tuples(TEXT),
                deprecated_topology=maps(TEXT, TEXT),
            )
        ),
        ports=tuples(
            st.builds(endpoint_slices.SlicePort, name=text, protocol=text, port=st.none() | U16, app_protocol=text)
        ),
    )


ENDPOINT_SLICES = _slices("IPv4", 4) | _slices("IPv6", 6)

LOCAL_SERVICES = st.builds(
    private.LocalService,
    namespace=TEXT,
    name=TEXT,
    frontends=PORT_MAPS,
    backends=PORT_MAPS,
    is_global=st.booleans(),
    shared=st.booleans(),
    affinity=st.sampled_from(["none", "local", "remote"]),
)
_TIME = st.floats(0, 2**40)
AGENT_REPORTS = st.builds(
    private.AgentReport,
    node=TEXT,
    version=TEXT,
    started=_TIME,
    updated=_TIME,
    ready=st.booleans(),
    mtu=U16,
    attach=TEXT,
    endpoints=U16,
    peers=maps(
        TEXT,
        st.builds(
            private.PeerReport,
            ready=st.booleans(),
            reason=TEXT,
            synced=tuples(TEXT),
            records=maps(TEXT, U32),
            revision=U32,
            last_event=_TIME,
            probe=st.builds(private.ProbeReport, U16, U16, U32),
        ),
    ),
    undecodable=tuples(TEXT),
)
PEER_SETTINGS = st.builds(
    private.PeerSettings, implementation=st.sampled_from(["clustermesh", "cilium"]) | TEXT, strict=st.booleans()
)
PEER_LISTS = st.builds(private.PeerList, peers=maps(TEXT, U32))

# Every kind of value that is JSON, with an example of each field.
JSON_RECORDS: Mapping[type, st.SearchStrategy[Any]] = {
    records.ClusterConfig: CLUSTER_CONFIGS,
    records.Node: NODES,
    records.AddressRecord: ADDRESSES,
    records.ServiceRecord: SERVICES,
    records.ServiceExport: SERVICE_EXPORTS,
    private.LocalService: LOCAL_SERVICES,
    private.AgentReport: AGENT_REPORTS,
    private.PeerSettings: PEER_SETTINGS,
    private.PeerList: PEER_LISTS,
}


def encode(record: Any) -> bytes:
    """The bytes of any record."""
    if isinstance(record, private.PrivateRecord):
        return private.encode(record)
    return records.encode(record)


# Wrong values for any field, and ways to damage bytes.

_LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**400, 10**401)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.sampled_from(["::", "10.0.0.0", "256.1.1.1", "fe80::1%eth0", "////AA==", "true", "9" * 30])
)
JSON = st.recursive(
    _LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def misshaped(draw: st.DrawFn, raw: bytes) -> bytes:
    """JSON in which one value, somewhere, is replaced by any other, taken out, or given twice."""
    tree = json.loads(raw)
    places: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo:
        one = todo.pop()
        items = list(one.items() if isinstance(one, dict) else enumerate(one))
        places += [(one, key) for key, _ in items]
        todo += [inner for _, inner in items if isinstance(inner, dict | list)]
    if not places:
        return raw
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "remove", "rename"])):
        case "replace":
            holder[key] = draw(JSON)
        case "remove":
            del holder[key]
        case "rename" if isinstance(holder, dict):
            holder[draw(st.text(max_size=4))] = holder.pop(key)
    return json.dumps(tree, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """Bytes cut off, overwritten or put in."""
    raw = raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=3)) + raw[at + draw(st.integers(0, 3)) :]
    return raw


def labels_of(identity: Mapping[str, str]) -> bytes:
    return labels.encode(identity).encode()
