"""Kubernetes Pod → address records, and who owns an address that two pods claim. No effects."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from clustermesh.kube.objects import Pod
from clustermesh.wire.addresses import canonical
from clustermesh.wire.records import AddressRecord

_FINISHED = ("Succeeded", "Failed")  # such a pod's address may already be another's


def pod_addresses(pod: Pod) -> tuple[str, ...]:
    """The addresses at which a pod can be reached as itself: none for pods on the host's network."""
    if pod.spec.host_network or pod.status.phase in _FINISHED:
        return ()
    listed = [entry.ip for entry in pod.status.pod_ips or ()] or [pod.status.pod_ip]
    return tuple(dict.fromkeys(ip for text in listed if (ip := canonical(text))))


def compile_pod(pod: Pod, identity: int) -> dict[str, AddressRecord]:
    """Address → record."""
    return {
        ip: AddressRecord(
            ip=ip,
            host_ip=canonical(pod.status.host_ip) or "",
            identity=identity,
            namespace=pod.namespace,
            pod_name=pod.name,
            service_account=pod.spec.service_account_name or msgspec.UNSET,
        )
        for ip in pod_addresses(pod)
    }


class AddressChange(NamedTuple):
    """`record` None: nobody has the address any more.

    `public`: whether peers may know it. `inherited`: it is the first record of a new owner.
    """

    ip: str
    record: AddressRecord | None
    public: bool = True
    inherited: bool = False


class _Claim(NamedTuple):
    uid: str  # of the pod
    record: AddressRecord
    public: bool


class AddressTable:
    """One owner per address: the first who claims it keeps it until it lets go, then the next in line gets it.

    An address that moves from one pod to the next is for a moment claimed by both, since a pod's end and another's
    start may be seen in either order. Claims are told apart by the pod's uid.
    """

    def __init__(self) -> None:
        self._owners: dict[str, _Claim] = {}
        self._in_line: dict[str, dict[str, _Claim]] = {}  # only for addresses with several claims
        self._of_pod: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def set(self, uid: str, records: Mapping[str, AddressRecord], *, public: bool = True) -> list[AddressChange]:
        """Make `records` all that the pod claims; what changes for readers."""
        gone = [ip for ip in self._of_pod.get(uid, ()) if ip not in records]
        changes = [change for ip in gone for change in self._release(uid, ip)]
        claims = {ip: _Claim(uid, record, public) for ip, record in records.items()}
        changes += [change for ip, claim in claims.items() for change in self._claim(ip, claim)]
        if records:
            self._of_pod[uid] = tuple(records)
        else:
            self._of_pod.pop(uid, None)
        return changes

    def of_pod(self, uid: str) -> tuple[str, ...]:
        """Addresses that the pod claims."""
        return self._of_pod.get(uid, ())

    def _claim(self, ip: str, claim: _Claim) -> Iterable[AddressChange]:
        owner = self._owners.get(ip)
        if owner is not None and owner.uid != claim.uid:
            self._in_line.setdefault(ip, {})[claim.uid] = claim
        elif owner != claim:
            self._owners[ip] = claim
            yield AddressChange(ip, claim.record, claim.public, inherited=owner is None)

    def _release(self, uid: str, ip: str) -> Iterable[AddressChange]:
        line = self._in_line.get(ip, {})
        if self._owners[ip].uid != uid:
            line.pop(uid, None)
        elif line:
            heir = self._owners[ip] = line.pop(next(iter(line)))
            yield AddressChange(ip, heir.record, heir.public, inherited=True)
        else:
            del self._owners[ip]
            yield AddressChange(ip, None)
        if not line:
            self._in_line.pop(ip, None)
