"""Records → entries, as tables of (record, entry)."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.wire import records
from clustermesh.wire.errors import RecordError
from clustermesh.wire.private import LocalService
from clustermesh.wire.records import Node, Port
from nodeagent.compile.ipcache import Addresses, address_key
from nodeagent.compile.nodes import compile_node
from nodeagent.compile.services import Offer, compile_service
from nodeagent.datapath.abi import (
    AddressKey,
    BackendValue,
    EndpointFlag,
    EndpointValue,
    IpcacheFlag,
    IpcacheKey,
    IpcacheValue,
    NodeValue,
    ServiceKey,
)
from tests.unit.nodeagent.records_of import HERE, address, local, node, ports
from tests.unit.wire.test_golden import EXPORTED

REMOTE = IpcacheFlag.REMOTE_CLUSTER


@pytest.mark.parametrize(
    ("tail", "key"),
    [
        ("10.2.3.4", IpcacheKey("10.2.3.4", 32)),
        ("10.2.0.0/16", IpcacheKey("10.2.0.0", 16)),
        ("fd00::2", IpcacheKey("fd00::2", 128)),
        ("fd00::/64", IpcacheKey("fd00::", 64)),
    ],
)
def test_the_key_of_an_address(tail: str, key: IpcacheKey) -> None:
    assert address_key(tail) == key.pack()


@pytest.mark.parametrize("tail", ["", "10.2.3", "10.2.3.4/33", "10.2.3.4/", "10.2.3.4/-1", "/24", "pod", "1.2.3.4/٣"])
def test_what_is_no_address_has_no_key(tail: str) -> None:
    with pytest.raises(RecordError):
        address_key(tail)


@given(st.text(max_size=40))
def test_any_text_has_a_key_or_is_refused(tail: str) -> None:
    with suppress(RecordError):
        assert len(address_key(tail)) == 24


@pytest.mark.parametrize(
    ("foreign", "identity", "host", "entry"),
    [
        (True, 131079, "192.0.2.1", IpcacheValue(131079, "192.0.2.1", 2, REMOTE)),
        (True, 131079, "", IpcacheValue(131079, "", 2, REMOTE)),
        (True, 131079, "fd00::9", IpcacheValue(131079, "", 2, REMOTE)),  # the tunnel's outer packets are IPv4
        (True, 1, "192.0.2.1", IpcacheValue(6, "192.0.2.1", 2, REMOTE)),
        (True, 4, "192.0.2.1", IpcacheValue(4, "192.0.2.1", 2, REMOTE)),
        (True, 7, "192.0.2.1", IpcacheValue(7, "192.0.2.1", 2, REMOTE)),
        (True, 104, "192.0.2.1", IpcacheValue(104, "192.0.2.1", 2, REMOTE)),
        (True, 0, "192.0.2.1", None),
        (False, 65543, "192.0.2.1", IpcacheValue(65543, "", 2)),
    ],
)
def test_who_is_behind_an_address(foreign: bool, identity: int, host: str, entry: IpcacheValue | None) -> None:
    value = Addresses(2, foreign=foreign).value(address("10.2.0.1", host, identity))
    assert value == (None if entry is None else entry.pack())


@pytest.mark.parametrize(("identity", "host"), [(131079, "nowhere"), (-1, "192.0.2.1"), (1 << 32, "192.0.2.1")])
def test_numbers_and_hosts_out_of_range_are_refused(identity: int, host: str) -> None:
    with pytest.raises(RecordError):
        Addresses(2, foreign=True).value(address("10.2.0.1", host, identity))


def test_a_peers_node_is_an_outer_address_a_remote_node_and_a_way_to_its_pods() -> None:
    entries = compile_node(HERE, 2, node("green", 2, "green-1", "192.0.2.1", "10.2.1.0/24"))
    assert entries.outer == {AddressKey("192.0.2.1").pack(): NodeValue(2).pack()}
    assert entries.ipcache == {
        IpcacheKey("192.0.2.1", 32).pack(): IpcacheValue(6, "", 2, REMOTE | IpcacheFlag.NODE).pack(),
        IpcacheKey("10.2.1.0", 24).pack(): IpcacheValue(2, "192.0.2.1", 2, REMOTE | IpcacheFlag.CIDR).pack(),
    }
    assert entries.routes == {"10.2.1.0/24": "192.0.2.1"}
    assert entries.probe == "192.0.2.1"
    assert not entries.endpoints


def test_a_cilium_node_has_an_entry_for_each_of_its_addresses_and_ranges() -> None:
    raw = EXPORTED["cilium/state/nodes/v1/cluster1/node-a"].encode()
    entries = compile_node(HERE, 2, records.decode(Node, raw))
    tunnel = "172.18.0.11"
    expected = {
        IpcacheKey.host(ip): IpcacheValue(6, "", 2, REMOTE | IpcacheFlag.NODE)
        for ip in ("172.18.0.11", "fc00:c111::b", "203.0.113.11")
    }
    for identity, inner in {
        6: ("10.1.0.1", "fd00:10:1::1"),  # the node among its pods
        4: ("10.1.0.250", "fd00:10:1::fa"),  # health
        8: ("10.1.0.251", "fd00:10:1::fb"),  # ingress
    }.items():
        expected |= {IpcacheKey.host(ip): IpcacheValue(identity, tunnel, 2, REMOTE) for ip in inner}
    for ip, length in (("10.1.0.0", 24), ("10.1.100.0", 24), ("fd00:10:1::", 96)):
        expected[IpcacheKey(ip, length)] = IpcacheValue(2, tunnel, 2, REMOTE | IpcacheFlag.CIDR)
    assert entries.ipcache == {key.pack(): value.pack() for key, value in expected.items()}
    assert entries.routes == dict.fromkeys(("10.1.0.0/24", "10.1.100.0/24", "fd00:10:1::/96"), tunnel)


def test_this_node_is_the_host_and_its_neighbour_is_not() -> None:
    here = compile_node(HERE, 1, node("red", 1, "red-1", "192.0.2.9", "10.1.1.0/24"))
    assert here.ipcache == {IpcacheKey("192.0.2.9", 32).pack(): IpcacheValue(1, "", 1, IpcacheFlag.NODE).pack()}
    assert here.endpoints == {AddressKey("192.0.2.9").pack(): EndpointValue(0, 1, EndpointFlag.HOST).pack()}
    assert not here.routes
    assert not here.outer
    other = compile_node(HERE, 1, node("red", 1, "red-2", "192.0.2.8"))
    assert other.ipcache == {IpcacheKey("192.0.2.8", 32).pack(): IpcacheValue(6, "", 1, IpcacheFlag.NODE).pack()}
    assert not other.endpoints


VIP = ServiceKey("10.96.0.1", 80, 6).pack()


def backend(number: int, port: int, cluster_id: int) -> bytes:
    return BackendValue(f"10.0.0.{number}", port, 6, cluster_id).pack()


@pytest.mark.parametrize(
    ("affinity", "own", "theirs", "expected"),
    [
        ("none", ports(a1=80), ports(a2=81), {backend(1, 80, 1), backend(2, 81, 2)}),
        ("local", ports(a1=80), ports(a2=81), {backend(1, 80, 1)}),
        ("local", {}, ports(a2=81), {backend(2, 81, 2)}),
        ("remote", ports(a1=80), ports(a2=81), {backend(2, 81, 2)}),
        ("remote", ports(a1=80), {}, {backend(1, 80, 1)}),
        ("none", {}, {}, set()),
    ],
)
def test_affinity_chooses_among_local_and_remote_backends(affinity, own, theirs, expected) -> None:  # type: ignore[no-untyped-def]
    compiled = compile_service(local("web", own, affinity=affinity), Offer(1, own), [Offer(2, theirs)], lambda _: ())
    assert {key: set(values) for key, values in compiled.frontends.items()} == {VIP: expected}


def test_a_backend_that_another_cluster_announced_first_is_left_out_and_named() -> None:
    own, green, blue = ports(a1=80), ports(a1=81, a2=81), ports(a2=82)
    compiled = compile_service(local("web", own), Offer(1, own), [Offer(2, green), Offer(3, blue)], lambda _: ())
    assert set(compiled.frontends[VIP]) == {backend(1, 80, 1), backend(2, 81, 2)}
    assert compiled.conflicts == ("10.0.0.1", "10.0.0.2")


def test_ports_meet_by_name_and_protocol_and_families_do_not_mix() -> None:
    service = LocalService(
        namespace="shop",
        name="dns",
        frontends={"10.96.0.1": {"dns": Port("UDP", 53), "web": Port("TCP", 80)}},
        backends={
            "10.0.0.1": {"dns": Port("UDP", 5353), "web": Port("UDP", 8080)},
            "10.0.0.2": {"other": Port("TCP", 80)},
            "fd00::1": {"dns": Port("UDP", 53)},
        },
    )
    compiled = compile_service(service, Offer(1, service.backends), [], lambda _: ())
    assert compiled.frontends == {
        ServiceKey("10.96.0.1", 53, 17).pack(): (BackendValue("10.0.0.1", 5353, 17, 1).pack(),),
        VIP: (),
    }


def test_backends_from_before_count_for_clusters_that_are_not_read_yet() -> None:
    old = backend(7, 80, 3)
    compiled = compile_service(local("web", {}), Offer(1, {}), [], {VIP: [old]}.__getitem__)
    assert compiled.frontends == {VIP: (old,)}
