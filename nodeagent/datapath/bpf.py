"""The bpf(2) system call by ctypes: maps, pins, links, test runs. One function a command.

Every function raises OSError with the kernel's errno. Layouts of the attributes: ``union bpf_attr`` in linux/bpf.h.
"""

import ctypes
import os
import platform
import struct
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

_NR_BPF = {"x86_64": 321, "aarch64": 280, "s390x": 351, "ppc64le": 361, "riscv64": 280}
_libc = ctypes.CDLL(None, use_errno=True)

BPF_FS_MAGIC = 0xCAFE4A11
NAME_MAX = 15


class Command(IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    OBJ_GET_INFO_BY_FD = 15
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


class MapType(IntEnum):
    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    RINGBUF = 27


class AttachType(IntEnum):
    TCX_INGRESS = 46
    TCX_EGRESS = 47


_F_BEFORE = 1 << 3
"""LINK_CREATE: run ahead of the programs that are there."""


class MapInfo(NamedTuple):
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class LinkInfo(NamedTuple):
    """A TCX link. ``ifindex`` is 0 once its device has gone."""

    id: int
    prog_id: int
    ifindex: int
    attach_type: int


class TestRun(NamedTuple):
    verdict: int
    """The program's return value, as a signed number."""
    packet: bytes
    context: bytes


def call(command: Command, attr: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """Issue the system call. Pass a ctypes buffer to read back what the kernel writes into it."""
    try:
        number = _NR_BPF[platform.machine()]
    except KeyError:
        raise OSError(f"bpf(2) has no known number on {platform.machine()}") from None
    buffer = ctypes.create_string_buffer(attr, len(attr)) if isinstance(attr, bytes) else attr
    result = int(_libc.syscall(number, int(command), ctypes.byref(buffer), len(buffer)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), command.name)
    return result


def _address(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return ctypes.addressof(buffer) if buffer is not None else 0


def buffer_of(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


# --- maps ---------------------------------------------------------------------------------------------------------


def map_create(
    map_type: MapType, key_size: int, value_size: int, max_entries: int, *, flags: int = 0, name: str = ""
) -> int:
    attr = struct.pack("IIIIIII16s", map_type, key_size, value_size, max_entries, flags, 0, 0, name[:NAME_MAX].encode())
    return call(Command.MAP_CREATE, attr)


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value, or None. ``value_size`` in bytes; of a per-CPU map, of all CPUs together."""
    key_buffer, value = buffer_of(key), ctypes.create_string_buffer(value_size)
    try:
        call(Command.MAP_LOOKUP_ELEM, struct.pack("IxxxxQQQ", fd, _address(key_buffer), _address(value), 0))
    except FileNotFoundError:
        return None
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    key_buffer, value_buffer = buffer_of(key), buffer_of(value)
    call(Command.MAP_UPDATE_ELEM, struct.pack("IxxxxQQQ", fd, _address(key_buffer), _address(value_buffer), 0))


def map_delete(fd: int, key: bytes) -> bool:
    """Whether the key was there."""
    key_buffer = buffer_of(key)
    try:
        call(Command.MAP_DELETE_ELEM, struct.pack("IxxxxQQQ", fd, _address(key_buffer), 0, 0))
    except FileNotFoundError:
        return False
    return True


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """The key after ``key`` (the first after None), or None at the end."""
    key_buffer = buffer_of(key) if key is not None else None
    following = ctypes.create_string_buffer(key_size)
    try:
        call(Command.MAP_GET_NEXT_KEY, struct.pack("IxxxxQQQ", fd, _address(key_buffer), _address(following), 0))
    except FileNotFoundError:
        return None
    return following.raw


def map_batch(
    command: Command,
    fd: int,
    count: int,
    keys: ctypes.Array[ctypes.c_char],
    values: ctypes.Array[ctypes.c_char] | None = None,
    *,
    start: ctypes.Array[ctypes.c_char] | None = None,
    following: ctypes.Array[ctypes.c_char] | None = None,
    skip: int = 0,
) -> tuple[int, OSError | None]:
    """One batch; returns how many elements it handled, and why it stopped before the end if it did.

    ``skip``: bytes of ``keys`` that come before the batch.
    """
    buffers = _address(start), _address(following), _address(keys) + skip, _address(values)
    attr = buffer_of(struct.pack("QQQQIIQQ", *buffers, count, fd, 0, 0))
    error: OSError | None = None
    try:
        call(command, attr)
    except OSError as refused:
        error = refused
    handled: int = struct.unpack_from("I", attr, 32)[0]
    return handled, error


# --- objects ------------------------------------------------------------------------------------------------------


def obj_pin(fd: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    call(Command.OBJ_PIN, struct.pack("QII", _address(name), fd, 0))


def obj_get(path: Path) -> int:
    """A new file descriptor of what is pinned at ``path``."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return call(Command.OBJ_GET, struct.pack("QII", _address(name), 0, 0))


def _info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    call(Command.OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, size, _address(info)))
    return info.raw


def map_info(fd: int) -> MapInfo:
    kind, number, *sizes = struct.unpack_from("IIIIII", _info(fd, 80))
    return MapInfo(kind, number, *sizes)


def link_info(fd: int) -> LinkInfo:
    _kind, number, prog_id, _, ifindex, attach_type = struct.unpack_from("IIIIII", _info(fd, 64))
    return LinkInfo(number, prog_id, ifindex, attach_type)


def prog_id(fd: int) -> int:
    number: int = struct.unpack_from("I", _info(fd, 64), 4)[0]
    return number


def is_bpffs(path: Path) -> bool:
    """Whether ``path`` lies on a mounted BPF file system."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    kind: int = struct.unpack_from("l", buffer)[0]
    return kind & 0xFFFFFFFF == BPF_FS_MAGIC


# --- links --------------------------------------------------------------------------------------------------------


def link_create_tcx(prog_fd: int, ifindex: int, attach_type: AttachType) -> int:
    return call(Command.LINK_CREATE, struct.pack("IIIIIxxxxQ", prog_fd, ifindex, attach_type, _F_BEFORE, 0, 0))


def link_update(link_fd: int, prog_fd: int) -> None:
    """Put another program in the link's place; no packet sees neither or both."""
    call(Command.LINK_UPDATE, struct.pack("IIII", link_fd, prog_fd, 0, 0))


def link_detach(link_fd: int) -> None:
    call(Command.LINK_DETACH, struct.pack("I", link_fd))


# --- programs -----------------------------------------------------------------------------------------------------


def prog_test_run(prog_fd: int, packet: bytes, context: bytes = b"") -> TestRun:
    """Run a classifier on one Ethernet frame. ``context``: a ``struct __sk_buff``; few of its fields may be set."""
    data_in, data_out = buffer_of(packet), ctypes.create_string_buffer(len(packet) + 512)
    ctx_in, ctx_out = buffer_of(context), ctypes.create_string_buffer(max(len(context), 1))
    attr = buffer_of(
        struct.pack(
            "IIIIQQIIIIQQIII4x",
            prog_fd,
            0,
            len(data_in),
            len(data_out),
            _address(data_in),
            _address(data_out),
            1,
            0,
            len(context),
            len(context),
            _address(ctx_in) if context else 0,
            _address(ctx_out) if context else 0,
            0,
            0,
            0,
        )
    )
    call(Command.PROG_TEST_RUN, attr)
    verdict, _, size = struct.unpack_from("iII", attr, 4)
    return TestRun(verdict, data_out.raw[:size], ctx_out.raw[: len(context)])
