"""What a machine lacks is said in one sentence with its remedy."""

import os
import shutil
from pathlib import Path

import pytest

from clustermesh.testbed import machine, namespaces
from clustermesh.testbed.errors import TestbedError


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TestbedError, match="needs root: run it again with sudo"):
        machine.check_rights()


@pytest.mark.parametrize(
    ("program", "package"), [("etcd", "etcd-server"), ("nsenter", "util-linux"), ("ip", "iproute2")]
)
def test_a_missing_program_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name == program else f"/usr/bin/{name}")
    with pytest.raises(TestbedError, match=f"'{program}' is missing: install it with 'apt-get install {package}'"):
        machine.check("x")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Namespaces that the check has made and not removed; none is made in truth."""
    names: list[str] = []
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/usr/bin/{name}")
    monkeypatch.setattr(namespaces, "create", names.append)
    monkeypatch.setattr(namespaces, "remove", names.remove)
    return names


@pytest.mark.parametrize("kind", ["vxlan", "bridge", "veth"])
def test_a_kernel_without_a_kind_of_device_is_named_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, made: list[str], kind: str
) -> None:
    def refuse(namespace: str, lines: list[str]) -> None:
        assert namespace in made
        if f" type {kind} " in lines[0]:
            raise TestbedError("Error: Unknown device type.")

    monkeypatch.setattr(namespaces, "configure", refuse)
    with pytest.raises(TestbedError, match=f"this kernel cannot make {kind} devices: try 'modprobe {kind}'"):
        machine.check("x")
    assert not made


def test_a_kernel_without_bpf_file_system_is_named(monkeypatch: pytest.MonkeyPatch, made: list[str]) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "nodev\tproc\n\text4\n")
    with pytest.raises(TestbedError, match=r"no BPF file system .*: boot another one"):
        machine.check("x")
    assert not made


def test_a_kernel_without_network_namespaces_is_named(monkeypatch: pytest.MonkeyPatch, made: list[str]) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(TestbedError, match=r"no network namespaces .*: boot another one"):
        machine.check("x")
    assert not made
