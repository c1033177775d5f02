"""Where a testbed's files lie. Only paths are made here: nothing in this file removes anything."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.testbed.errors import TestbedError
from clustermesh.testbed.state import StateDirectory

ROOT = Path("/nowhere/testbed")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "/nowhere", "../x", "a/b", "a/..", "a\n", "ünï", "a" * 5000])
def test_a_name_that_is_no_testbeds_has_no_directory(name: str) -> None:
    with pytest.raises(TestbedError, match="testbed name"):
        StateDirectory(name, ROOT)


@given(st.text(max_size=20))
def test_every_directory_lies_directly_below_the_root(name: str) -> None:
    try:
        directory = StateDirectory(name, ROOT)
    except TestbedError:
        return
    assert directory.path.parent == ROOT
    assert directory.path.name == name
