"""Which namespaces take part in the mesh. No effects.

Nothing of the others is told to peers: no service, no address, no identity.
"""

from clustermesh.kube.objects import Namespace, ObjectRef

GLOBAL = "clustermesh.cilium.io/global"


class Namespaces:
    """`default`: what holds for a namespace that does not say."""

    def __init__(self, *, default: bool = True) -> None:
        self._default = default
        self._global: dict[str, bool] = {}

    def says(self, namespace: Namespace) -> bool:
        """Whether the object asks to be global. An annotation that is not "true" in any case says no."""
        annotation = (namespace.metadata.annotations or {}).get(GLOBAL)
        return self._default if annotation is None else annotation.lower() == "true"

    def is_global(self, name: str) -> bool:
        """As last set; of an unknown namespace nothing is exported."""
        return self._global.get(name, False)

    def set(self, namespace: Namespace) -> bool:
        """Whether it changed."""
        before, now = self._global.get(namespace.name), self.says(namespace)
        self._global[namespace.name] = now
        return before != now

    def remove(self, ref: ObjectRef) -> None:
        self._global.pop(ref.name, None)
