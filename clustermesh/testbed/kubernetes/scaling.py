"""The scale subresource: a view of replicas, by paths, on deployments and on custom resources that declare one."""

from __future__ import annotations

from .errors import Object, bad_request
from .registry import Edit
from .resources import Resource, Scale
from .selectors import lookup, of_object


def of(resource: Resource, item: Object) -> Object:
    """The autoscaling/v1 Scale of an object."""
    scale = _paths(resource)
    selector = lookup(item, scale.selector) if scale.selector else of_object(lookup(item, "spec.selector"))
    fields = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {field: item["metadata"][field] for field in fields if field in item["metadata"]},
        "spec": {"replicas": lookup(item, scale.replicas) or 0},
        "status": {"replicas": lookup(item, scale.status) or 0, "selector": selector or ""},
    }


def edit(resource: Resource, change: Edit) -> Edit:
    """An edit of the Scale as an edit of the object."""
    scale = _paths(resource)

    def apply(item: Object) -> Object:
        wanted = change(of(resource, item))
        replicas = lookup(wanted, "spec.replicas") or 0
        if not isinstance(replicas, int) or replicas < 0:
            raise bad_request(f"spec.replicas: {replicas!r} must be a whole number, 0 or more")
        *parents, last = scale.replicas.strip(".").split(".")
        inner = item
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = replicas
        item["metadata"] |= {"resourceVersion": (wanted.get("metadata") or {}).get("resourceVersion")}
        return item

    return apply


def _paths(resource: Resource) -> Scale:
    if resource.scale is None:
        raise bad_request(f"{resource.plural} have no scale")
    return resource.scale
