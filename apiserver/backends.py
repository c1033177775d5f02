"""Which addresses the exported services lead to. No effects."""

from collections import Counter
from collections.abc import Iterable

from apiserver.services import ServiceName


class Backends:
    def __init__(self) -> None:
        self._of_service: dict[ServiceName, frozenset[str]] = {}
        self._services: Counter[str] = Counter()  # address → how many lead to it

    def set(self, name: ServiceName, addresses: Iterable[str]) -> None:
        """All that the service leads to from now on."""
        before, now = self._of_service.pop(name, frozenset()), frozenset(addresses)
        if now:
            self._of_service[name] = now
        self._services.update(now - before)
        for address in before - now:
            self._services[address] -= 1
            if not self._services[address]:
                del self._services[address]

    def none_of(self, addresses: Iterable[str]) -> bool:
        """Whether no service leads to any of these."""
        return self._services.keys().isdisjoint(addresses)
