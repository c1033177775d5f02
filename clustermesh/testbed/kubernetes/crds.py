"""Custom resources: the catalogue of all kinds served now, built-in and from CustomResourceDefinition objects."""

from __future__ import annotations

from .cache import WatchCache, Window
from .errors import Object
from .resources import BUILTIN, CRDS, Column, Resource, Scale


def of_definition(crd: Object) -> list[Resource]:
    """The resources, one a served version, of one CustomResourceDefinition."""
    spec, names = crd["spec"], crd["spec"]["names"]
    return [
        Resource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            singular=names.get("singular") or names["kind"].lower(),
            list_kind=names.get("listKind") or "",
            status="status" in (version.get("subresources") or {}),
            scale=_scale((version.get("subresources") or {}).get("scale")),
            fields=tuple(field["jsonPath"].lstrip(".") for field in version.get("selectableFields") or ()),
            columns=tuple(
                Column(column["name"], column["type"], column["jsonPath"], column.get("priority", 0))
                for column in version.get("additionalPrinterColumns") or ()
            ),
            schema=(version.get("schema") or {}).get("openAPIV3Schema"),
            custom=True,
        )
        for version in spec["versions"]
        if version.get("served")
    ]


def _scale(subresource: Object | None) -> Scale | None:
    if subresource is None:
        return None
    selector = subresource.get("labelSelectorPath", "")
    return Scale(subresource["specReplicasPath"], subresource["statusReplicasPath"], selector)


def accepted(crd: Object, now: str) -> Object:
    """The status of a definition whose names are free: they always are here."""
    names = crd["spec"]["names"]
    conditions = [
        {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found"},
        {
            "type": "Established",
            "status": "True",
            "reason": "InitialNamesAccepted",
            "message": "the initial names have been accepted",
        },
    ]
    known = {condition["type"]: condition for condition in (crd.get("status") or {}).get("conditions") or []}
    return {
        "acceptedNames": names,
        "conditions": [
            known.get(condition["type"], condition | {"lastTransitionTime": now}) for condition in conditions
        ],
        "storedVersions": [version["name"] for version in crd["spec"]["versions"] if version.get("storage")],
    }


class Catalog:
    """All resources by group, version and plural, made anew when a definition changes."""

    def __init__(self, cache: WatchCache) -> None:
        self._cache = cache
        self._seen: tuple[Window, int] | None = None
        self._resources: dict[tuple[str, str, str], Resource] = {}

    def _all(self) -> dict[tuple[str, str, str], Resource]:
        window = self._cache.window(CRDS.prefix)
        if self._seen != (window, window.end):
            self._seen = (window, window.end)
            custom = (r for crd in self._cache.objects(CRDS.prefix).values() for r in of_definition(crd))
            self._resources = {(r.group, r.version, r.plural): r for r in (*BUILTIN, *custom)}
        return self._resources

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._all().get((group, version, plural))

    def of_prefix(self, group: str, plural: str) -> Resource | None:
        """Some version of the resource that is stored under /registry/<group>/<plural>/."""
        group = "" if group == "core" else group
        return next((r for r in self._all().values() if (r.group, r.plural) == (group, plural)), None)

    def groups(self) -> dict[str, dict[str, list[Resource]]]:
        """Resources by group and version, the core group ("") included."""
        groups: dict[str, dict[str, list[Resource]]] = {}
        for (group, version, _), resource in self._all().items():
            groups.setdefault(group, {}).setdefault(version, []).append(resource)
        return groups
