"""Taking a testbed down, whatever state it is in.

No record is needed: processes are found by their mark, namespaces and devices by their names, mounts by their place.
"""

import contextlib
import shutil
from pathlib import Path

from clustermesh.testbed import namespaces, netns, processes
from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.state import StateDirectory, all_directories
from clustermesh.testbed.topology import NAMESPACE_PREFIX, is_testbed_name, namespace_prefix


def destroy(name: str) -> bool:
    """Leave nothing of a testbed; False when there was nothing. TestbedError when something cannot be removed."""
    directory = StateDirectory(name).path
    found = directory.exists()
    # What is alive may start something new before its turn comes, so look until nobody is left.
    while alive := processes.of_testbed(name, _identities(name)):
        found = True
        processes.end(alive)
    found |= netns.destroy(name)
    for target in _mounts_below(directory):
        namespaces.unmount(target)
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
    except OSError as error:
        raise TestbedError(f"{directory} cannot be removed: {error}; remove it by hand") from error
    return found


def all_names() -> list[str]:
    """Every testbed of which something is left on this machine."""
    left_behind = {name.removeprefix(NAMESPACE_PREFIX).partition("-")[0] for name in namespaces.named(NAMESPACE_PREFIX)}
    return sorted(set(filter(is_testbed_name, left_behind)) | {directory.path.name for directory in all_directories()})


def _identities(testbed: str) -> list[tuple[int, int]]:
    identities = []
    for name in namespaces.named(namespace_prefix(testbed)):
        with contextlib.suppress(FileNotFoundError):
            identities.append(namespaces.identity(name))
    return identities


def _mounts_below(directory: Path) -> list[Path]:
    """Deepest first."""
    targets = (Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return sorted((target for target in targets if target.is_relative_to(directory)), reverse=True)
