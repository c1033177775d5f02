"""Whose turn it is to lead, as pure functions of what was seen and when."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.leadership import (
    LEASE_NAME,
    Observation,
    Timing,
    claimed,
    free_from,
    incarnation,
    observe,
    of_replica,
    released,
    unseen,
)
from clustermesh.kube.leases import LEASES, Lease, LeaseSpec, micro_time
from clustermesh.kube.objects import SYSTEM_NAMESPACE, ObjectMeta

ONE, OTHER = incarnation("one"), incarnation("other")
NOW = 1_764_000_000.25  # Unix seconds


def held(by: str | None = OTHER, *, seconds: int | None = 15, renewed: str = "a", version: str = "1") -> Lease:
    spec = LeaseSpec(holder_identity=by, lease_duration_seconds=seconds, renew_time=renewed)
    return Lease(metadata=ObjectMeta(name=LEASE_NAME, namespace=SYSTEM_NAMESPACE, resource_version=version), spec=spec)


def test_a_lease_ages_from_the_moment_at_which_its_record_was_first_seen() -> None:
    seen = observe(None, held(), 100.0)
    assert free_from(seen, "one", 15) == 115.0
    assert free_from(observe(seen, held(), 110.0), "one", 15) == 115.0
    assert free_from(observe(seen, held(renewed="b"), 110.0), "one", 15) == 125.0


def test_what_is_no_part_of_the_record_renews_nothing() -> None:
    seen = observe(None, held(version="1"), 100.0)
    again = observe(seen, held(version="2"), 110.0)
    assert again.since == 100.0
    assert again.lease is not None and again.lease.metadata.resource_version == "2"


def test_the_times_that_a_holder_writes_elect_nobody() -> None:
    """Its clock may be years off in either direction."""
    for written in ("1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z", "no time at all", ""):
        assert free_from(observe(None, held(renewed=written), 100.0), "one", 15) == 115.0


def test_nothing_ages_while_kubernetes_is_not_seen() -> None:
    seen = unseen(observe(None, held(), 100.0))
    assert free_from(seen, "one", 15) == math.inf
    assert free_from(observe(seen, held(), 200.0), "one", 15) == 215.0


def test_a_lease_without_holder_and_that_of_ones_own_former_process_are_free_at_once() -> None:
    for lease in (None, held(None), held(""), held(ONE), held(incarnation("one"))):
        assert free_from(observe(None, lease, 100.0), "one", 15) == -math.inf
        assert free_from(unseen(observe(None, lease, 100.0)), "one", 15) == -math.inf


def test_a_lease_that_names_no_duration_lasts_as_long_as_our_own() -> None:
    assert free_from(Observation(held(seconds=None), 100.0), "one", 7) == 107.0


@given(st.text())
def test_every_process_of_a_replica_is_told_from_all_others(identity: str) -> None:
    one, two = incarnation(identity), incarnation(identity)
    assert one != two
    assert of_replica(one, identity) and of_replica(two, identity)
    assert not of_replica(one, identity + "_")
    assert not of_replica(one, identity + "x")


def test_claiming_counts_transitions_and_renewing_does_not() -> None:
    first = claimed(None, ONE, 15, NOW)
    assert (first.name, first.metadata.namespace) == (LEASE_NAME, SYSTEM_NAMESPACE)
    assert first.spec.lease_transitions == 0
    assert first.spec.acquire_time == first.spec.renew_time == micro_time(NOW) == "2025-11-24T16:00:00.250000Z"
    renewed = claimed(first, ONE, 15, NOW + 2)
    assert renewed.spec.lease_transitions == 0
    assert (renewed.spec.acquire_time, renewed.spec.renew_time) == (micro_time(NOW), micro_time(NOW + 2))
    taken = claimed(renewed, OTHER, 20, NOW + 30)
    assert taken.spec.lease_transitions == 1
    assert (taken.spec.holder_identity, taken.spec.lease_duration_seconds) == (OTHER, 20)
    assert taken.spec.acquire_time == micro_time(NOW + 30)


def test_what_others_wrote_into_the_lease_survives_us() -> None:
    document = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE_NAME, "namespace": SYSTEM_NAMESPACE, "resourceVersion": "7"},
        "spec": {"holderIdentity": "x", "strategy": "OldestEmulationVersion", "preferredHolder": "y"},
    }
    lease = msgspec.convert(document, LEASES.type)
    after = msgspec.to_builtins(released(claimed(lease, ONE, 15, NOW), NOW))
    assert after["metadata"]["resourceVersion"] == "7"
    assert (after["spec"]["strategy"], after["spec"]["preferredHolder"]) == ("OldestEmulationVersion", "y")
    assert "holderIdentity" not in after["spec"]


def test_a_released_lease_is_free_for_everybody() -> None:
    lease = released(claimed(None, ONE, 15, NOW), NOW)
    assert free_from(observe(None, lease, 100.0), "other", 15) == -math.inf


@pytest.mark.parametrize("values", [(15, 15.0, 2.0), (15, 10.0, 10.0), (15, 10.0, 0.0), (1, 10.0, 2.0)])
def test_a_leader_needs_time_for_several_renewals(values: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="retry period"):
        Timing(*values)
