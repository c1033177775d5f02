from collections.abc import Iterator

import pytest

from tests.system.datapath.lab import Node, two_nodes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Two nodes with two pods each, shared by a module: a test uses ports and service addresses of its own."""
    with two_nodes(tmp_path_factory.mktemp("nodes")) as pair:
        yield pair
