"""What the command line says of labels and namespaces."""

import re

import pytest
from click.testing import CliRunner

from apiserver.main import cli

GIVEN = ("--cluster-name=red", "--cluster-id=1", "--etcd-endpoints=https://127.0.0.1:1")


@pytest.mark.parametrize(("option", "named"), [("--labels=k8s:app k8s:web(", "k8s:web("), ("--labels=!", "'!'")])
def test_a_label_pattern_that_cannot_be_used_is_wrong_usage_and_named(option: str, named: str) -> None:
    result = CliRunner().invoke(cli, [*GIVEN, option])
    assert result.exit_code == 2
    assert "--labels" in result.output
    assert named in re.sub(r"\s+", " ", result.output)
