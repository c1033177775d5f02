"""What it means to create, change and delete an object: identity, generations, conflicts, finalizers, grace."""

from __future__ import annotations

import asyncio
import copy
import secrets
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network

from . import allocation, crds, defaults, errors, schema
from .cache import WatchCache
from .errors import Object
from .resources import CRDS, NAMESPACES, PODS, SERVICES, Resource
from .store import Store

_ATTEMPTS = 10  # of a change that loses against other writers
_SYSTEM_NAMESPACES = ("default", "kube-system")
_IMMUTABLE = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
)

Edit = Callable[[Object], Object]


@dataclass(frozen=True)
class WriteOptions:
    """`strict` refuses fields that a custom resource's schema does not know, instead of dropping them."""

    dry_run: bool = False
    strict: bool = False


@dataclass(frozen=True)
class DeleteOptions:
    """`grace` in seconds, None for the object's own; `orphan` keeps the dependents."""

    grace: int | None = None
    orphan: bool = False
    uid: str = ""
    revision: str = ""
    dry_run: bool = False


@dataclass(frozen=True)
class Deleted:
    """`gone` is False while finalizers or the kubelet still hold the object."""

    item: Object
    gone: bool


def timestamp(after: float = 0.0) -> str:
    """Now, or `after` seconds from now, as Kubernetes writes it."""
    return (datetime.now(UTC) + timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Registry:
    """Semantics between the HTTP routes and the store."""

    def __init__(self, store: Store, cache: WatchCache, service_network: IPv4Network) -> None:
        self._store = store
        self._cache = cache
        self._service_network = service_network
        self._allocating = asyncio.Lock()

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        item = await self._store.get(resource.key(namespace, name))
        if item is None:
            raise resource.not_found(name)
        return item

    async def create(self, resource: Resource, namespace: str, item: Object, options: WriteOptions) -> Object:
        metadata = item.setdefault("metadata", {})
        if resource.namespaced:
            _check_namespace(metadata, namespace)
            metadata["namespace"] = namespace
            await self._check_open(resource, namespace, metadata.get("name", ""))
        else:
            metadata.pop("namespace", None)
        if metadata.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        generated = not metadata.get("name") and bool(metadata.get("generateName"))
        for _ in range(_ATTEMPTS):
            if generated:
                metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
            stored = await self._create(resource, copy.deepcopy(item), options)
            if stored is not None:
                return stored
            if not generated:
                break
        raise errors.already_exists(resource.group, resource.plural, metadata["name"])

    async def _create(self, resource: Resource, item: Object, options: WriteOptions) -> Object | None:
        metadata = item["metadata"]
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()}
        for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
            metadata.pop(field, None)
        item |= {"apiVersion": resource.api_version, "kind": resource.kind}
        if "spec" in item:
            metadata["generation"] = 1
        if resource.status and resource.kind != "Node":
            item.pop("status", None)
        _complete(resource, item, options)
        if resource is SERVICES:
            return await self._with_address(item, lambda: self._store_new(resource, item, options))
        return await self._store_new(resource, item, options)

    async def _store_new(self, resource: Resource, item: Object, options: WriteOptions) -> Object | None:
        key = resource.key_of(item)
        if options.dry_run:
            return None if await self._store.get(key) else item
        stored = await self._store.create(key, item)
        if stored is not None and resource in (CRDS, NAMESPACES):
            await self._cache.caught_up()
        return stored

    async def _with_address(self, item: Object, write: Callable[[], Awaitable[Object | None]]) -> Object | None:
        async with self._allocating:
            await self._cache.caught_up()
            others = self._cache.objects(SERVICES.prefix).values()
            allocation.complete(item, others, self._service_network)
            return await write()

    async def _check_open(self, resource: Resource, namespace: str, name: str) -> None:
        key = NAMESPACES.key("", namespace)
        found = self._cache.find(key) or await self._store.get(key)
        if found is None:
            raise NAMESPACES.not_found(namespace)
        if "deletionTimestamp" in found["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise errors.forbidden(resource.group, resource.plural, name, why)

    async def update(
        self, resource: Resource, namespace: str, name: str, edit: Edit, options: WriteOptions, subresource: str = ""
    ) -> Object:
        """Read, `edit` a copy, write if nobody was faster, else again.

        An edit that sets resourceVersion or uid is held to it: 409 if the object has another one.
        """
        for _ in range(_ATTEMPTS):
            current = await self.get(resource, namespace, name)
            wanted = edit(copy.deepcopy(current))
            _check_identity(resource, current, wanted)
            prepared = _prepare(resource, current, wanted, options, subresource)
            if prepared == current:
                return current
            if resource is SERVICES and not subresource:
                stored = await self._with_address(prepared, lambda: self._replace(resource, current, prepared, options))  # noqa: B023
            else:
                stored = await self._replace(resource, current, prepared, options)
            if stored is not None:
                return stored
        raise resource.conflict(name)

    async def _replace(self, resource: Resource, current: Object, item: Object, options: WriteOptions) -> Object | None:
        if options.dry_run:
            return item
        key, revision = resource.key_of(item), int(current["metadata"]["resourceVersion"])
        if _released(resource, item):
            return item if await self._store.delete(key, revision) else None
        stored = await self._store.update(key, item, revision)
        if stored is not None and resource is CRDS:
            await self._cache.caught_up()
        return stored

    async def delete(self, resource: Resource, namespace: str, name: str, options: DeleteOptions) -> Deleted:
        if resource is NAMESPACES and name in _SYSTEM_NAMESPACES:
            raise errors.forbidden("", "namespaces", name, "this namespace may not be deleted")
        for _ in range(_ATTEMPTS):
            current = await self.get(resource, namespace, name)
            metadata = current["metadata"]
            if options.uid and options.uid != metadata["uid"]:
                why = (
                    f"the UID in the precondition ({options.uid}) does not match the UID in record ({metadata['uid']})"
                )
                raise resource.conflict(name, why)
            if options.revision and options.revision != metadata["resourceVersion"]:
                raise resource.conflict(name)
            marked = _mark(resource, current, options.grace)
            if options.dry_run:
                return Deleted(current, True)
            if options.orphan:
                await self._orphan(metadata["uid"])
            done = await self._delete_once(resource, current, marked)
            if done is not None:
                return done
        raise resource.conflict(name)

    async def _delete_once(self, resource: Resource, current: Object, marked: Object) -> Deleted | None:
        key, revision = resource.key_of(current), int(current["metadata"]["resourceVersion"])
        if _released(resource, marked):
            return Deleted(current, True) if await self._store.delete(key, revision) else None
        if marked == current:
            return Deleted(current, False)
        stored = await self._store.update(key, marked, revision)
        if stored is not None and resource in (CRDS, NAMESPACES):
            await self._cache.caught_up()
        return None if stored is None else Deleted(stored, False)

    async def release(self, resource: Resource, name: str) -> None:
        """Take the finalizer that holds an emptied namespace or definition."""

        def edit(item: Object) -> Object:
            if resource is NAMESPACES:
                item["spec"]["finalizers"] = []
            else:
                item["metadata"]["finalizers"] = [
                    f for f in item["metadata"].get("finalizers") or [] if f != defaults.CLEANUP
                ]
            return item

        await self.update(resource, "", name, edit, WriteOptions())

    async def _orphan(self, uid: str) -> None:
        await self._cache.caught_up()
        for key in list(self._cache.dependents.get(uid, ())):
            item = await self._store.get(key)
            if item is not None:
                owners = item["metadata"].get("ownerReferences") or []
                item["metadata"]["ownerReferences"] = [owner for owner in owners if owner["uid"] != uid]
                await self._store.update(key, item, int(item["metadata"]["resourceVersion"]))


def _check_namespace(metadata: Object, namespace: str) -> None:
    if metadata.get("namespace") not in (None, "", namespace):
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )


def _check_identity(resource: Resource, current: Object, wanted: Object) -> None:
    old, new = current["metadata"], wanted.setdefault("metadata", {})
    name = old["name"]
    if new.get("name") not in (None, "", name):
        raise errors.bad_request(f"the name of the object ({new['name']}) does not match the name on the URL ({name})")
    if resource.namespaced:
        _check_namespace(new, old["namespace"])
    if new.get("uid") and new["uid"] != old["uid"]:
        why = f"Precondition failed: UID in precondition: {new['uid']}, UID in object meta: {old['uid']}"
        raise resource.conflict(name, why)
    if new.get("resourceVersion") and str(new["resourceVersion"]) != old["resourceVersion"]:
        raise resource.conflict(name)


def _prepare(resource: Resource, current: Object, wanted: Object, options: WriteOptions, subresource: str) -> Object:
    """The object to store: what this way of writing may change taken from `wanted`, the rest from `current`."""
    if subresource == "status":
        item = copy.deepcopy(current)
        item["status"] = wanted.get("status") or {}
        for field in ("labels", "annotations", "finalizers") if not resource.custom else ():
            if field in wanted["metadata"]:
                item["metadata"][field] = wanted["metadata"][field]
    else:
        item = wanted
        if resource.status:
            item.pop("status", None)
            item |= {"status": current["status"]} if "status" in current else {}
        for field in _IMMUTABLE:
            item["metadata"].pop(field, None)
        item["metadata"] |= {field: current["metadata"][field] for field in _IMMUTABLE if field in current["metadata"]}
        if resource is SERVICES:
            _keep_address(current["spec"], item.get("spec") or {})
    item |= {"apiVersion": resource.api_version, "kind": resource.kind}
    item["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"]
    _complete(resource, item, options)
    if "spec" in item and item["spec"] != current.get("spec"):
        item["metadata"]["generation"] = current["metadata"].get("generation", 0) + 1
    return item


def _keep_address(old: Object, new: Object) -> None:
    if new.get("type") == "ExternalName":
        return
    if not new.get("clusterIP") and old.get("clusterIP"):
        new["clusterIP"] = old["clusterIP"]
    old_ports = {port["port"]: port for port in old.get("ports") or []}
    if new.get("type") in ("NodePort", "LoadBalancer"):
        for port in new.get("ports") or []:
            node_port = old_ports.get(port.get("port"), {}).get("nodePort")
            if node_port and not port.get("nodePort"):
                port["nodePort"] = node_port


def _complete(resource: Resource, item: Object, options: WriteOptions) -> None:
    if resource.schema is not None:
        unknown = schema.prune(resource.schema, item)
        if unknown and options.strict:
            fields = ", ".join(f'unknown field "{field}"' for field in unknown)
            raise errors.bad_request(
                f"{resource.kind} in version {resource.version!r} cannot be handled: strict decoding error: {fields}"
            )
        schema.fill(resource.schema, item)
    defaults.apply(resource, item)
    defaults.check(resource, item)
    if resource.schema is not None and (causes := schema.check(resource.schema, item)):
        raise errors.invalid(resource.group, resource.kind, item["metadata"]["name"], causes)
    if resource is CRDS:
        item["status"] = crds.accepted(item, timestamp())


def _mark(resource: Resource, current: Object, grace: int | None) -> Object:
    """The object as a delete request leaves it, if something still holds it."""
    marked = copy.deepcopy(current)
    metadata = marked["metadata"]
    if resource is PODS:
        grace = current["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        if not current["spec"].get("nodeName") or current["status"].get("phase") in ("Succeeded", "Failed"):
            grace = 0
    else:
        grace = 0
    if "deletionTimestamp" not in metadata or grace < metadata.get("deletionGracePeriodSeconds", 0):
        metadata["deletionTimestamp"] = timestamp(grace)
        metadata["deletionGracePeriodSeconds"] = grace
    if resource is NAMESPACES:
        marked.setdefault("status", {})["phase"] = "Terminating"
    return marked


def _released(resource: Resource, item: Object) -> bool:
    """Is it marked as deleted and held by nothing?"""
    metadata = item["metadata"]
    if "deletionTimestamp" not in metadata or metadata.get("finalizers"):
        return False
    if resource is NAMESPACES and item["spec"].get("finalizers"):
        return False
    return not (resource is PODS and metadata["deletionGracePeriodSeconds"] > 0)
