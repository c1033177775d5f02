"""The agent's view of the maps against what the compiler made of the headers."""

from pathlib import Path

import pytest

from nodeagent.datapath.abi import CODES, DROP_FIRST, ENUMS, LAYOUTS, Layout
from nodeagent.datapath.loader import OBJECTS
from tests.system.datapath import btf

OBJECT_FILES = [OBJECTS / "pod.bpf.o", OBJECTS / "tunnel.bpf.o"]


@pytest.fixture(scope="module", params=OBJECT_FILES, ids=lambda path: path.name)
def types(request: pytest.FixtureRequest) -> tuple[dict[str, btf.Struct], dict[str, dict[str, int]]]:
    path: Path = request.param
    assert path.exists(), "compile the programs first: make bpf"
    return btf.read(path)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.c_name], ids=lambda one: one.c_name)
def test_structs_have_the_same_size_and_offsets(types: tuple[dict[str, btf.Struct], object], layout: Layout) -> None:
    compiled = types[0].get(layout.c_name)
    if compiled is None:
        pytest.skip("this object does not use it")
    assert layout.size == compiled.size
    assert layout.offsets() == compiled.offsets


def test_every_struct_is_used_by_some_object() -> None:
    compiled = set().union(*(btf.read(path)[0] for path in OBJECT_FILES))
    assert {layout.c_name for layout in LAYOUTS if layout.c_name} <= compiled


@pytest.mark.parametrize("c_name", ENUMS)
def test_enums_have_the_same_numbers(types: tuple[object, dict[str, dict[str, int]]], c_name: str) -> None:
    limits = {"CM_DROP_FIRST": DROP_FIRST, "CM_CODES": CODES, "CM_DIRECTIONS": len(ENUMS["cm_direction"])}
    compiled = dict(types[1][c_name])
    for name, number in limits.items():
        assert compiled.pop(name, number) == number
    mirror = ENUMS[c_name]
    mirrored = {member.name: member.value for member in mirror if member.name != "NONE"}
    assert sorted(compiled.values()) == sorted(mirrored.values())
    for name, number in compiled.items():
        assert name.endswith(mirror(number).name or ""), f"{name} is {mirror(number)!r} there"
