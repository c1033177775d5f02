"""What an operator may type or write into the configuration, and what a program gets back."""

import io
import os
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.cli.main import cli
from clustermesh.cli.mesh import AgentsView, ClusterConfigError, parse_agents, parse_config
from clustermesh.kube.objects import ConfigMap
from clustermesh.output import Format, Output

GOOD = {
    "cluster-name": "red",
    "cluster-id": "1",
    "max-connected-clusters": "255",
    "endpoints": "https://192.0.2.1:2379",
}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"KUBECONFIG": os.devnull}).invoke(cli, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "Usage:"),
        (("--help",), 0, "disconnect"),
        (("nonsense",), 2, "No such command"),
        (("connect",), 2, "--destination-context"),
        (("connect", "--destination-context", "green", "--timeout", "0"), 2, "--timeout"),
        (("connect", "--destination-context", "green", "--timeout", "soon"), 2, "--timeout"),
        (("disconnect",), 2, "--peer CLUSTER"),
        (("status", "--output", "yaml"), 2, "'table', 'json'"),
        (("status", "surplus"), 2, "unexpected extra argument"),
        (("status", "--kubeconfig", "/nowhere"), 1, "/nowhere"),
        (("--kubeconfig", "/nowhere", "connect", "--destination-context", "green"), 1, "/nowhere"),
    ],
)
def test_wrong_usage_is_2_and_a_failure_is_1(arguments: tuple[str, ...], status: int, said: str) -> None:
    code, output = run(*arguments)
    assert code == status
    assert said in output
    assert "Traceback" not in output


def test_global_flags_work_on_either_side_of_the_command() -> None:
    for arguments in (
        ("--output", "json", "version"),
        ("version", "--output", "json"),
        ("-v", "version", "-o", "json"),
    ):
        code, output = run(*arguments)
        assert code == 0
        assert msgspec.json.decode(output)["version"]


def test_an_unknown_context_is_named_with_those_that_exist(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text("contexts: [{name: red, context: {cluster: red}}]\nclusters: []\n")
    code, output = run("status", "--kubeconfig", str(kubeconfig), "--context", "gren")
    assert code == 1
    assert "'gren'" in output and "red" in output


def test_a_complete_configuration_is_read() -> None:
    endpoints = "https://192.0.2.1:2379, https://192.0.2.2:2379"
    assert parse_config(GOOD | {"endpoints": endpoints}) == (
        "red",
        1,
        255,
        ("https://192.0.2.1:2379", "https://192.0.2.2:2379"),
    )


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("cluster-name", "", "cluster name"),
        ("cluster-name", "default", "choose another"),
        ("cluster-name", "Red", "lower-case"),
        ("cluster-id", "0", "between 1 and 255"),
        ("cluster-id", "256", "between 1 and 255"),
        ("cluster-id", "²", "not a number"),
        ("cluster-id", "-1", "not a number"),
        ("max-connected-clusters", "300", "255 or 511"),
        ("endpoints", " , ", "endpoints is empty"),
        ("endpoints", "http://192.0.2.1:2379", "not https"),
    ],
)
def test_a_wrong_entry_is_named(entry: str, value: str, said: str) -> None:
    with pytest.raises(ClusterConfigError, match="clustermesh-config") as error:
        parse_config(GOOD | {entry: value})
    assert said in str(error.value)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), st.text(max_size=40)))
def test_no_configuration_crashes_the_command(entries: dict[str, str]) -> None:
    try:
        name, number, clusters, endpoints = parse_config({**GOOD, **entries})
    except ClusterConfigError:
        return
    assert name and 1 <= number <= clusters and endpoints


@given(st.dictionaries(st.sampled_from(["agents.json", "updated", "ca.crt"]), st.text(max_size=40)))
def test_agents_that_cannot_be_read_count_as_none(data: dict[str, str]) -> None:
    found = parse_agents(ConfigMap(data=data))
    assert isinstance(found, AgentsView)
    assert parse_agents(None) == AgentsView()


def test_json_output_keeps_stdout_for_the_document() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(Format.JSON, out=out, err=err)
    output.good("done")
    output.table(("A", "B"), [("1", "2")])
    output.document({"x": 1})
    assert msgspec.json.decode(out.getvalue()) == {"x": 1}
    assert "done" in err.getvalue() and "A  B\n1  2\n" in err.getvalue()


def test_progress_without_a_terminal_is_a_line_whenever_it_changes() -> None:
    out = io.StringIO()
    output = Output(Format.TABLE, out=out)
    for text in ("one", "one", "two"):
        output.progress(text)
    assert out.getvalue() == "… one\n… two\n"


# What reads and never removes: strange values may be tried on it.
READING = (
    ("status", "--context"),
    ("status", "--timeout"),
    ("connect", "--destination-context"),
    ("disconnect", "--peer"),
    ("inspect",),
    ("testbed", "up", "--clusters"),
    ("testbed", "up", "--nodes"),
    ("testbed", "up", "--name"),
)


@given(st.sampled_from(READING), st.text(max_size=40))
def test_no_value_ends_a_command_with_a_traceback(command: tuple[str, ...], value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000)  # nothing is started, however good the value
        code, output = run(*command, value)
    assert code in (0, 1, 2)
    assert code == 0 or "rror: " in output or "Usage:" in output


@pytest.mark.parametrize("verb", ["up", "down", "status", "kubeconfig", "demo"])
def test_a_testbed_without_root_says_so_before_anything_else(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, output = run("testbed", verb, "--name", "nosuch")
    assert code == 1
    assert output == "error: a testbed makes network namespaces, which needs root: run it again with sudo\n"


def test_an_agent_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", os.devnull)
    code, output = run("inspect", "nodes")
    assert code == 1
    assert output == f"error: {os.devnull} cannot be run: Permission denied: run it as root\n"
