"""Pod addresses → ipcache: who is behind an address, and behind which tunnel endpoint.

This is the bulk path: 100,000 records at a peer's appearance. Hence the key is built from the etcd key's tail without
an address object, and the value, which is the same for all pods of one identity on one node, is made once and shared.
"""

from socket import AF_INET, inet_pton
from struct import error as StructError

from clustermesh.wire.errors import RecordError
from clustermesh.wire.identity import Reserved
from clustermesh.wire.records import AddressRecord
from nodeagent.datapath.abi import IpcacheFlag, IpcacheKey, IpcacheValue

_V4_HOST = IpcacheKey.host("0.0.0.0").pack()[:8]
_V4_REST = bytes(12)
_SHARED_VALUES = 16384  # values kept for sharing; beyond it a few are made twice


class Addresses:
    """The entries of one cluster's addresses."""

    def __init__(self, cluster_id: int, *, foreign: bool) -> None:
        self._cluster_id = cluster_id
        self._foreign = foreign
        self._values: dict[tuple[int, str, int], bytes] = {}

    def value(self, record: AddressRecord) -> bytes | None:
        """The entry's value; None when the record gives none yet (no identity). RecordError on a malformed HostIP."""
        what = (record.identity, record.host_ip, record.key)
        value = self._values.get(what)
        if value is None and record.identity != Reserved.UNKNOWN:
            if len(self._values) >= _SHARED_VALUES:
                self._values.clear()
            value = self._values[what] = self._make(record)
        return value

    def _make(self, record: AddressRecord) -> bytes:
        # A peer's own host is a remote node to everybody else.
        identity = Reserved.REMOTE_NODE if record.identity == Reserved.HOST else record.identity
        # The tunnel's outer packets are IPv4: what is behind a node of another family is known, but not reached.
        tunnel = record.host_ip if self._foreign and ":" not in record.host_ip else ""
        flags = IpcacheFlag.REMOTE_CLUSTER if self._foreign else IpcacheFlag.NONE
        try:
            return IpcacheValue(identity, tunnel, self._cluster_id, flags, record.key).pack()
        except (OSError, StructError):
            raise RecordError(f"HostIP {record.host_ip!r} or a number in the record is out of range") from None


def address_key(tail: str) -> bytes:
    """The ipcache key for the part of an etcd key below the prefix: `10.1.2.3`, `fd00::1` or `10.1.2.0/24`.

    RecordError when it is neither.
    """
    try:
        return _V4_HOST + inet_pton(AF_INET, tail) + _V4_REST
    except (OSError, ValueError):
        pass  # not the usual case, but maybe one of the others
    address, slash, length = tail.partition("/")
    bits = 128 if ":" in address else 32
    try:
        if not address or (slash and not (length.isascii() and length.isdigit() and int(length) <= bits)):
            raise ValueError
        return IpcacheKey(address, int(length) if slash else bits).pack()
    except (OSError, ValueError):
        raise RecordError(f"{tail!r} is neither an address nor a range") from None
