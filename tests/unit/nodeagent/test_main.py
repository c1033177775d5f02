"""Wrong flags and missing things end the command with one clear line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from nodeagent.main import cli


def run_with(tmp_path: Path, **changes: str) -> tuple[int, str]:
    file = tmp_path / "pem"
    file.write_text("")
    flags = {
        "--node-name": "red-1",
        "--cluster-name": "red",
        "--cluster-id": "1",
        "--etcd-endpoints": "https://127.0.0.1:1",
        "--etcd-ca": str(file),
        "--etcd-cert": str(file),
        "--etcd-key": str(file),
        "--pin-dir": str(tmp_path / "pins"),
    } | {"--" + name.replace("_", "-"): value for name, value in changes.items()}
    result = CliRunner().invoke(cli, ["run", *(word for flag in flags.items() for word in flag)])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cluster_name": "Red"}, "cluster name 'Red'"),
        ({"cluster_name": "default"}, "choose another"),
        ({"cluster_id": "256"}, "between 1 and 255"),
        ({"cluster_id": "0"}, "between 1 and 255"),
        ({"listen": "9881"}, "--listen must be HOST:PORT"),
        ({"etcd_ca": "/nowhere/ca.crt"}, "/nowhere/ca.crt"),
    ],
)
def test_a_wrong_flag_is_named(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    status, output = run_with(tmp_path, **changes)
    assert status == 2
    assert says in output


def test_a_place_for_pins_that_is_no_bpf_file_system_is_named(tmp_path: Path) -> None:
    status, output = run_with(tmp_path)
    assert status == 1
    assert output.startswith("error: ")
    assert "BPF" in output
    assert "Traceback" not in output


def test_inspect_without_an_agent_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", "nodes", "--pin-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "has the agent of this node ever run?" in result.output
