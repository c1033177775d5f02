"""Endpoint slices of a peer make the backends that its service records would give."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.wire.endpoint_slices import ClusterEndpointSlice, SliceEndpoint, SlicePort
from clustermesh.wire.records import Port, PortMaps
from nodeagent.compile.slices import backends_of, merge
from nodeagent.tables.slices import Slices
from tests.unit.nodeagent.records_of import slice_of

HTTP = {"http": Port("TCP", 80)}


@pytest.mark.parametrize(
    ("conditions", "counts"),
    [
        ({}, True),
        ({"ready": True}, True),
        ({"ready": None, "serving": False}, True),
        ({"ready": False}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
    ],
)
def test_ready_alone_makes_a_backend(conditions: dict[str, bool], counts: bool) -> None:
    endpoint = SliceEndpoint(addresses=("10.2.1.5", "10.2.1.6"), **conditions)  # type: ignore[arg-type]
    record = msgspec.structs.replace(slice_of("web"), endpoints=(endpoint,))
    assert backends_of(record) == ({"10.2.1.5": HTTP, "10.2.1.6": HTTP} if counts else {})


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ((), {}),
        ((SlicePort(port=80),), {"": Port("TCP", 80)}),
        ((SlicePort(name="dns", protocol="UDP", port=53),), {"dns": Port("UDP", 53)}),
        ((SlicePort(name="every"),), {}),
        (
            (SlicePort(name="a", port=1), SlicePort(name="b", protocol="SCTP", port=1)),
            {"a": Port("TCP", 1), "b": Port("SCTP", 1)},
        ),
    ],
)
def test_ports_are_known_by_name(ports: tuple[SlicePort, ...], expected: dict[str, Port]) -> None:
    assert backends_of(msgspec.structs.replace(slice_of("web", "10.2.1.5"), ports=ports)) == {"10.2.1.5": expected}


def test_slices_of_one_service_add_up_also_for_one_address() -> None:
    assert merge([{"a": {"x": Port("TCP", 1)}}, {"a": {"y": Port("TCP", 2)}, "fd00::1": {}}]) == {
        "a": {"x": Port("TCP", 1), "y": Port("TCP", 2)},
        "fd00::1": {},
    }


def test_a_change_of_a_slice_tells_of_its_service_alone() -> None:
    slices = Slices()
    assert slices.put("shop/web-1", slice_of("web", "10.2.1.5")) == {"shop/web": {"10.2.1.5": HTTP}}
    assert slices.put("shop/api-1", slice_of("api", "10.2.1.9")) == {"shop/api": {"10.2.1.9": HTTP}}
    both = {"10.2.1.5": HTTP, "fd00::5": HTTP}
    assert slices.put("shop/web-2", slice_of("web", "fd00::5", number=2)) == {"shop/web": both}
    assert slices.put("shop/web-1", slice_of("web", not_ready=("10.2.1.5",))) == {"shop/web": {"fd00::5": HTTP}}
    assert slices.put("shop/web-2", None) == {"shop/web": {}}
    assert slices.put("shop/web-1", None) == {"shop/web": None}
    assert slices.put("shop/web-1", None) == {}
    assert len(slices) == 1


def test_a_slice_that_changes_its_service_or_has_none_is_taken_from_the_old_one() -> None:
    slices = Slices()
    slices.put("shop/web-1", slice_of("web", "10.2.1.5"))
    moved = msgspec.structs.replace(slice_of("web", "10.2.1.5"), labels={"kubernetes.io/service-name": "api"})
    assert slices.put("shop/web-1", moved) == {"shop/web": None, "shop/api": {"10.2.1.5": HTTP}}
    orphan = msgspec.structs.replace(moved, labels={})
    assert slices.put("shop/web-1", orphan) == {"shop/api": None}
    assert len(slices) == 1


names = st.sampled_from(["a", "b", "c", "d"])
contents = st.none() | st.builds(
    lambda service, backends: slice_of(service, *(f"10.2.1.{n}" for n in sorted(backends))),
    st.sampled_from(["web", "api"]),
    st.sets(st.integers(1, 3)),
)


@given(st.lists(st.tuples(names, contents), max_size=20))
def test_changes_one_by_one_lead_where_all_slices_at_once_lead(
    steps: list[tuple[str, ClusterEndpointSlice | None]],
) -> None:
    slices, told, final = Slices(), dict[str, PortMaps | None](), dict[str, ClusterEndpointSlice]()
    for name, record in steps:
        told |= slices.put(name, record)
        final.pop(name, None)
        if record is not None:
            final[name] = record
    fresh, expected = Slices(), dict[str, PortMaps | None]()
    for name, record in final.items():
        expected |= fresh.put(name, record)
    assert {service: backends for service, backends in told.items() if backends is not None} == expected
    assert len(slices) == len(final)
