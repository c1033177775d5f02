"""Cluster addresses and node ports of Services."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, ip_address

from .errors import Cause, Object, invalid

NODE_PORTS = range(30000, 32768)
_RESERVED = 10  # the first addresses are kept for well-known services


def complete(service: Object, others: Iterable[Object], network: IPv4Network) -> None:
    """Give `service` its clusterIP and node ports, in place; raises 422 for those that are taken or outside the range.

    The same name gets the same address again when it is free, so that a service that comes back is found where it was.
    """
    spec, metadata = service["spec"], service["metadata"]
    if spec["type"] == "ExternalName":
        return
    taken, ports = _in_use(others, metadata["uid"])
    given = spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or ()), "")
    seed = zlib.crc32(f"{metadata.get('namespace')}/{metadata['name']}".encode())
    if not given:
        given = _free_address(network, taken, seed)
    elif given != "None":
        _check_address(service, given, taken, network)
    spec["clusterIP"], spec["clusterIPs"] = given, [given]
    if spec["type"] in ("NodePort", "LoadBalancer"):
        for port in spec.get("ports") or []:
            _give_node_port(service, port, ports, seed)


def _in_use(services: Iterable[Object], uid: str) -> tuple[set[str], set[int]]:
    specs = [service["spec"] for service in services if service["metadata"]["uid"] != uid]
    ports = {port["nodePort"] for spec in specs for port in spec.get("ports") or [] if "nodePort" in port}
    return {spec.get("clusterIP", "") for spec in specs}, ports


def _free_address(network: IPv4Network, taken: set[str], seed: int) -> str:
    size = network.num_addresses - _RESERVED - 1
    for step in range(size):
        address = str(network[_RESERVED + (seed + step) % size])
        if address not in taken:
            return address
    raise RuntimeError(f"no free address left in the service range {network}")


def _check_address(service: Object, given: str, taken: set[str], network: IPv4Network) -> None:
    try:
        address = ip_address(given)
    except ValueError:
        _refuse(service, "spec.clusterIPs[0]", given, "must be a valid IP address")
    if not isinstance(address, IPv4Address) or address not in network:
        why = f"failed to allocate IP {given}: the provided IP is not in the valid range {network}"
        _refuse(service, "spec.clusterIPs", given, why)
    if given in taken:
        _refuse(service, "spec.clusterIPs", given, f"failed to allocate IP {given}: provided IP is already allocated")


def _give_node_port(service: Object, port: Object, taken: set[int], seed: int) -> None:
    given = port.get("nodePort")
    if given is not None and (given in taken or given not in NODE_PORTS):
        _refuse(service, "spec.ports.nodePort", given, "provided port is already allocated or outside 30000-32767")
    if given is None:
        offset = (seed + port["port"]) % len(NODE_PORTS)
        candidates = (*NODE_PORTS[offset:], *NODE_PORTS[:offset])
        port["nodePort"] = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(port["nodePort"])


def _refuse(service: Object, field: str, value: object, why: str) -> None:
    name = service["metadata"]["name"]
    raise invalid("", "Service", name, [Cause("FieldValueInvalid", f'Invalid value: "{value}": {why}', field)])
