"""System tests need root and the kernel; where those are missing they are skipped and say so."""

import os
from pathlib import Path

import pytest


def missing() -> str | None:
    if os.geteuid() != 0:
        return "needs root: network namespaces, BPF programs"
    if not Path("/proc/self/ns/net").exists():
        return "needs network namespaces in the kernel"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "needs a kernel with BTF (CONFIG_DEBUG_INFO_BTF)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    reason = missing()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
