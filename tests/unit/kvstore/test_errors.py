"""What etcd's answers mean."""

import pytest
from grpc import StatusCode

from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.session import etcd_error


@pytest.mark.parametrize(
    ("code", "text", "stage"),
    [
        (StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", Stage.PERMISSION),
        (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Stage.COMPACTED),
        (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", Stage.FUTURE),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Stage.FULL),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Stage.UNAVAILABLE),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large", Stage.TOO_LARGE),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Stage.TOO_MANY),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty", Stage.AUTHENTICATION),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Stage.UNAVAILABLE),
        (StatusCode.NOT_FOUND, "etcdserver: requested lease not found", Stage.LEASE),
        (StatusCode.FAILED_PRECONDITION, "etcdserver: role name already exists", Stage.EXISTS),
        (StatusCode.FAILED_PRECONDITION, "etcdserver: user name not found", Stage.MISSING),
        (StatusCode.UNAVAILABLE, "etcdserver: no leader", Stage.UNAVAILABLE),
        (StatusCode.INTERNAL, "Stream removed", Stage.UNAVAILABLE),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", Stage.TIMEOUT),
    ],
)
def test_an_answer_of_etcd_has_its_stage(code: StatusCode, text: str, stage: Stage) -> None:
    assert etcd_error(code, text, "https://a:1").stage is stage


def test_an_error_names_the_stage_the_reason_the_remedy_and_the_place() -> None:
    error = etcd_error(StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", "https://a:1")
    assert str(error) == "permission: permission denied; give this user a role for the key range (https://a:1)"


def test_only_a_request_that_can_never_succeed_is_hopeless() -> None:
    assert {stage for stage in Stage if KvError(stage, "").hopeless} == {Stage.TOO_LARGE, Stage.INVALID}
