"""Services × clusters → which backends stand behind which frontend.

The own cluster's Service decides whether and how: without it nothing of a peer is programmed. A frontend's port finds
a backend's port by name, so numbers may differ from cluster to cluster.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from clustermesh.wire.errors import RecordError
from clustermesh.wire.private import LocalService
from clustermesh.wire.records import Port, PortMaps
from nodeagent.datapath.abi import BackendValue, ServiceKey, pack_address

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_LAST_PORT = 65535
_LOCAL_FIRST, _REMOTE_FIRST = "local", "remote"


class Offer(NamedTuple):
    """What one cluster has behind a service."""

    cluster_id: int
    backends: PortMaps


class Compiled(NamedTuple):
    """Frontend (key of its master entry) → values of its backends, in slot order."""

    frontends: Mapping[bytes, tuple[bytes, ...]]
    conflicts: tuple[str, ...]  # backend addresses that a second cluster announces and that are left out there


def compile_service(
    local: LocalService,
    own: Offer,
    remote: Iterable[Offer],
    recall: Callable[[bytes], Iterable[bytes]],
) -> Compiled:
    """`remote` comes in order of cluster id.

    `recall` tells of a frontend which backends the kernel has from before this agent started, of clusters whose
    services are not read yet; they count like what those clusters announce.
    """
    conflicts: dict[str, None] = {}
    taken = set(own.backends)
    offers: list[Offer] = []
    for offer in remote:
        clash = taken & offer.backends.keys()
        conflicts.update(dict.fromkeys(sorted(clash)))
        taken |= offer.backends.keys()
        offers.append(Offer(offer.cluster_id, {ip: p for ip, p in offer.backends.items() if ip not in clash}))

    frontends: dict[bytes, tuple[bytes, ...]] = {}
    for ip, ports in local.frontends.items():
        for name, port in ports.items():
            protocol = PROTOCOLS.get(port.protocol)
            if protocol is None:
                continue
            key = ServiceKey(ip, port.port, protocol).pack()
            near = _usable(ip, name, port, own)
            far = {value for offer in offers for value in _usable(ip, name, port, offer)}
            far.update(recall(key))
            frontends[key] = tuple(sorted(_preferred(local.affinity, near, far)))
    return Compiled(frontends, tuple(conflicts))


def check_ports(ports_by_address: PortMaps) -> None:
    """RecordError when an address or a port cannot stand in a kernel map."""
    for address, ports in ports_by_address.items():
        try:
            _, family = pack_address(address)
        except (OSError, ValueError):
            family = 0
        if not family:
            raise RecordError(f"{address!r} is no address")
        for port in ports.values():
            if not 0 <= port.port <= _LAST_PORT:
                raise RecordError(f"port {port.port} of {address} is out of range")


def _usable(frontend_ip: str, name: str, port: Port, offer: Offer) -> set[bytes]:
    family = ":" in frontend_ip
    return {
        BackendValue(ip, match.port, PROTOCOLS[match.protocol], offer.cluster_id).pack()
        for ip, ports in offer.backends.items()
        if (":" in ip) == family and (match := ports.get(name)) is not None and match.protocol == port.protocol
    }


def _preferred(affinity: str, near: set[bytes], far: set[bytes]) -> set[bytes]:
    if affinity == _LOCAL_FIRST:
        return near or far
    if affinity == _REMOTE_FIRST:
        return far or near
    return near | far
