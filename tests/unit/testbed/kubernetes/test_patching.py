"""Patches do to lists and fields what Kubernetes says they do."""

from typing import Any

import pytest

from clustermesh.testbed.kubernetes.errors import ApiError
from clustermesh.testbed.kubernetes.patching import apply, json_patch, merge, strategic


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": {"containers": list(containers), **spec}}


def test_a_merge_patch_replaces_lists_and_removes_nulls() -> None:
    target = {"a": {"b": 1, "c": 2}, "list": [1, 2]}
    assert merge(target, {"a": {"b": None, "d": 3}, "list": [3]}) == {"a": {"c": 2, "d": 3}, "list": [3]}
    assert target == {"a": {"b": 1, "c": 2}, "list": [1, 2]}


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ([{"name": "b", "image": "2"}], [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]),
        ([{"name": "a", "image": "2"}], [{"name": "a", "image": "2"}]),
        ([{"name": "a", "$patch": "delete"}], []),
        ([{"$patch": "replace"}, {"name": "c"}], [{"name": "c"}]),
        (
            [{"name": "a", "env": [{"name": "X", "value": "x"}]}],
            [{"name": "a", "image": "1", "env": [{"name": "X", "value": "x"}]}],
        ),
    ],
    ids=["adds", "changes", "deletes", "replaces", "nests"],
)
def test_a_strategic_patch_knows_containers_by_name(patch: list[Any], expected: list[Any]) -> None:
    assert (
        strategic(pod({"name": "a", "image": "1"}), {"spec": {"containers": patch}})["spec"]["containers"] == expected
    )


def test_the_order_that_a_strategic_patch_asks_for_is_kept() -> None:
    patch = {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b"}]}
    assert strategic(pod({"name": "a"}), {"spec": patch})["spec"]["containers"] == [{"name": "b"}, {"name": "a"}]


def test_ports_are_known_by_different_keys_in_services_and_containers() -> None:
    service = {"spec": {"ports": [{"port": 80, "name": "http"}]}}
    patched = strategic(service, {"spec": {"ports": [{"port": 81}]}})
    assert [port["port"] for port in patched["spec"]["ports"]] == [80, 81]
    container = pod({"name": "a", "ports": [{"containerPort": 80}]})
    patch = {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "http"}]}]}}
    assert strategic(container, patch)["spec"]["containers"][0]["ports"] == [{"containerPort": 80, "name": "http"}]


def test_finalizers_are_a_set_and_other_lists_are_replaced() -> None:
    target = {"metadata": {"finalizers": ["a", "b"]}, "spec": {"tolerations": [{"key": "x"}]}}
    patch = {
        "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"]},
        "spec": {"tolerations": [{"key": "y"}]},
    }
    expected = {"metadata": {"finalizers": ["b", "c"]}, "spec": {"tolerations": [{"key": "y"}]}}
    assert strategic(target, patch) == expected


def test_retained_keys_drop_the_others() -> None:
    target = {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}
    patch = {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}
    assert strategic(target, patch) == {"strategy": {"type": "Recreate"}}


def test_a_json_patch_that_does_not_fit_is_refused() -> None:
    assert json_patch({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}]) == {"a": 2}
    for operations, code in (([{"op": "remove", "path": "/b"}], 422), ([{"op": "fly"}], 400), ("text", 400)):
        with pytest.raises(ApiError) as caught:
            json_patch({"metadata": {"name": "x"}}, operations)
        assert caught.value.code == code


def test_apply_takes_back_only_what_this_manager_gave() -> None:
    first = apply({"metadata": {"name": "p"}}, pod({"name": "a", "image": "1"}, {"name": "b"}), "one", "t1", keyed=True)
    second = apply(first, {"metadata": {"labels": {"x": "y"}}}, "two", "t2", keyed=True)
    third = apply(second, pod({"name": "a"}), "one", "t3", keyed=True)

    assert third["spec"]["containers"] == [{"name": "a"}]
    assert third["metadata"]["labels"] == {"x": "y"}
    assert [entry["manager"] for entry in third["metadata"]["managedFields"]] == ["two", "one"]


def test_apply_of_the_same_again_changes_nothing() -> None:
    first = apply({"metadata": {"name": "p"}}, pod({"name": "a"}), "one", "t1", keyed=True)
    assert apply(first, pod({"name": "a"}), "one", "t2", keyed=True) == first
