"""What judging costs: microseconds a record, beside those of decoding alone."""

import gc
import time
import tracemalloc

from apiserver.admission import Admission
from apiserver.claims import Claims
from clustermesh.wire import records
from clustermesh.wire.identity import Numbering
from clustermesh.wire.keys import Kind
from clustermesh.wire.records import AddressRecord
from clustermesh.wire.validation import Claimant, node_ranges
from tests.integration.apiserver.exports import CLUSTER_ID, FIRST_IDENTITY, identity, node

NODES = 25_000
PODS = 10  # of a node


class _Nowhere:
    def put(self, kind: Kind, name: str, value: bytes) -> None: ...

    def delete(self, kind: Kind, name: str) -> None: ...

    def read_again(self, kind: Kind) -> None: ...

    def settled(self) -> None: ...


def _host(number: int) -> str:
    return f"100.64.{number >> 8}.{number & 255}"


def _cidr(number: int) -> str:
    return f"{10 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.0"


def main() -> None:
    nodes = [(f"red-{n}".encode(), node(f"red-{n}", f"{_cidr(n)}/24", _host(n))) for n in range(NODES)]
    pods = [
        (
            (ip := f"{_cidr(n)[:-1]}{pod + 2}").encode(),
            records.encode(
                AddressRecord(
                    ip, host_ip=_host(n), identity=FIRST_IDENTITY + n, namespace="default", pod_name=f"web-{n}-{pod}"
                )
            ),
        )
        for n in range(NODES)
        for pod in range(PODS)
    ]
    identities = [(str(FIRST_IDENTITY + n).encode(), identity(app=f"web-{n}")) for n in range(NODES)]
    started = time.process_time()
    for _, value in pods:
        records.decode(AddressRecord, value)
    decoding = (time.process_time() - started) / len(pods) * 1e6
    print(f"decoding an address alone: {decoding:.2f} µs")
    for strict in (True, False):
        for crowded in (False, True):
            claims = Claims()
            if crowded:
                other = node("green-1", "172.16.1.0/24", "192.0.2.71", cluster="green")
                claims.hold("green", "green-1", node_ranges(records.decode(records.Node, other)))
            red = Admission(Claimant("red", CLUSTER_ID, Numbering()), claims, _Nowhere(), strict=strict)
            gc.collect()
            gc.freeze()
            for kind, all_of_kind in ((Kind.NODES, nodes), (Kind.IDENTITIES, identities), (Kind.ADDRESSES, pods)):
                red.begin(kind)
                started = time.process_time()
                for number, (key, value) in enumerate(all_of_kind):
                    red.take(kind, key, value)
                    if number % 5000 == 0:
                        red.finish()
                red.complete(kind)
                red.finish()
                cost = (time.process_time() - started) / len(all_of_kind) * 1e6
                assert red.count(kind) == len(all_of_kind), red.quarantine.view()
                print(f"{'strict' if strict else 'lenient'} {kind}: {cost:.2f} µs a record")
            started = time.process_time()
            red.take(Kind.NODES, *nodes[7][:1], None)
            red.finish()
            print(f"one node of {NODES} goes: {(time.process_time() - started) * 1e6:.0f} µs")
    tracemalloc.start()
    claims = Claims()
    red = Admission(Claimant("red", CLUSTER_ID, Numbering()), claims, _Nowhere(), strict=True)
    for kind, all_of_kind in ((Kind.NODES, nodes), (Kind.IDENTITIES, identities), (Kind.ADDRESSES, pods)):
        before = tracemalloc.get_traced_memory()[0]
        for key, value in all_of_kind:
            red.take(kind, key, value)
        red.finish()
        print(
            f"memory of {kind}: {(tracemalloc.get_traced_memory()[0] - before) / len(all_of_kind):.0f} bytes a record"
        )


if __name__ == "__main__":
    main()
