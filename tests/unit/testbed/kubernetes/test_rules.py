"""Selectors, schemas, columns and protobuf bodies: pure rules, by example."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.testbed.kubernetes import protobuf, schema, selectors, tables
from clustermesh.testbed.kubernetes.errors import ApiError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]+$"},
                "count": {"type": "integer", "default": 1, "maximum": 3},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            },
        }
    },
}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", True),
        ("app=web", True),
        ("app==web,tier!=back", True),
        ("app!=web", False),
        ("app in (web, db),tier notin (back)", True),
        ("app notin (web)", False),
        ("app", True),
        ("!app", False),
        ("!tier", True),
        ("example.io/x=", False),
    ],
)
def test_label_selectors(text: str, chosen: bool) -> None:
    predicate = selectors.labels(text)
    assert (predicate is None or predicate({"metadata": {"labels": {"app": "web"}}})) is chosen


@given(st.text(max_size=30))
def test_any_text_is_a_label_selector_or_a_bad_request(text: str) -> None:
    try:
        predicate = selectors.labels(text)
    except ApiError as error:
        assert error.code == 400
    else:
        assert predicate is None or predicate({"metadata": {}}) in (True, False)


def test_unknown_fields_are_pruned_and_named() -> None:
    value = {"kind": "X", "metadata": {"a": 1}, "spec": {"name": "a", "x": 1, "free": {"y": 2}, "labels": {"l": "m"}}}
    assert schema.prune(SCHEMA, value) == ["spec.x"]
    assert value["spec"] == {"name": "a", "free": {"y": 2}, "labels": {"l": "m"}}


def test_defaults_are_filled_in_and_mistakes_are_found() -> None:
    value: dict[str, Any] = {"spec": {"name": "a"}}
    schema.fill(SCHEMA, value)
    assert value["spec"]["count"] == 1
    assert schema.check(SCHEMA, value) == []

    wrong = {"spec": {"name": "A", "count": 9, "labels": {"l": 1}}}
    assert [cause.field for cause in schema.check(SCHEMA, wrong)] == ["spec.name", "spec.count", "spec.labels.l"]
    assert [cause.field for cause in schema.check(SCHEMA, {"spec": {}})] == ["spec.name"]
    assert [cause.field for cause in schema.check(SCHEMA, {"spec": {"name": "a", "count": True}})] == ["spec.count"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.size", [3]),
        (".spec.none", []),
        (".spec.list[1]", ["b"]),
        (".spec.list[*]", ["a", "b"]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (r".metadata.labels.example\.io/x", ["y"]),
    ],
)
def test_json_paths_of_columns(path: str, found: list[Any]) -> None:
    item = {
        "metadata": {"labels": {"example.io/x": "y"}},
        "spec": {"size": 3, "list": ["a", "b"]},
        "status": {"conditions": [{"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True"}]},
    }
    assert tables.json_path(item, path) == found


CONFIG_MAP = (
    b"k8s\x00\x0a\x0f\x0a\x02v1\x12\x09ConfigMap"  # Unknown.typeMeta: apiVersion, kind
    b"\x12\x0f\x0a\x05\x0a\x03one\x12\x06\x0a\x01a\x12\x01b"  # Unknown.raw: metadata.name, one entry of data
)


def test_a_protobuf_config_map_is_read() -> None:
    expected = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"a": "b"}}
    assert protobuf.decode(CONFIG_MAP) == expected


@given(st.lists(st.tuples(st.integers(4, len(CONFIG_MAP) - 1), st.integers(0, 255)), max_size=3), st.integers(0, 10))
def test_any_bytes_are_an_object_or_a_bad_request(changes: list[tuple[int, int]], cut: int) -> None:
    raw = bytearray(CONFIG_MAP)
    for place, byte in changes:
        raw[place] = byte
    try:
        assert isinstance(protobuf.decode(bytes(raw[: len(raw) - cut])), dict)
    except ApiError as error:
        assert error.code == 400
