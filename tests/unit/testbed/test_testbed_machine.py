"""What a machine lacks is said in one sentence with its remedy."""

import os
import shutil

import pytest

from clustermesh.testbed import machine
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
