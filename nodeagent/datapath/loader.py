"""Loading the compiled programs with the maps that are already pinned, so that a restart forgets nothing.

A pinned map of the right shape is taken over. One of another size is copied into its successor; one of another shape
(an agent with another ABI) is replaced empty, for the reconciler to fill. Either way the programs that are attached
keep the old map until they are replaced themselves.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nodeagent.datapath import bpf
from nodeagent.datapath.abi import Map
from nodeagent.datapath.errors import DatapathError
from nodeagent.datapath.libbpf import Libbpf, ObjectMap
from nodeagent.datapath.maps import BpfMap

log = logging.getLogger(__name__)

OBJECTS = Path(__file__).parent / "objects"
_CAP_SYS_ADMIN, _CAP_NET_ADMIN, _CAP_BPF = 21, 12, 39


class Loaded(NamedTuple):
    """What loading gave; the descriptors are the caller's to close."""

    programs: dict[str, int]
    maps: dict[str, BpfMap]
    renewed: frozenset[str]
    """Maps that are new and empty: never pinned before, or of another shape."""


def load(pin_dir: Path, objects: Path = OBJECTS, max_entries: Mapping[str, int] | None = None) -> Loaded:
    """Load all objects, maps pinned below ``pin_dir``/maps. Raises DatapathError."""
    check_rights()
    files = sorted(objects.glob("*.bpf.o"))
    if not files:
        raise DatapathError(f"no compiled BPF programs in {objects}; build them with `make bpf`")
    check_file_system(pin_dir)
    maps_dir = pin_dir / "maps"
    maps_dir.mkdir(parents=True, exist_ok=True)

    libbpf = Libbpf()
    programs: dict[str, int] = {}
    maps: dict[str, BpfMap] = {}
    renewed: set[str] = set()
    try:
        for path in files:
            opened = libbpf.open(path)
            try:
                mine = [one for one in opened.maps() if one.name in set(Map)]
                predecessors = {one.name: _take_over(one, maps, maps_dir, max_entries or {}) for one in mine}
                opened.load()
                for one in mine:
                    if one.name in maps:
                        continue
                    maps[one.name] = BpfMap(one.name, os.dup(one.fd))
                    predecessor = predecessors[one.name]
                    reused = predecessor is not None and predecessor.fd == -1
                    if not reused and not _succeed(maps[one.name], predecessor, maps_dir / one.name):
                        renewed.add(one.name)
                programs |= opened.programs()
            finally:
                opened.close()
    except BaseException:
        for fd in programs.values():
            os.close(fd)
        for one_map in maps.values():
            one_map.close()
        raise
    return Loaded(programs, maps, frozenset(renewed))


def _take_over(
    one: ObjectMap, loaded: Mapping[str, BpfMap], maps_dir: Path, max_entries: Mapping[str, int]
) -> BpfMap | None:
    """Prepare a map for loading.

    Returns None if there is no predecessor, an open one if a new map must succeed it, a closed one if it is reused.
    """
    if one.name in max_entries:
        one.resize(max_entries[one.name])
    if one.name in loaded:
        one.reuse(loaded[one.name].fd)
        return None
    path = maps_dir / one.name
    if not path.exists():
        return None
    pinned = BpfMap.pinned(path)
    info = pinned.info
    same_shape = (info.type, info.key_size, info.value_size, info.flags) == one.shape
    if same_shape and info.max_entries == one.max_entries:
        one.reuse(pinned.fd)
        pinned.close()
    return pinned


def _succeed(new: BpfMap, old: BpfMap | None, path: Path) -> bool:
    """Pin a new map, in place of ``old`` with its content if that fits. Whether the content was kept."""
    kept = False
    if old is not None:
        with old:
            shapes = [(one.info.type, one.info.key_size, one.info.value_size) for one in (old, new)]
            if shapes[0] == shapes[1] and new.info.key_size:
                log.info("map %s changes from %d to %d entries", new.name, old.info.max_entries, new.info.max_entries)
                new.update_batch(list(old.items()))
                kept = True
            else:
                log.warning("map %s was pinned by an agent with another ABI; replaced, to be filled again", new.name)
    staging = path.with_name(f"{path.name}_new")
    staging.unlink(missing_ok=True)
    bpf.obj_pin(new.fd, staging)
    staging.replace(path)
    return kept


def check_file_system(pin_dir: Path) -> None:
    """Raise DatapathError unless ``pin_dir`` can be made on a BPF file system."""
    existing = pin_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not bpf.is_bpffs(existing):
        raise DatapathError(
            f"{pin_dir} is not on a BPF file system; mount one (mount -t bpf bpf /sys/fs/bpf)"
            " or choose another --pin-dir"
        )
    pin_dir.mkdir(parents=True, exist_ok=True)


def check_rights() -> None:
    """Raise DatapathError unless this process may load programs."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    if effective >> _CAP_SYS_ADMIN & 1:
        return
    missing = [
        name for name, bit in (("CAP_BPF", _CAP_BPF), ("CAP_NET_ADMIN", _CAP_NET_ADMIN)) if not effective >> bit & 1
    ]
    if missing:
        raise DatapathError(f"loading BPF programs needs {' and '.join(missing)}; run as root")
