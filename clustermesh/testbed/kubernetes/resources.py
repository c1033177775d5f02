"""What kinds of objects there are: the built-in ones here, custom ones are made of the same `Resource` by `crds`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import errors
from .errors import ApiError, Object

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Scale:
    """Paths of the scale subresource; `selector` "" takes the label selector of `spec.selector`."""

    replicas: str = ".spec.replicas"
    status: str = ".status.replicas"
    selector: str = ""


@dataclass(frozen=True)
class Column:
    """A printer column of a custom resource (additionalPrinterColumns)."""

    name: str
    type: str
    path: str
    priority: int = 0


@dataclass(frozen=True)
class Resource:
    """One kind in one version. `fields` are the field selectors it supports besides metadata.name and .namespace."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    status: bool = False
    scale: Scale | None = None
    fields: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    singular: str = ""
    list_kind: str = ""
    review: bool = False
    custom: bool = False
    columns: tuple[Column, ...] = ()
    schema: dict[str, Any] | None = None

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def prefix(self) -> str:
        """The etcd prefix of all its objects, whatever their version."""
        return f"/registry/{self.group or 'core'}/{self.plural}/"

    @property
    def verbs(self) -> tuple[str, ...]:
        return ("create",) if self.review else VERBS

    def key(self, namespace: str, name: str) -> str:
        return f"{self.prefix}{namespace}/{name}" if self.namespaced else self.prefix + name

    def key_of(self, item: Object) -> str:
        """Where etcd keeps `item`."""
        return self.key(item["metadata"].get("namespace", ""), item["metadata"]["name"])

    def list_of(self, items: list[Any], metadata: Object) -> Object:
        kind = self.list_kind or self.kind + "List"
        return {"kind": kind, "apiVersion": self.api_version, "metadata": metadata, "items": items}

    def not_found(self, name: str) -> ApiError:
        return errors.not_found(self.group, self.plural, name)

    def conflict(self, name: str, why: str = "") -> ApiError:
        return errors.conflict(self.group, self.plural, name, why)


_POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.hostNetwork",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)
_EVENT_FIELDS = (
    *(
        f"involvedObject.{f}"
        for f in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    ),
    "reason",
    "reportingComponent",
    "source",
    "type",
)
_RBAC = "rbac.authorization.k8s.io"

BUILTIN: tuple[Resource, ...] = (
    Resource("", "v1", "namespaces", "Namespace", False, ("ns",), status=True, fields=("status.phase",)),
    Resource("", "v1", "pods", "Pod", True, ("po",), status=True, fields=_POD_FIELDS, categories=("all",)),
    Resource(
        "",
        "v1",
        "services",
        "Service",
        True,
        ("svc",),
        status=True,
        fields=("spec.clusterIP", "spec.type"),
        categories=("all",),
    ),
    Resource("", "v1", "endpoints", "Endpoints", True, ("ep",), list_kind="EndpointsList", singular="endpoints"),
    Resource("", "v1", "nodes", "Node", False, ("no",), status=True, fields=("spec.unschedulable",)),
    Resource("", "v1", "secrets", "Secret", fields=("type",)),
    Resource("", "v1", "configmaps", "ConfigMap", True, ("cm",)),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", True, ("sa",)),
    Resource("", "v1", "events", "Event", True, ("ev",), fields=_EVENT_FIELDS),
    Resource(
        "apps", "v1", "deployments", "Deployment", True, ("deploy",), status=True, scale=Scale(), categories=("all",)
    ),
    Resource("apps", "v1", "replicasets", "ReplicaSet", True, ("rs",), status=True, scale=Scale(), categories=("all",)),
    Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True, ("netpol",)),
    Resource("coordination.k8s.io", "v1", "leases", "Lease"),
    Resource(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        False,
        ("crd", "crds"),
        status=True,
    ),
    Resource(_RBAC, "v1", "roles", "Role"),
    Resource(_RBAC, "v1", "rolebindings", "RoleBinding"),
    Resource(_RBAC, "v1", "clusterroles", "ClusterRole", False),
    Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False),
    Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", False, review=True),
    Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False, review=True),
    Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", False, review=True),
)


def builtin(plural: str, group: str = "") -> Resource:
    """The built-in resource of that name; KeyError if there is none."""
    return _BY_NAME[group, plural]


_BY_NAME = {(resource.group, resource.plural): resource for resource in BUILTIN}
NAMESPACES = builtin("namespaces")
PODS = builtin("pods")
SERVICES = builtin("services")
SERVICE_ACCOUNTS = builtin("serviceaccounts")
CRDS = builtin("customresourcedefinitions", "apiextensions.k8s.io")
