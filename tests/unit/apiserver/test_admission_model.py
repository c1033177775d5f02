"""Whatever happens in whatever order: what is let in is what would be let in if everything were judged anew.

The model knows nothing of indexes. It looks at all records of all peers after every step, with the standard library's
networks, and says of each whether it may be in force beside the nodes that are. Only while what a restart adopted is
not judged yet, it has no say.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from apiserver.admission import Admission
from apiserver.claims import Claims
from clustermesh.kube.objects import PeerQuota
from clustermesh.wire import labels, records
from clustermesh.wire.keys import Kind
from clustermesh.wire.records import AddressRecord, Cidr, Node, NodeAddress, Port, ServiceRecord
from clustermesh.wire.validation import node_ranges
from tests.unit.apiserver.judging import Judged

N, ID, A, S = Kind.NODES, Kind.IDENTITIES, Kind.ADDRESSES, Kind.SERVICES
PEERS = {"red": 5, "blue": 6}

CIDRS = [ip_network(text) for text in ("10.0.0.0/24", "10.0.0.0/23", "10.0.1.0/24", "10.0.2.0/25", "10.0.0.128/27")]
HOSTS = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "10.0.1.1"]
PODS = ["10.0.0.5", "10.0.0.130", "10.0.1.5", "10.0.2.5", "10.0.3.5", "192.0.2.1"]
SPECIAL = [ip_network("127.0.0.0/8")]


def node(cluster: str, cluster_id: int, name: str, cidrs: list[IPv4Network], host: str) -> bytes:
    ranges = tuple(Cidr.of(cidr) for cidr in cidrs)
    return records.encode(
        Node(
            name=name,
            cluster=cluster,
            cluster_id=cluster_id,
            ip_addresses=(NodeAddress("InternalIP", host),),
            ipv4_secondary_alloc_cidrs=ranges,
        )
    )


# What a peer says: kind, name, and what makes the value of it, None for a deletion, b"{" for nonsense.
said = st.one_of(
    st.tuples(
        st.just(N),
        st.sampled_from(["n0", "n1"]),
        st.none() | st.just(b"{") | st.tuples(st.lists(st.sampled_from(CIDRS), max_size=2), st.sampled_from(HOSTS)),
    ),
    st.tuples(
        st.just(A),
        st.sampled_from(PODS),
        st.none() | st.just(b"{") | st.tuples(st.sampled_from([256, 6, 2, 0]), st.sampled_from(HOSTS)),
    ),
    st.tuples(
        st.just(S),
        st.sampled_from(["default/a", "default/b"]),
        st.none() | st.lists(st.sampled_from([*PODS, *HOSTS]), max_size=3, unique=True),
    ),
    st.tuples(st.just(ID), st.sampled_from(["1", "2", "3"]), st.none() | st.sampled_from(["a" * 50, "a" * 400])),
)
quotas = st.sampled_from(
    [PeerQuota(), PeerQuota(), PeerQuota(records=2), PeerQuota(records=4), PeerQuota(bytes=900), PeerQuota(bytes=1800)]
)
both_policies, both_quotas = st.tuples(st.booleans(), st.booleans()), st.tuples(quotas, quotas)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("restart"), st.tuples(both_policies, both_quotas)),
        st.tuples(st.just("proof"), st.integers(1, 5)),
        st.tuples(st.sampled_from(list(PEERS)), said),
        st.tuples(
            st.just("green"),
            st.tuples(
                st.sampled_from(["g0", "g1"]),
                st.none() | st.tuples(st.lists(st.sampled_from(CIDRS), max_size=1), st.sampled_from(HOSTS)),
            ),
        ),
        st.tuples(st.sampled_from(list(PEERS)), st.just("lists anew")),
    ),
    min_size=10,
    max_size=40,
)


@dataclass
class Peer:
    name: str
    strict: bool
    judged: Judged
    quota: PeerQuota
    listed: bool = True  # since the restart
    said: dict[tuple[Kind, str], bytes] = field(default_factory=dict)
    ever: dict[tuple[Kind, str], set[bytes]] = field(default_factory=dict)  # since the last deletion

    def say(self, kind: Kind, name: str, value: bytes | None) -> None:
        if value is None:
            self.said.pop((kind, name), None)
            self.ever.pop((kind, name), None)
        else:
            self.said[kind, name] = value
            self.ever.setdefault((kind, name), set()).add(value)
        self.judged.say(kind, name, value)

    def nodes(self) -> list[Node]:
        return [records.decode(Node, value) for (kind, _), value in self.judged.readers.seen.items() if kind is N]

    def ranges(self) -> list[IPv4Network]:
        return [network for node in self.nodes() for network in networks_of(node)]

    def node_addresses(self) -> set[str]:
        return {address for node in self.nodes() for address in node.addresses()}


def networks_of(node: Node) -> list[IPv4Network]:
    return [*node.pod_cidrs(), *(ip_network(address) for address in node.addresses())]  # type: ignore[list-item]


class World:
    def __init__(self, policies: dict[str, bool], quotas: dict[str, PeerQuota]) -> None:
        self.claims = Claims()
        self.green: dict[str, Node] = {}
        self.peers = {
            name: Peer(
                name,
                policies[name],
                Judged(self.claims, name=name, cluster_id=number, strict=policies[name], quota=quotas[name]),
                quotas[name],
            )
            for name, number in PEERS.items()
        }

    @property
    def is_judged(self) -> bool:
        return all(peer.listed and not peer.judged.admission.unproven for peer in self.peers.values())

    def restart(self, policies: tuple[bool, bool], limits: tuple[PeerQuota, PeerQuota]) -> None:
        """Another process finds what the readers see."""
        self.claims = Claims()
        for name, mine in self.green.items():
            self.claims.hold("green", name, node_ranges(mine))
        for peer, strict, quota in zip(self.peers.values(), policies, limits, strict=True):
            found = peer.judged.readers.seen
            peer.strict, peer.quota, peer.listed = strict, quota, False
            peer.judged = Judged(self.claims, name=peer.name, cluster_id=PEERS[peer.name], strict=strict, quota=quota)
            for kind in (N, ID, A, S):
                for (of_kind, name), value in found.items():
                    if of_kind is kind:
                        peer.judged.admission.adopt(kind, name.encode(), value)
                peer.judged.admission.finish()

    def judge_all(self) -> None:
        for peer in self.peers.values():
            if not peer.listed:
                self.list_anew(peer.judged.admission, peer)
            while peer.judged.admission.unproven:
                peer.judged.admission.prove(3)

    def step(self, who: str, what: object) -> None:
        if who == "restart":
            self.restart(*what)  # type: ignore[misc]
            return
        if who == "proof":
            for peer in self.peers.values():
                peer.judged.admission.prove(what)  # type: ignore[arg-type]
            return
        if who == "green":
            name, claimed = what  # type: ignore[misc]
            if claimed is None:
                self.green.pop(name, None)
                self.claims.release("green", name)
            else:
                self.green[name] = records.decode(Node, node("green", 7, name, *claimed))
                self.claims.hold("green", name, node_ranges(self.green[name]))
            self.claims.settle()
            return
        peer, number = self.peers[who], PEERS[who]
        if what == "lists anew":
            self.list_anew(peer.judged.admission, peer)
            return
        kind, name, made = what  # type: ignore[misc]
        value: bytes | None
        if kind is ID:
            name = str((number << 16) + int(name))
            value = records.encode_identity({labels.CLUSTER: who, "k8s:app": made}) if made is not None else None
        elif made is None or isinstance(made, bytes):
            value = made
        elif kind is N:
            value = node(who, number, name, *made)
        elif kind is A:
            identity, host = made
            value = records.encode(
                AddressRecord(name, host_ip=host, identity=(number << 16) + 1 if identity == 256 else identity)
            )
        else:
            value = records.encode(
                ServiceRecord(
                    cluster=who,
                    cluster_id=number,
                    namespace="default",
                    name=name.partition("/")[2],
                    backends={ip: {"": Port("TCP", 80)} for ip in made},
                )
            )
        peer.say(kind, name, value)

    @staticmethod
    def list_anew(admission: Admission, peer: Peer) -> None:
        for kind in (N, ID, A, S):
            admission.begin(kind)
            for (of_kind, name), value in list(peer.said.items()):
                if of_kind is kind:
                    admission.take(kind, name.encode(), value)
            admission.complete(kind)
            admission.finish()
        peer.listed = True

    def strangers(self, peer: Peer) -> list[IPv4Network]:
        found = [network for node in self.green.values() for network in networks_of(node)]
        for other in self.peers.values():
            if other is not peer:
                found += other.ranges()
        return found + SPECIAL

    def strays(self, peer: Peer) -> set[str]:
        """Addresses that other lenient peers have outside of their ranges."""
        return {
            name
            for other in self.peers.values()
            if other is not peer and not other.strict
            for kind, name in other.judged.readers.seen
            if kind is A and not any(ip_address(name) in network for network in other.ranges())
        }

    def allowed(self, peer: Peer, kind: Kind, value: bytes) -> bool:
        strangers = self.strangers(peer)
        mine = peer.ranges()

        def inside(address: str, networks: list[IPv4Network]) -> bool:
            return any(ip_address(address) in network for network in networks)

        def foreign(address: str) -> bool:
            return inside(address, strangers) or (address in self.strays(peer) and not inside(address, mine))

        if value == b"{":
            return False
        if kind is ID:
            return True
        if kind is N:
            return not any(a.overlaps(b) for a in networks_of(records.decode(Node, value)) for b in strangers)
        if kind is A:
            record = records.decode(AddressRecord, value)
            if foreign(record.ip):
                return False
            if not peer.strict:
                return not foreign(record.host_ip)
            if record.identity >= 256 or record.identity == 0:
                fits = inside(record.ip, mine)
            else:
                fits = record.identity == 6 and record.ip in peer.node_addresses()
            return fits and record.host_ip in peer.node_addresses()
        backends = records.decode(ServiceRecord, value).backends
        return not any(foreign(ip) or (peer.strict and not inside(ip, mine)) for ip in backends)

    def check(self) -> None:
        for peer in self.peers.values():
            seen, usage = peer.judged.readers.seen, peer.judged.admission.usage
            for (kind, name), value in seen.items():
                assert value in peer.ever[kind, name]
                assert self.allowed(peer, kind, value), f"{peer.name}: {kind}/{name} is in force"
            kept_out = {ref: value for ref, value in peer.said.items() if seen.get(ref) != value}
            for ref, value in kept_out.items():
                reason = peer.judged.reason(*ref)
                assert reason is not None
                if "quota" in reason:
                    before = seen.get(ref)
                    full = before is None and usage.records >= peer.quota.records
                    grows = len(value) - len(before) if before is not None else len(value) + len(ref[1])
                    assert full or usage.bytes + grows > peer.quota.bytes
                else:
                    assert not self.allowed(peer, ref[0], value), f"{peer.name}: {ref} is kept out: {reason}"
            assert peer.judged.admission.quarantine.view().total == len(kept_out)
            assert usage.records == len(seen) <= peer.quota.records
            assert usage.bytes == sum(len(name) + len(value) for (_, name), value in seen.items()) <= peer.quota.bytes
            accepted = {name: node_ranges(records.decode(Node, v)) for (kind, name), v in seen.items() if kind is N}
            assert {name: set(held) for name, held in self.claims.nodes(peer.name).items()} == {
                name: set(held) for name, held in accepted.items()
            }


@settings(max_examples=300, deadline=None)
@given(both_policies, both_quotas, steps)
def test_what_is_in_force_is_what_judging_everything_anew_would_let_in(
    policies: tuple[bool, bool], limits: tuple[PeerQuota, PeerQuota], sequence: list[tuple[str, object]]
) -> None:
    world = World(dict(zip(PEERS, policies, strict=True)), dict(zip(PEERS, limits, strict=True)))
    for who, what in sequence:
        world.step(who, what)
        if world.is_judged:
            world.check()
    world.judge_all()
    world.check()
    # Gone without a trace: no index keeps what nobody says any more.
    for peer in world.peers.values():
        for kind, name in list(peer.said):
            peer.say(kind, name, None)
        admission = peer.judged.admission
        assert not list(admission._mentions()) and not admission._blocking and not admission._line
        assert not any(admission._mentioned._levels.values())
        assert admission.usage.bytes == 0
