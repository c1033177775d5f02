"""Which addresses of the own cluster are pods of this node."""

from collections.abc import Mapping

from nodeagent.tables.ranked import Changes


class LocalPods:
    """Addresses by the node that holds them. This node's own addresses may become known after its pods'."""

    def __init__(self) -> None:
        self._by_host: dict[str, dict[str, int]] = {}
        self._host_of: dict[str, str] = {}
        self._here: frozenset[str] = frozenset()

    @property
    def entries(self) -> Mapping[str, int]:
        """Address → identity of this node's pods."""
        return {ip: identity for host in self._here for ip, identity in self._by_host.get(host, {}).items()}

    def put(self, ip: str, host: str, identity: int | None) -> Changes[str, int]:
        """An address, its node's address, its identity (None: the address is gone)."""
        changes: Changes[str, int] = []
        before = self._host_of.get(ip)
        if before is not None and (identity is None or before != host):
            pods = self._by_host[before]
            del pods[ip], self._host_of[ip]
            if not pods:
                del self._by_host[before]
            if before in self._here:
                changes.append((ip, None))
        if identity is not None:
            self._host_of[ip] = host
            self._by_host.setdefault(host, {})[ip] = identity
            if host in self._here:
                changes.append((ip, identity))
        return changes

    def move(self, here: frozenset[str]) -> Changes[str, int]:
        """This node's addresses are now `here`."""
        before = self.entries
        self._here = here
        after = self.entries
        return [(ip, None) for ip in before if ip not in after] + [
            (ip, identity) for ip, identity in after.items() if before.get(ip) != identity
        ]
