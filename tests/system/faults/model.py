"""What the source should hold: a cluster that changes at random, and always only as a real one could.

Nothing here knows what becomes of a record. Some nodes, pods and services never change: whatever happens, nobody may
lose them for a moment.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from random import Random
from typing import TypeVar

from clustermesh.wire import labels, records
from clustermesh.wire.records import AddressRecord, Cidr, Node, NodeAddress, Port, ServiceRecord

CLUSTER, CLUSTER_ID = "red", 5
NODES, IDENTITIES, PODS, SERVICES = 60, 120, 2500, 50
LASTING_NODES, LASTING_IDENTITIES, LASTING_PODS, LASTING_SERVICES = 6, 10, 200, 5
PORT = 8080

STATE = "cilium/state"
Changed = dict[str, bytes | None]
T = TypeVar("T")


@dataclass
class Host:
    ip: str
    cidr: str
    generation: int = 0


@dataclass
class Pod:
    identity: int
    node: str
    name: str


@dataclass
class Model:
    """`records`: state key → value, all that readers should end with.

    `malformed`: what they should never take. `spoilt`: values that hide a record until the next change of it.
    """

    random: Random
    nodes: dict[str, Host] = field(default_factory=dict)
    identities: dict[int, str] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    services: dict[str, tuple[str, ...]] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)
    malformed: dict[str, bytes] = field(default_factory=dict)
    spoilt: dict[str, bytes] = field(default_factory=dict)
    changes: int = 0

    def __post_init__(self) -> None:
        for number in range(NODES):
            self._put_node(number)
        for _ in range(IDENTITIES):
            self._new_identity()
        # The lasting pods have lasting nodes and identities.
        for number in range(PODS):
            lasting = number < LASTING_PODS
            node = list(self.nodes)[number % (LASTING_NODES if lasting else NODES)]
            identity = list(self.identities)[number % (LASTING_IDENTITIES if lasting else IDENTITIES)]
            self._put_pod(self._free_address(node), Pod(identity, node, f"pod-{number}"))
        self.lasting_pods = list(self.pods)[:LASTING_PODS]
        for number in range(SERVICES):
            self._put_service(f"service-{number}", self.lasting_pods[number : number + 3])

    @property
    def wanted(self) -> Mapping[str, bytes]:
        """What the source holds, good and bad."""
        return self.records | self.malformed | self.spoilt

    def mend(self) -> Changed:
        """Give every record its good value back."""
        mended: Changed = {key: self.records[key] for key in self.spoilt}
        self.spoilt.clear()
        return mended

    def change(self) -> Changed:
        """Change something; returns the keys in the order in which a real exporter writes them."""
        self.changes += 1
        kinds: list[tuple[Callable[[], Changed], int]] = [
            (self._pod_appears, 45 if len(self.pods) < PODS else 20),
            (self._pod_goes, 15 if len(self.pods) < PODS else 35),
            (self._pod_changes, 20),
            (self._address_moves, 15),
            (self._service_changes, 8),
            (self._service_comes_or_goes, 3),
            (self._identity_comes, 3),
            (self._identity_goes, 3),
            (self._node_changes, 2),
            (self._node_comes_or_goes, 1),
            (self._nonsense, 1),
            (self._spoil, 1),
        ]
        (act,) = self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
        return act()

    # Changes

    def _pod_appears(self) -> Changed:
        node = self._any(self.nodes)
        return self._put_pod(self._free_address(node), Pod(self._any(self.identities), node, f"pod-{self.changes}"))

    def _pod_goes(self) -> Changed:
        ip = self._passing_pod()
        return self._forget_backend(ip) | self._drop_pod(ip)

    def _pod_changes(self) -> Changed:
        ip = self._passing_pod()
        before = self.pods[ip]
        return self._put_pod(ip, Pod(self._any(self.identities), before.node, before.name))

    def _address_moves(self) -> Changed:
        """To another pod, perhaps on another node."""
        ip = self._passing_pod()
        node = self.random.choice([self.pods[ip].node, self._any(self.nodes)])
        return self._put_pod(ip, Pod(self._any(self.identities), node, f"pod-{self.changes}"))

    def _service_changes(self) -> Changed:
        name = self.random.choice(list(self.services)[LASTING_SERVICES:])
        return self._put_service(name, self.random.sample(list(self.pods), self.random.randrange(6)))

    def _service_comes_or_goes(self) -> Changed:
        number = self.random.randrange(LASTING_SERVICES, SERVICES)
        name = f"service-{number}"
        if name not in self.services:
            return self._put_service(name, self.random.sample(list(self.pods), 3))
        del self.services[name]
        return self._drop(_service_key(name))

    def _identity_comes(self) -> Changed:
        return self._new_identity()

    def _identity_goes(self) -> Changed:
        """Its pods get another one first."""
        number = self.random.choice(list(self.identities)[LASTING_IDENTITIES:])
        text = self.identities.pop(number)
        if len(self.identities) < IDENTITIES // 2:
            self.identities[number] = text
            return {}
        changed: Changed = {}
        for ip, pod in self.pods.items():
            if pod.identity == number:
                changed |= self._put_pod(ip, Pod(self._any(self.identities), pod.node, pod.name))
        return changed | self._drop(f"{STATE}/identities/v1/id/{number}")

    def _node_changes(self) -> Changed:
        """Another address: its pods are behind that one from now on."""
        name = self._passing_node()
        host = self.nodes[name]
        number = int(name.removeprefix(f"{CLUSTER}-"))
        changed = self._put_node(number, host.generation + 1)
        for ip, pod in self.pods.items():
            if pod.node == name:
                changed |= self._put_pod(ip, pod)
        return changed

    def _node_comes_or_goes(self) -> Changed:
        missing = [n for n in range(NODES) if f"{CLUSTER}-{n}" not in self.nodes]
        if missing and self.random.random() < 0.8:
            return self._put_node(missing[0], self.changes % 200)
        name = self._passing_node()
        cidr = ip_network(self.nodes[name].cidr)
        changed: Changed = {}
        # Addresses that moved away from it lie in its range still, and go as well.
        gone = [ip for ip, pod in self.pods.items() if pod.node == name or ip_network(ip).subnet_of(cidr)]
        for ip in gone:
            changed |= self._forget_backend(ip)
        for ip in gone:
            changed |= self._drop_pod(ip)
        del self.nodes[name]
        return changed | self._drop(_node_key(name))

    def _nonsense(self) -> Changed:
        """A record that nobody should take: of no form, of another cluster, or of a pod that does not exist there."""
        if len(self.malformed) > 20:
            key = self.random.choice(list(self.malformed))
            del self.malformed[key]
            return {key: None}
        strange = f"10.99.0.{self.changes % 250 + 1}"
        foreign = {"ip": strange, "host_ip": "192.0.2.1"}
        key, value = self.random.choice(
            [
                (_address_key(strange), b'{"IP": "' + strange.encode()),
                (_address_key(strange), records.encode(AddressRecord(**foreign, identity=9 << 16 | 7))),
                (_address_key(strange), records.encode(AddressRecord(**foreign, identity=self._any(self.identities)))),
                (f"{STATE}/identities/v1/id/{9 << 16 | self.changes % 999}", b"k8s:app=theirs;"),
                (_node_key(f"strange-{self.changes % 99}"), b"null"),
                (_service_key(f"strange-{self.changes % 99}"), b"\xff\xfe"),
            ]
        )
        self.malformed[key] = value
        return {key: value}

    def _spoil(self) -> Changed:
        key = _address_key(self._passing_pod())
        self.spoilt[key] = b'{"IP": 7}'
        return {key: self.spoilt[key]}

    # Records

    def _put_node(self, number: int, generation: int = 0) -> Changed:
        name = f"{CLUSTER}-{number}"
        host = self.nodes[name] = Host(f"192.0.{2 + generation % 200}.{number + 1}", f"10.5.{number}.0/24", generation)
        record = Node(
            name=name,
            cluster=CLUSTER,
            cluster_id=CLUSTER_ID,
            ip_addresses=(NodeAddress("InternalIP", host.ip),),
            ipv4_alloc_cidr=Cidr.of(ip_network(host.cidr)),
        )
        return self._keep(_node_key(name), records.encode(record))

    def _new_identity(self) -> Changed:
        number = CLUSTER_ID << 16 | len(self.identities) + 1
        while number in self.identities:
            number += 1
        self.identities[number] = f"app-{number}-{self.changes}"
        text = records.encode_identity({labels.CLUSTER: CLUSTER, "k8s:app": self.identities[number]})
        return self._keep(f"{STATE}/identities/v1/id/{number}", text)

    def _put_pod(self, ip: str, pod: Pod) -> Changed:
        self.pods[ip] = pod
        record = AddressRecord(
            ip, host_ip=self.nodes[pod.node].ip, identity=pod.identity, namespace="default", pod_name=pod.name
        )
        return self._keep(_address_key(ip), records.encode(record))

    def _drop_pod(self, ip: str) -> Changed:
        del self.pods[ip]
        return self._drop(_address_key(ip))

    def _put_service(self, name: str, backends: list[str] | tuple[str, ...]) -> Changed:
        self.services[name] = tuple(backends)
        record = ServiceRecord(
            cluster=CLUSTER,
            namespace="default",
            name=name,
            frontends={"10.98.0.1": {"http": Port("TCP", 80)}},
            backends={ip: {"http": Port("TCP", PORT)} for ip in backends},
            cluster_id=CLUSTER_ID,
        )
        return self._keep(_service_key(name), records.encode(record))

    def _forget_backend(self, ip: str) -> Changed:
        changed: Changed = {}
        for name, backends in list(self.services.items()):
            if ip in backends:
                changed |= self._put_service(name, [backend for backend in backends if backend != ip])
        return changed

    def _keep(self, key: str, value: bytes) -> Changed:
        self.spoilt.pop(key, None)
        self.records[key] = value
        return {key: value}

    def _drop(self, key: str) -> Changed:
        self.spoilt.pop(key, None)
        del self.records[key]
        return {key: None}

    # Choices

    def _any(self, among: Mapping[T, object]) -> T:
        return self.random.choice(list(among))

    def _passing_pod(self) -> str:
        return self.random.choice(list(self.pods)[LASTING_PODS:])

    def _passing_node(self) -> str:
        return self.random.choice(list(self.nodes)[LASTING_NODES:])

    def _free_address(self, node: str) -> str:
        base = self.nodes[node].cidr.removesuffix("0/24")
        while True:
            ip = f"{base}{self.random.randrange(1, 255)}"
            if ip not in self.pods:
                return ip


def _address_key(ip: str) -> str:
    return f"{STATE}/ip/v1/default/{ip}"


def _node_key(name: str) -> str:
    return f"{STATE}/nodes/v1/{CLUSTER}/{name}"


def _service_key(name: str) -> str:
    return f"{STATE}/services/v1/{CLUSTER}/default/{name}"
