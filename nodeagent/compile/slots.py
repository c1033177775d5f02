"""Keys of one frontend in cm_services: the master (slot 0) and a slot for each backend."""

from struct import Struct

from nodeagent.datapath.abi import ServiceKey

_OFFSET = ServiceKey.layout.offsets()["slot"]
_SLOT = Struct("=H")
_MASTER = _SLOT.pack(0)


def is_master(key: bytes) -> bool:
    return key[_OFFSET : _OFFSET + _SLOT.size] == _MASTER


def slot_key(master: bytes, slot: int) -> bytes:
    """The key of a slot of the frontend that `master` belongs to."""
    return master[:_OFFSET] + _SLOT.pack(slot) + master[_OFFSET + _SLOT.size :]
