"""From pods and namespaces to addresses with identities."""

import pytest

from apiserver.addresses import AddressChange, pod_addresses
from apiserver.cluster import ClusterIdentity
from apiserver.pods import PodTable
from clustermesh.kube.objects import Namespace, ObjectMeta, Pod, PodIP, PodSpec, PodStatus

RED = ClusterIdentity("red", 1)
NAMESPACE = Namespace(metadata=ObjectMeta(name="demo", labels={"team": "shop"}))


def pod(
    name: str,
    ip: str = "10.1.1.5",
    *,
    uid: str = "",
    app: str = "web",
    phase: str = "Running",
    host_network: bool = False,
) -> Pod:
    return Pod(
        metadata=ObjectMeta(name=name, namespace="demo", uid=uid or name, labels={"app": app}),
        spec=PodSpec(node_name="red-1", service_account_name="default", host_network=host_network),
        status=PodStatus(phase=phase, pod_ip=ip, pod_ips=(PodIP(ip),) if ip else None, host_ip="10.128.1.11"),
    )


class Numbers(dict[str, int]):
    """A stand-in for the allocator: every set of labels gets the next number when asked to."""

    def grant(self, text: str) -> str:
        self[text] = 65792 + len(self)
        return text


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def table(numbers: Numbers) -> PodTable:
    table = PodTable(RED, numbers.get)
    table.set_namespace(NAMESPACE)
    return table


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pod("a"), ("10.1.1.5",)),
        (pod("a", phase="Pending"), ("10.1.1.5",)),
        (pod("a", ip=""), ()),
        (pod("a", phase="Succeeded"), ()),
        (pod("a", phase="Failed"), ()),
        (pod("a", host_network=True), ()),
        (pod("a", ip="fd00::0:5"), ("fd00::5",)),
    ],
)
def test_only_pods_with_an_address_of_their_own_are_reachable(given: Pod, expected: tuple[str, ...]) -> None:
    assert pod_addresses(given) == expected


def test_a_pod_waits_for_its_number_and_then_appears(table: PodTable, numbers: Numbers) -> None:
    changes = table.set_pod(pod("a"))
    (wanted,) = changes.wanted
    assert "k8s:app=web;" in wanted
    assert "k8s:io.cilium.k8s.namespace.labels.team=shop;" in wanted
    assert changes.addresses == ()
    (change,) = table.numbered(numbers.grant(wanted)).addresses
    assert change.record is not None
    assert (change.ip, change.record.identity, change.record.host_ip) == ("10.1.1.5", 65792, "10.128.1.11")
    assert table.uses(65792)
    assert not table.waiting


def test_a_second_pod_with_the_same_labels_costs_one_change(table: PodTable, numbers: Numbers) -> None:
    (wanted,) = table.set_pod(pod("a")).wanted
    table.numbered(numbers.grant(wanted))
    changes = table.set_pod(pod("b", "10.1.1.6"))
    assert [change.ip for change in changes.addresses] == ["10.1.1.6"]
    assert not changes.wanted
    assert not table.set_pod(pod("b", "10.1.1.6")).addresses


def test_pods_of_an_unknown_namespace_wait_for_it(numbers: Numbers) -> None:
    table = PodTable(RED, numbers.get)
    assert not table.set_pod(pod("a")).wanted
    assert len(table.set_namespace(NAMESPACE).wanted) == 1


def test_new_labels_of_a_namespace_give_its_pods_another_identity(table: PodTable, numbers: Numbers) -> None:
    (wanted,) = table.set_pod(pod("a")).wanted
    table.numbered(numbers.grant(wanted))
    (renewed,) = table.set_namespace(Namespace(metadata=ObjectMeta(name="demo", labels={"team": "bank"}))).wanted
    assert table.uses(65792), "the old identity holds until the new one has a number"
    (change,) = table.numbered(numbers.grant(renewed)).addresses
    assert change.record is not None
    assert change.record.identity == 65793
    assert not table.uses(65792)


def test_an_address_stays_with_its_first_owner_until_that_one_lets_go(table: PodTable, numbers: Numbers) -> None:
    (wanted,) = table.set_pod(pod("a")).wanted
    table.numbered(numbers.grant(wanted))
    assert table.set_pod(pod("b")).addresses == ()
    (change,) = table.remove_pod(pod("a").ref).addresses
    assert change.record is not None
    assert change.record.pod_name == "b"
    assert table.remove_pod(pod("b").ref).addresses == (AddressChange("10.1.1.5", None),)
    assert not table.uses(65792)


def test_a_finished_pod_frees_its_address(table: PodTable, numbers: Numbers) -> None:
    (wanted,) = table.set_pod(pod("a")).wanted
    table.numbered(numbers.grant(wanted))
    assert table.set_pod(pod("a", phase="Succeeded")).addresses == (AddressChange("10.1.1.5", None),)


def test_a_pod_made_anew_under_its_name_replaces_the_old_one(table: PodTable, numbers: Numbers) -> None:
    (wanted,) = table.set_pod(pod("a", uid="1")).wanted
    table.numbered(numbers.grant(wanted))
    gone, come = table.set_pod(pod("a", "10.1.1.7", uid="2")).addresses
    assert gone == AddressChange("10.1.1.5", None)
    assert come.ip == "10.1.1.7"
    assert table.remove_pod(pod("a", uid="1").ref).addresses == (), "an old deletion does not touch the new pod"


def test_a_pod_that_goes_while_it_waits_is_not_exported(table: PodTable, numbers: Numbers) -> None:
    (wanted,) = table.set_pod(pod("a")).wanted
    table.remove_pod(pod("a").ref)
    assert not table.waiting
    assert table.numbered(numbers.grant(wanted)).addresses == ()
