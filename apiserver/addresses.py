"""Kubernetes Pod → address records, and who owns an address that two pods claim. No effects."""

import ipaddress
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from clustermesh.kube.objects import Pod
from clustermesh.wire.records import AddressRecord

_FINISHED = ("Succeeded", "Failed")  # such a pod's address may already be another's


def pod_addresses(pod: Pod) -> tuple[str, ...]:
    """The addresses at which a pod can be reached as itself: none for pods on the host's network."""
    if pod.spec.host_network or pod.status.phase in _FINISHED:
        return ()
    listed = [entry.ip for entry in pod.status.pod_ips or ()] or [pod.status.pod_ip]
    return tuple(dict.fromkeys(ip for text in listed if (ip := _canonical(text))))


def compile_pod(pod: Pod, identity: int) -> dict[str, AddressRecord]:
    """Address → record."""
    return {
        ip: AddressRecord(
            ip=ip,
            host_ip=_canonical(pod.status.host_ip),
            identity=identity,
            namespace=pod.namespace,
            pod_name=pod.name,
            service_account=pod.spec.service_account_name or msgspec.UNSET,
        )
        for ip in pod_addresses(pod)
    }


class AddressChange(NamedTuple):
    """`record` None: nobody has the address any more."""

    ip: str
    record: AddressRecord | None


class AddressTable:
    """One owner per address: the first who claims it keeps it until it lets go, then the next in line gets it.

    An address that moves from one pod to the next is for a moment claimed by both, since a pod's end and another's
    start may be seen in either order. Claims are told apart by the pod's uid.
    """

    def __init__(self) -> None:
        self._owners: dict[str, tuple[str, AddressRecord]] = {}
        self._in_line: dict[str, dict[str, AddressRecord]] = {}  # only for addresses with several claims
        self._of_pod: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def set(self, uid: str, records: Mapping[str, AddressRecord]) -> list[AddressChange]:
        """Make `records` all that the pod claims; what changes for readers."""
        gone = [ip for ip in self._of_pod.get(uid, ()) if ip not in records]
        changes = [change for ip in gone for change in self._release(uid, ip)]
        changes += [change for ip, record in records.items() for change in self._claim(uid, ip, record)]
        if records:
            self._of_pod[uid] = tuple(records)
        else:
            self._of_pod.pop(uid, None)
        return changes

    def _claim(self, uid: str, ip: str, record: AddressRecord) -> Iterable[AddressChange]:
        owner = self._owners.get(ip)
        if owner is not None and owner[0] != uid:
            self._in_line.setdefault(ip, {})[uid] = record
        elif owner is None or owner[1] != record:
            self._owners[ip] = (uid, record)
            yield AddressChange(ip, record)

    def _release(self, uid: str, ip: str) -> Iterable[AddressChange]:
        line = self._in_line.get(ip, {})
        if self._owners[ip][0] != uid:
            line.pop(uid, None)
        elif line:
            heir = next(iter(line))
            self._owners[ip] = (heir, line.pop(heir))
            yield AddressChange(ip, self._owners[ip][1])
        else:
            del self._owners[ip]
            yield AddressChange(ip, None)
        if not line:
            self._in_line.pop(ip, None)


def _canonical(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
