"""The few functions of libbpf.so.1 that loading an object needs, by ctypes.

Every call holds the interpreter's own reference to libbpf; its messages are collected while an object loads and are
given with the error, the verifier's log among them.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent.datapath.errors import DatapathError

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_DEBUG = 2
_LOG_LINES = 20


class Libbpf:
    """The loaded library. Raises DatapathError if it is not installed."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError as error:
            raise DatapathError(
                f"libbpf.so.1 cannot be loaded ({error}); install libbpf1 (Debian) or libbpf"
            ) from error
        self._libc = ctypes.CDLL(None)
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        for name, result, arguments in (
            ("bpf_object__open_file", pointer, (text, pointer)),
            ("bpf_object__load", ctypes.c_int, (pointer,)),
            ("bpf_object__close", None, (pointer,)),
            ("bpf_object__next_map", pointer, (pointer, pointer)),
            ("bpf_object__next_program", pointer, (pointer, pointer)),
            ("bpf_map__name", text, (pointer,)),
            ("bpf_map__fd", ctypes.c_int, (pointer,)),
            ("bpf_map__type", ctypes.c_int, (pointer,)),
            ("bpf_map__key_size", ctypes.c_uint32, (pointer,)),
            ("bpf_map__value_size", ctypes.c_uint32, (pointer,)),
            ("bpf_map__max_entries", ctypes.c_uint32, (pointer,)),
            ("bpf_map__map_flags", ctypes.c_uint32, (pointer,)),
            ("bpf_map__set_max_entries", ctypes.c_int, (pointer, ctypes.c_uint32)),
            ("bpf_map__reuse_fd", ctypes.c_int, (pointer, ctypes.c_int)),
            ("bpf_program__name", text, (pointer,)),
            ("bpf_program__fd", ctypes.c_int, (pointer,)),
            ("libbpf_set_print", pointer, (pointer,)),
        ):
            function = getattr(self._lib, name)
            function.restype = result
            function.argtypes = arguments

    def open(self, path: Path) -> "Object":
        """Read an object file; nothing is loaded yet."""
        messages: list[str] = []
        with self._collecting(messages):
            handle = self._lib.bpf_object__open_file(os.fsencode(path), None)
        if not handle:
            raise DatapathError(f"cannot read BPF object {path}: {_tail(messages) or os.strerror(ctypes.get_errno())}")
        return Object(self, path, handle)

    @contextmanager
    def _collecting(self, messages: list[str]) -> Iterator[None]:
        def collect(level: int, template: bytes, arguments: int) -> int:
            if level < _DEBUG:
                buffer = ctypes.create_string_buffer(1 << 16)
                self._libc.vsnprintf(buffer, ctypes.c_size_t(len(buffer)), template, ctypes.c_void_p(arguments))
                messages.append(buffer.value.decode(errors="replace"))
            return 0

        callback = _PRINT(collect)
        previous = self._lib.libbpf_set_print(ctypes.cast(callback, ctypes.c_void_p))
        try:
            yield
        finally:
            self._lib.libbpf_set_print(previous)


class ObjectMap:
    """A map of an object that is not loaded yet, or now is."""

    def __init__(self, lib: ctypes.CDLL, handle: int) -> None:
        self._lib, self._handle = lib, handle
        self.name: str = lib.bpf_map__name(handle).decode()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Type, key size, value size, flags: what must agree for a pinned map to be taken over."""
        lib, handle = self._lib, self._handle
        return (
            lib.bpf_map__type(handle),
            lib.bpf_map__key_size(handle),
            lib.bpf_map__value_size(handle),
            lib.bpf_map__map_flags(handle),
        )

    @property
    def max_entries(self) -> int:
        return int(self._lib.bpf_map__max_entries(self._handle))

    @property
    def fd(self) -> int:
        return int(self._lib.bpf_map__fd(self._handle))

    def resize(self, entries: int) -> None:
        self._lib.bpf_map__set_max_entries(self._handle, entries)

    def reuse(self, fd: int) -> None:
        """Load with this map instead of a new one; libbpf duplicates the descriptor."""
        if self._lib.bpf_map__reuse_fd(self._handle, fd) != 0:
            raise DatapathError(
                f"libbpf cannot take over the pinned map {self.name}: {os.strerror(ctypes.get_errno())}"
            )


class Object:
    """An object file between opening and closing. File descriptors taken from it die with it."""

    def __init__(self, libbpf: Libbpf, path: Path, handle: int) -> None:
        self._libbpf, self._lib = libbpf, libbpf._lib
        self.path, self._handle = path, handle

    def maps(self) -> Iterator[ObjectMap]:
        handle = self._lib.bpf_object__next_map(self._handle, None)
        while handle:
            yield ObjectMap(self._lib, handle)
            handle = self._lib.bpf_object__next_map(self._handle, handle)

    def load(self) -> None:
        """Create the maps and have the programs verified. Raises DatapathError with the end of libbpf's log."""
        messages: list[str] = []
        with self._libbpf._collecting(messages):
            result = self._lib.bpf_object__load(self._handle)
        if result != 0:
            reason = os.strerror(-result)
            raise DatapathError(f"kernel refused {self.path.name}: {reason}\n{_tail(messages)}")

    def programs(self) -> dict[str, int]:
        """Name → file descriptor, duplicated: it is the caller's."""
        found: dict[str, int] = {}
        handle = self._lib.bpf_object__next_program(self._handle, None)
        while handle:
            found[self._lib.bpf_program__name(handle).decode()] = os.dup(self._lib.bpf_program__fd(handle))
            handle = self._lib.bpf_object__next_program(self._handle, handle)
        return found

    def close(self) -> None:
        if self._handle:
            self._lib.bpf_object__close(self._handle)
            self._handle = 0


def _tail(messages: list[str]) -> str:
    lines = [line for message in messages for line in message.splitlines() if "skipping unrecognized" not in line]
    return "\n".join(lines[-_LOG_LINES:])
