"""The HTTP side: TLS with client certificates, paths to resources and verbs, representations, errors as Status."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError
from clustermesh.kvstore.feed import Feed

from . import discovery, errors, patching, scaling, tables
from .bodies import read_body
from .cache import ROOT, WatchCache
from .crds import Catalog
from .errors import ApiError, Object
from .lifecycle import Lifecycle
from .listing import Selection, fetch, flag, number
from .registry import DeleteOptions, Edit, Registry, WriteOptions, timestamp
from .resources import Resource
from .store import Store
from .watching import Watch, WatchOptions

log = logging.getLogger(__name__)

_OPEN_PATHS = ("/version", "/healthz", "/livez", "/readyz")
_SHUTDOWN = 0.5  # seconds that open requests get at the end


@dataclass(frozen=True)
class Target:
    """What a path means; `name` "" is the collection."""

    resource: Resource
    namespace: str
    name: str
    subresource: str


def parse_path(catalog: Catalog, path: str) -> Target:
    """Raises 404 for what is no resource's path."""
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        (group, version), rest = ("", "".join(parts[1:2])), parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        (group, version), rest = parts[1:3], parts[3:]
    else:
        raise errors.no_such_path()
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource = catalog.find(group, version, rest[0]) if 0 < len(rest) <= 3 else None
    if resource is None or (namespace and not resource.namespaced):
        raise errors.no_such_path()
    name, subresource = (*rest[1:], "", "")[:2]
    if name and resource.namespaced and not namespace:
        raise errors.no_such_path()
    known = {"": True, "status": resource.status, "scale": resource.scale is not None}
    if not known.get(subresource, False):
        raise errors.no_such_path()
    return Target(resource, namespace, name, subresource)


class ApiServer:
    """One cluster's Kubernetes API over `connection`; run `run` beside the application that `application` makes."""

    def __init__(self, connection: Connection, service_network: IPv4Network) -> None:
        self._cache = WatchCache(Feed(connection, ROOT))
        self._store = Store(connection, self._cache)
        self._catalog = Catalog(self._cache)
        self._registry = Registry(self._store, self._cache, service_network)
        self._lifecycle = Lifecycle(self._cache, self._registry, self._catalog)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cache.run())
            tasks.create_task(self._lifecycle.run())

    def application(self) -> web.Application:
        application = web.Application(client_max_size=3 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._answer)
        application.on_shutdown.append(self._end_watches)
        return application

    async def _end_watches(self, _: web.Application) -> None:
        self._cache.stop()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._route(request)
        except ApiError as error:
            return _status(error)
        except KvError as error:
            log.warning("%s %s: %s", request.method, request.path, error)
            return _status(errors.unavailable(f"etcd does not answer: {error}"))
        except msgspec.DecodeError as error:
            return _status(errors.bad_request(f"the body does not decode: {error}"))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            # There is no typed schema of the built-in kinds: what does not have their shape surfaces here.
            log.warning("%s %s failed", request.method, request.path, exc_info=True)
            return _status(errors.bad_request(f"the object does not have the expected shape: {error!r}"))

    async def _route(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/")
        if path in _OPEN_PATHS or path.startswith(("/livez/", "/readyz/")):
            return self._health(path)
        if request.transport is None or not request.transport.get_extra_info("peercert"):
            raise ApiError(401, "Unauthorized", "Unauthorized: a client certificate of this cluster's CA is needed")
        if not self._cache.synced.is_set():
            raise errors.unavailable("storage is (re)initializing")
        if (document := self._document(request, path)) is not None:
            return document
        target = parse_path(self._catalog, path)
        if target.resource.review:
            return await _review(request, target.resource)
        if target.name:
            return await self._item(request, target)
        return await self._collection(request, target)

    def _health(self, path: str) -> web.Response:
        if path == "/version":
            return _json(discovery.VERSION)
        if path.startswith("/livez") or self._cache.synced.is_set():
            return web.Response(text="ok")
        return web.Response(status=503, text="etcd has not been listed yet")

    def _document(self, request: web.Request, path: str) -> web.Response | None:
        """Discovery and OpenAPI; None if the path is neither."""
        accept = request.headers.get("Accept", "")
        groups = self._catalog.groups()
        match path.strip("/").split("/"):
            case ["api" | "apis" as root] if "as=APIGroupDiscoveryList" in accept and "v=v2;" in accept + ";":
                document = discovery.aggregated(self._catalog, core=root == "api")
                return web.Response(body=msgspec.json.encode(document), headers={"Content-Type": discovery.AGGREGATED})
            case ["api"]:
                return _json(discovery.api_versions(request.host))
            case ["apis"]:
                return _json(discovery.group_list(self._catalog))
            case ["apis", group] if group in groups:
                return _json(discovery.group(group, list(groups[group])))
            case ["api", "v1"]:
                return _json(discovery.resource_list(groups[""]["v1"]))
            case ["apis", group, version] if version in groups.get(group, ()):
                return _json(discovery.resource_list(groups[group][version]))
            case ["openapi", "v2"]:
                return web.Response(body=discovery.OPENAPI_V2, headers={"Content-Type": discovery.OPENAPI_V2_TYPE})
            case ["openapi", "v3"]:
                return _json(discovery.openapi_index(self._catalog))
            case ["openapi", "v3", "api", "v1"]:
                return _json(discovery.openapi(groups[""]["v1"]))
            case ["openapi", "v3", "apis", group, version] if version in groups.get(group, ()):
                return _json(discovery.openapi(groups[group][version]))
        return None

    async def _collection(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, query = target.resource, request.query
        if request.method == "POST":
            if resource.namespaced and not target.namespace:
                raise errors.method_not_allowed()
            item = await read_body(request, resource)
            created = await self._registry.create(resource, target.namespace, item, _write_options(request))
            return self._show(request, resource, created, status=201)
        selection = Selection.of(resource, target.namespace, query)
        if request.method == "GET" and flag(query, "watch"):
            return await self._watch(request, selection)
        if request.method == "GET":
            items, metadata = await fetch(self._store, selection, query)
            return self._show_list(request, resource, items, metadata)
        if request.method == "DELETE":
            options = await _delete_options(request)
            items, metadata = await fetch(self._store, selection, query)
            for item in items:
                where = item["metadata"].get("namespace", "")
                await self._registry.delete(resource, where, item["metadata"]["name"], options)
            return _json(resource.list_of(items, metadata))
        raise errors.method_not_allowed()

    async def _item(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, namespace, name, subresource = target.resource, target.namespace, target.name, target.subresource
        match request.method:
            case "GET":
                item = await self._registry.get(resource, namespace, name)
                if subresource == "scale":
                    return _json(scaling.of(resource, item))
                return self._show(request, resource, item)
            case "PUT":
                body = await read_body(request, resource)
                return await self._update(request, target, lambda _: body)
            case "PATCH":
                media = request.content_type
                if media == patching.APPLY:
                    return await self._apply(request, target)
                return await self._update(request, target, await _patch(request, resource))
            case "DELETE" if not subresource:
                deleted = await self._registry.delete(resource, namespace, name, await _delete_options(request))
                return _json(_success(resource, deleted.item) if deleted.gone else deleted.item)
        raise errors.method_not_allowed()

    async def _update(self, request: web.Request, target: Target, edit: Edit) -> web.Response:
        resource, options = target.resource, _write_options(request)
        if target.subresource == "scale":
            edit_scale = scaling.edit(resource, edit)
            item = await self._registry.update(resource, target.namespace, target.name, edit_scale, options)
            return _json(scaling.of(resource, item))
        item = await self._registry.update(resource, target.namespace, target.name, edit, options, target.subresource)
        return self._show(request, resource, item)

    async def _apply(self, request: web.Request, target: Target) -> web.Response:
        resource, query = target.resource, request.query
        manager = query.get("fieldManager", "")
        if not manager:
            raise errors.bad_request(
                "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch"
            )
        intent = await read_body(request, resource)

        def edit(item: Object) -> Object:
            return patching.apply(item, intent, manager, timestamp(), keyed=not resource.custom)

        try:
            return await self._update(request, target, edit)
        except ApiError as error:
            if error.code != 404 or target.subresource:
                raise
        item = edit({"metadata": {"name": target.name}})
        created = await self._registry.create(resource, target.namespace, item, _write_options(request))
        return self._show(request, resource, created, status=201)

    async def _watch(self, request: web.Request, selection: Selection) -> web.StreamResponse:
        watch = Watch(
            self._cache, self._store, selection, WatchOptions.of(request.query), _renderer(request, selection.resource)
        )
        await watch.start()
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            async for lines in watch.lines():
                await response.write(lines)
            await response.write_eof()
        except ConnectionResetError:
            log.debug("a watch of %s was left by its client", selection.resource.plural)
        return response

    def _show(self, request: web.Request, resource: Resource, item: Object, status: int = 200) -> web.Response:
        return _json(_renderer(request, resource)(item), status)

    def _show_list(
        self, request: web.Request, resource: Resource, items: list[Object], metadata: Object
    ) -> web.Response:
        accept = request.headers.get("Accept", "")
        items = [_in_version(resource, item) for item in items]
        if "as=Table" in accept:
            return _json(tables.render(resource, items, metadata, request.query.get("includeObject", "Metadata")))
        if "as=PartialObjectMetadataList" in accept:
            kind = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
            return _json(kind | {"metadata": metadata, "items": [tables.partial(item) for item in items]})
        return _json(resource.list_of(items, metadata))


def _in_version(resource: Resource, item: Object) -> Object:
    """Custom objects are stored as they were written; every version of them shows the same fields."""
    return item if item.get("apiVersion") == resource.api_version else item | {"apiVersion": resource.api_version}


def _renderer(request: web.Request, resource: Resource) -> Callable[[Object], Object]:
    """How this client wants to see one object."""
    accept = request.headers.get("Accept", "")
    if "as=Table" in accept:
        include = request.query.get("includeObject", "Metadata")

        def table(item: Object) -> Object:
            bookmark = "name" not in item["metadata"]
            metadata = {"resourceVersion": item["metadata"].get("resourceVersion", "")}
            return tables.render(resource, [] if bookmark else [_in_version(resource, item)], metadata, include)

        return table
    if "as=PartialObjectMetadata;" in accept + ";":
        return tables.partial
    return lambda item: _in_version(resource, item)


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def _status(error: ApiError) -> web.Response:
    response = _json(error.status(), error.code)
    if error.details and (seconds := error.details.get("retryAfterSeconds")):
        response.headers["Retry-After"] = str(seconds)
    return response


def _success(resource: Resource, item: Object) -> Object:
    details = {"name": item["metadata"]["name"], "kind": resource.plural, "uid": item["metadata"]["uid"]}
    if resource.group:
        details["group"] = resource.group
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _write_options(request: web.Request) -> WriteOptions:
    return WriteOptions(
        dry_run=request.query.get("dryRun") == "All",
        strict=request.query.get("fieldValidation") == "Strict",
    )


async def _delete_options(request: web.Request) -> DeleteOptions:
    body = await read_body(request, None) if request.can_read_body else {}
    grace = body.get("gracePeriodSeconds")
    if grace is None and "gracePeriodSeconds" in request.query:
        grace = number(request.query, "gracePeriodSeconds")
    policy = body.get("propagationPolicy") or request.query.get("propagationPolicy") or ""
    preconditions = body.get("preconditions") or {}
    return DeleteOptions(
        grace=grace,
        orphan=policy == "Orphan" or body.get("orphanDependents") is True,
        uid=preconditions.get("uid") or "",
        revision=preconditions.get("resourceVersion") or "",
        dry_run="All" in (body.get("dryRun") or [request.query.get("dryRun")]),
    )


async def _patch(request: web.Request, resource: Resource) -> Edit:
    media = request.content_type
    supported = (patching.JSON, patching.MERGE, patching.APPLY, *(() if resource.custom else (patching.STRATEGIC,)))
    if media not in supported:
        raise errors.unsupported_media_type(media, supported)
    patch = msgspec.json.decode(await request.read())
    if media == patching.JSON:
        return lambda item: patching.json_patch(item, patch)
    if not isinstance(patch, dict):
        raise errors.bad_request("a merge patch must be an object")
    if media == patching.MERGE:
        return lambda item: patching.merge(item, patch)
    return lambda item: patching.strategic(item, patch)


async def _review(request: web.Request, resource: Resource) -> web.Response:
    """Who asks, and yes to every question whether it may."""
    if request.method != "POST":
        raise errors.method_not_allowed()
    body = await read_body(request, resource)
    if resource.kind == "SelfSubjectReview":
        body["status"] = {"userInfo": _user(request)}
    else:
        body["status"] = {"allowed": True, "reason": "the testbed's API has no authorization"}
    return _json(body | {"kind": resource.kind, "apiVersion": resource.api_version}, 201)


def _user(request: web.Request) -> Object:
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    subject = [pair for part in (certificate or {}).get("subject", ()) for pair in part]
    name = next((value for key, value in subject if key == "commonName"), "")
    groups = [value for key, value in subject if key == "organizationName"]
    return {"username": name, "groups": [*groups, "system:authenticated"]}


def tls_context(cert: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """Serves with `cert`; a client certificate is asked for, and must be of `client_ca` if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.load_verify_locations(client_ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context


@asynccontextmanager
async def serving(server: ApiServer, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[None]:
    """Listen while the block runs."""
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=_SHUTDOWN, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
        yield
    finally:
        await runner.cleanup()
