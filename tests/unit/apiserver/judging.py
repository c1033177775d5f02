"""An admission whose decisions are kept in a plain mapping."""

from collections import Counter

from apiserver.admission import Admission
from apiserver.claims import Claims
from apiserver.quarantine import Quarantine
from clustermesh.kube.objects import PeerQuota
from clustermesh.wire.identity import Numbering
from clustermesh.wire.keys import Kind
from clustermesh.wire.validation import Claimant
from tests.integration.apiserver.exports import CLUSTER_ID


class Readers:
    """What the readers of a peer's records see."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Kind, str], bytes] = {}
        self.asked_again: Counter[Kind] = Counter()
        self.settlings = 0

    def put(self, kind: Kind, name: str, value: bytes) -> None:
        self.seen[kind, name] = value

    def delete(self, kind: Kind, name: str) -> None:
        del self.seen[kind, name]

    def read_again(self, kind: Kind) -> None:
        self.asked_again[kind] += 1

    def settled(self) -> None:
        self.settlings += 1


class Judged:
    """A peer's admission and its readers."""

    def __init__(
        self,
        claims: Claims | None = None,
        *,
        name: str = "red",
        cluster_id: int = CLUSTER_ID,
        strict: bool = True,
        quota: PeerQuota | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.claims = claims or Claims()
        self.readers = Readers()
        peer = Claimant(name, cluster_id, Numbering())
        self.admission = Admission(peer, self.claims, self.readers, strict=strict, quota=quota, quarantine=quarantine)

    def say(self, kind: Kind, name: str | bytes, value: bytes | None) -> str | None:
        """The peer writes a record; the reason for which it is kept out."""
        key = name.encode() if isinstance(name, str) else name
        self.admission.take(kind, key, value)
        self.admission.finish()
        return self.reason(kind, key.decode(errors="surrogateescape"))

    def reason(self, kind: Kind, name: str) -> str | None:
        refused = self.admission.quarantine.get(kind, name)
        return refused.reason if refused is not None else None

    def sees(self, kind: Kind, name: str) -> bool:
        return (kind, name) in self.readers.seen
