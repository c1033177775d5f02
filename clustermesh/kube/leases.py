"""Leases of coordination.k8s.io/v1: who of several may act, and since when."""

from datetime import UTC, datetime

import msgspec

from clustermesh.kube.objects import KubeObject, Resource


class LeaseSpec(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """Complete, so that what others have set survives a replacement. Times are texts as `micro_time` makes them."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None
    strategy: str | None = None
    preferred_holder: str | None = None


class Lease(KubeObject, frozen=True, gc=False, rename="camel", omit_defaults=True):
    spec: LeaseSpec = LeaseSpec()


LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", True, Lease)


def micro_time(seconds: float) -> str:
    """Unix seconds as Kubernetes' MicroTime."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
