"""Discovery, version and the smallest OpenAPI documents that make kubectl leave validation to the server."""

from __future__ import annotations

from typing import Any

from .crds import Catalog
from .errors import Object
from .resources import Resource

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
VERSION: Object = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0+clustermesh-testbed",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "linux/amd64",
}

# OpenAPI v2 as kubectl reads it: protobuf Document{swagger: "2.0", info: {title: "t", version: "v"}, definitions: {}}.
OPENAPI_V2_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
OPENAPI_V2 = b"\x0a\x032.0" + b"\x12\x06\x0a\x01t\x12\x01v" + b"\x4a\x00"


def _subresources(resource: Resource) -> list[tuple[str, str, str, str]]:
    """Name, group, version and kind of each."""
    found = [("status", resource.group, resource.version, resource.kind)] if resource.status else []
    return found + ([("scale", "autoscaling", "v1", "Scale")] if resource.scale else [])


def resource_list(resources: list[Resource]) -> Object:
    """The APIResourceList of one group and version."""
    entries: list[Object] = []
    for resource in resources:
        entry: Object = {
            "name": resource.plural,
            "singularName": resource.singular or resource.kind.lower(),
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": list(resource.verbs),
        }
        if resource.short_names:
            entry["shortNames"] = list(resource.short_names)
        if resource.categories:
            entry["categories"] = list(resource.categories)
        entries.append(entry)
        for name, group, version, kind in _subresources(resource):
            sub = {
                "name": f"{resource.plural}/{name}",
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": kind,
            }
            if group != resource.group:
                sub |= {"group": group, "version": version}
            entries.append(sub | {"verbs": ["get", "patch", "update"]})
    api_version = resources[0].api_version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": entries}


def group(name: str, versions: list[str]) -> Object:
    """An APIGroup; the first version is preferred."""
    entries = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": entries, "preferredVersion": entries[0]}


def group_list(catalog: Catalog) -> Object:
    groups = [group(name, list(versions)) for name, versions in catalog.groups().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def api_versions(address: str) -> Object:
    """The answer of /api."""
    regions = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": regions}


def aggregated(catalog: Catalog, *, core: bool) -> Object:
    """APIGroupDiscoveryList of /api (`core`) or /apis."""
    items = [
        {
            "metadata": {"name": name} if name else {},
            "versions": [
                {
                    "version": version,
                    "freshness": "Current",
                    "resources": [_aggregated(resource) for resource in resources],
                }
                for version, resources in versions.items()
            ],
        }
        for name, versions in catalog.groups().items()
        if (name == "") is core
    ]
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _kind(group_name: str, version: str, kind: str) -> Object:
    return {"group": group_name, "version": version, "kind": kind}


def _aggregated(resource: Resource) -> Object:
    entry: dict[str, Any] = {
        "resource": resource.plural,
        "responseKind": _kind(resource.group, resource.version, resource.kind),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular or resource.kind.lower(),
        "verbs": list(resource.verbs),
        "shortNames": list(resource.short_names),
        "categories": list(resource.categories),
    }
    entry["subresources"] = [
        {"subresource": name, "responseKind": _kind(*kind), "verbs": ["get", "patch", "update"]}
        for name, *kind in _subresources(resource)
    ]
    return entry


def openapi_index(catalog: Catalog) -> Object:
    """The paths of OpenAPI v3: one document a group and version."""
    paths = [
        path for name, versions in catalog.groups().items() for path in (_path(name, version) for version in versions)
    ]
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in paths}}


def _path(group_name: str, version: str) -> str:
    return f"apis/{group_name}/{version}" if group_name else f"api/{version}"


def openapi(resources: list[Resource]) -> Object:
    """Says only that patches take fieldValidation: kubectl then leaves the checking of objects to the server.

    Schemas are there for custom resources only, for `kubectl explain`.
    """
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")]
    paths = {}
    for resource in resources:
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        patch = {
            "operationId": f"patch{resource.kind}",
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-group-version-kind": _kind(resource.group, resource.version, resource.kind),
        }
        paths[f"/{_path(resource.group, resource.version)}{scope}/{resource.plural}/{{name}}"] = {"patch": patch}
    schemas = {
        f"{resource.group}.{resource.version}.{resource.kind}": resource.schema
        | {"x-kubernetes-group-version-kind": [_kind(resource.group, resource.version, resource.kind)]}
        for resource in resources
        if resource.schema is not None
    }
    info = {"title": "Kubernetes", "version": "v1"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}
