"""Just enough of BTF (Documentation/bpf/btf.rst in the kernel) to read the structs and enums of a compiled object."""

import struct
from pathlib import Path
from typing import NamedTuple


class Struct(NamedTuple):
    size: int
    offsets: dict[str, int]


_KIND_STRUCT, _KIND_ENUM = 4, 6
_FIXED_TAIL = {1: 4, 3: 12, 14: 4, 17: 4}  # INT, ARRAY, VAR, DECL_TAG
_PER_ELEMENT = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}  # STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64


def section(elf: bytes, wanted: str) -> bytes:
    """The content of a section of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        start = names + name
        if elf[start : elf.index(0, start)].decode() == wanted:
            return elf[offset : offset + length]
    raise KeyError(wanted)


def read(path: Path) -> tuple[dict[str, Struct], dict[str, dict[str, int]]]:
    """Structs and enums by name."""
    raw = section(path.read_bytes(), ".BTF")
    header, types_at, types_size, strings_at = struct.unpack_from("<IIII", raw, 4)[:4]
    types = raw[header + types_at : header + types_at + types_size]
    strings = raw[header + strings_at :]

    def text(offset: int) -> str:
        return strings[offset : strings.index(0, offset)].decode()

    structs: dict[str, Struct] = {}
    enums: dict[str, dict[str, int]] = {}
    at = 0
    while at < len(types):
        name, info, size = struct.unpack_from("<III", types, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        at += 12
        if kind == _KIND_STRUCT:
            members = [struct.unpack_from("<III", types, at + 12 * i) for i in range(count)]
            offsets = {text(member): (bits & 0xFFFFFF) // 8 for member, _, bits in members}
            structs[text(name)] = Struct(size, offsets)
        elif kind == _KIND_ENUM:
            values = [struct.unpack_from("<Ii", types, at + 8 * i) for i in range(count)]
            enums[text(name)] = {text(value): number for value, number in values}
        at += _FIXED_TAIL.get(kind, 0) + _PER_ELEMENT.get(kind, 0) * count
    return structs, enums
