"""One connected pair of clusters serves the whole folder: coming up is the dear part."""

from collections.abc import Iterator

import pytest

from tests.system.mesh.mesh import Mesh


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    mesh = Mesh("testmesh")
    try:
        mesh.up()
        mesh.connect()
        yield mesh
    finally:
        mesh.down()
