"""Requests to one cluster's API. Every failure is a KubeError that says what was asked and of whom."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast

import aiohttp
import msgspec

from clustermesh.kube import diagnosis, errors
from clustermesh.kube.config import ClusterAccess
from clustermesh.kube.credentials import ExecStatus, TokenFile, expired
from clustermesh.kube.errors import AlreadyExists, Conflict, CredentialError, KubeError, NotFound, Unreachable
from clustermesh.kube.objects import KubeObject, ObjectMeta, Resource

PAGE = 500  # objects a list request asks for
_REQUEST_TIMEOUT = 30.0  # seconds
_CONNECT_TIMEOUT = 10.0  # seconds
_SILENCE = 30.0  # seconds without an event after which a server is asked whether it still lives
_APPLY_ATTEMPTS = 5
_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)
Body = KubeObject | Mapping[str, Any]


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _RawList(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


class Page(NamedTuple):
    """A part of a list; `items` are single objects in JSON, so that one bad object spoils no other."""

    items: list[msgspec.Raw]
    resource_version: str
    token: str  # continues the list; "" at its end


class KubeClient:
    """An HTTP session with one cluster's API. Use it as async context manager, or call `close`."""

    def __init__(self, access: ClusterAccess, *, request_timeout: float = _REQUEST_TIMEOUT, silence: float = _SILENCE):
        """In seconds: what a request may take, and how long a watch may be quiet before the server is asked."""
        self.access = access
        self._request_timeout = request_timeout
        self._silence = silence
        self._session: aiohttp.ClientSession | None = None
        self._token_file = TokenFile(access.token_file) if access.token_file else None
        self._credential: ExecStatus | None = None
        self._epoch: float | None = None  # the cluster's Unix time when our monotonic clock was 0
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # Reading

    async def get(self, resource: Resource[T], name: str, namespace: str | None = None) -> T:
        request = f"get {resource} {_name(name, namespace)}"
        return self._decode(resource, await self.request("GET", resource.path(namespace, name), request), request)

    async def list(
        self,
        resource: Resource[T],
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> list[T]:
        """All objects, fetched page by page as of one moment."""
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {key: value for key, value in selectors.items() if value}
        found: list[T] = []
        token = ""
        while True:
            page = await self.page(resource, namespace, token=token, query=query)
            found += [self._decode(resource, bytes(raw), f"list {resource}") for raw in page.items]
            token = page.token
            if not token:
                return found

    async def page(
        self,
        resource: Resource[T],
        namespace: str | None = None,
        *,
        token: str = "",
        limit: int = PAGE,
        query: Mapping[str, str] | None = None,
    ) -> Page:
        """One page of a list; limit 0 means everything. Expired when `token` is too old to go on."""
        parameters = dict(query or {})
        if limit:
            parameters["limit"] = str(limit)
        if token:
            parameters["continue"] = token
        request = f"list {resource}"
        body = await self.request("GET", resource.path(namespace), request, query=parameters)
        try:
            answer = msgspec.json.decode(body, type=_RawList)
        except msgspec.MsgspecError as error:
            raise KubeError(200, "Undecodable", f"{request} at {self.access.server}: {error}") from None
        return Page(answer.items or [], answer.metadata.resource_version, answer.metadata.continue_)

    @contextlib.asynccontextmanager
    async def watch(
        self, resource: Resource[T], namespace: str | None, *, resource_version: str, seconds: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Chunks of the event stream from `resource_version` on, as they arrive; lines may span chunks.

        The server ends the stream after `seconds`.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        request = f"watch {resource}"
        # Compression would hold events back until a block is full.
        headers = {"Accept-Encoding": "identity"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT)
        async with self._response(
            "GET", resource.path(namespace), request, query=query, headers=headers, timeout=timeout
        ) as response:
            yield self._chunks(response, request)

    # Writing

    async def create(self, resource: Resource[T], body: Body, namespace: str | None = None) -> T:
        document = _document(resource, body)
        namespace = namespace or document["metadata"].get("namespace")
        request = f"create {resource} {_name(document['metadata'].get('name', ''), namespace)}"
        answer = await self.request("POST", resource.path(namespace), request, body=document)
        return self._decode(resource, answer, request)

    async def replace(self, resource: Resource[T], body: Body, namespace: str | None = None) -> T:
        """Put a whole object; Conflict unless its resourceVersion is the current one (or absent)."""
        return await self._put(resource, body, namespace, None)

    async def replace_status(self, resource: Resource[T], body: Body, namespace: str | None = None) -> T:
        """Put an object's status; the rest of `body` only names the object and its resourceVersion."""
        return await self._put(resource, body, namespace, "status")

    async def merge_patch(
        self, resource: Resource[T], name: str, patch: Mapping[str, Any], namespace: str | None = None
    ) -> T:
        """JSON merge patch: null deletes a field."""
        return await self._patch(resource, name, patch, namespace, None)

    async def merge_patch_status(
        self, resource: Resource[T], name: str, status: Any, namespace: str | None = None
    ) -> T:
        """Merge `status` (a Struct or mapping) into the object's status. Keys that are left out stay as they are."""
        return await self._patch(resource, name, {"status": status}, namespace, "status")

    async def delete(
        self,
        resource: Resource[T],
        name: str,
        namespace: str | None = None,
        *,
        missing_ok: bool = False,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> None:
        """Delete an object; Conflict when `uid` or `resource_version` is given and another one is there."""
        wanted = {"uid": uid, "resourceVersion": resource_version}
        preconditions = {key: value for key, value in wanted.items() if value}
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions} if preconditions else None
        request = f"delete {resource} {_name(name, namespace)}"
        try:
            await self.request("DELETE", resource.path(namespace, name), request, body=body)
        except NotFound:
            if not missing_ok:
                raise

    async def apply(self, resource: Resource[T], body: Body, namespace: str | None = None) -> T:
        """Create the object, or make what is there equal to it; labels and annotations of others stay.

        Nothing is written when nothing differs.
        """
        wanted = _document(resource, body)
        name, namespace = wanted["metadata"]["name"], namespace or wanted["metadata"].get("namespace")
        request = f"apply {resource} {_name(name, namespace)}"
        conflict: Conflict | None = None
        for _ in range(_APPLY_ATTEMPTS):
            try:
                raw = await self.request("GET", resource.path(namespace, name), request)
                present = msgspec.json.decode(raw, type=dict[str, Any])
            except NotFound:
                try:
                    return await self.create(resource, wanted, namespace)
                except AlreadyExists as error:
                    conflict = error
                    continue
            desired = _overlay(present, wanted)
            if desired == present:
                return self._decode(resource, raw, request)
            try:
                return await self.replace(resource, desired, namespace)
            except Conflict as error:
                conflict = error
        raise cast(Conflict, conflict)

    async def apply_fields(self, resource: Resource[T], body: Body, manager: str, namespace: str | None = None) -> T:
        """Server-side apply: `manager`'s fields are these and no others; fields of other managers stay.

        Conflict when another manager has one of them with another value.
        """
        wanted = _document(resource, body)
        name, namespace = wanted["metadata"]["name"], namespace or wanted["metadata"].get("namespace")
        request = f"apply {resource} {_name(name, namespace)}"
        path, query = resource.path(namespace, name), {"fieldManager": manager}
        answer = await self.request("PATCH", path, request, query=query, body=wanted, content_type=_APPLY_PATCH)
        return self._decode(resource, answer, request)

    # The wire

    async def request(
        self,
        method: str,
        path: str,
        request: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        """One request, answered in full. `request` names it in errors: "list pods"."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if data is None else {"Content-Type": content_type}
        timeout = aiohttp.ClientTimeout(total=self._request_timeout, sock_connect=_CONNECT_TIMEOUT)
        async with self._response(
            method, path, request, query=query, data=data, headers=headers, timeout=timeout
        ) as response:
            try:
                return await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._unreachable(request, error) from None

    def now(self) -> float:
        """Unix time by the cluster's clock, to the second, as its answers tell it; by ours before the first answer.

        What a cluster has dated is compared with this one: ours may be another, and may jump.
        """
        return time.time() if self._epoch is None else self._epoch + time.monotonic()

    def _learn_time(self, date: str) -> None:
        with contextlib.suppress(ValueError):
            self._epoch = parsedate_to_datetime(date).timestamp() - time.monotonic()

    @contextlib.asynccontextmanager
    async def _response(
        self,
        method: str,
        path: str,
        request: str,
        *,
        query: Mapping[str, str] | None = None,
        data: bytes | None = None,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = await self._open()
        authorization = await self._authorization()
        try:
            response = await session.request(
                method,
                self.access.server + path,
                params=query,
                data=data,
                headers={"Accept": "application/json", **headers, **authorization},
                timeout=timeout,
                server_hostname=self.access.server_name,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(request, error) from None
        async with response:
            self._learn_time(response.headers.get("Date", ""))
            if response.status < 400:
                yield response
                return
            try:
                refusal = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._unreachable(request, error) from None
            if response.status == 401:
                await self._forget_credential()
            raise errors.from_response(
                response.status,
                refusal,
                request=request,
                server=self.access.server,
                retry_after=_seconds(response.headers.get("Retry-After")),
            )

    async def _chunks(self, response: aiohttp.ClientResponse, request: str) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    chunk = await response.content.readany()
            except TimeoutError:
                await self._check_alive()
                continue
            except (aiohttp.ClientError, OSError) as error:
                raise self._unreachable(request, error) from None
            if not chunk:
                return
            yield chunk

    async def _check_alive(self) -> None:
        """Unreachable when the server does not answer at all; TCP alone does not notice one that hangs."""
        try:
            await self.request("GET", "/version", "watch")
        except Unreachable:
            raise
        except KubeError as error:
            log.debug("the API server answers, if only with a refusal: %s", error)

    async def _put(self, resource: Resource[T], body: Body, namespace: str | None, subresource: str | None) -> T:
        document = _document(resource, body)
        name, namespace = document["metadata"]["name"], namespace or document["metadata"].get("namespace")
        request = f"replace {resource} {_name(name, namespace)}"
        answer = await self.request("PUT", resource.path(namespace, name, subresource), request, body=document)
        return self._decode(resource, answer, request)

    async def _patch(
        self, resource: Resource[T], name: str, patch: Any, namespace: str | None, subresource: str | None
    ) -> T:
        request = f"patch {resource} {_name(name, namespace)}"
        path = resource.path(namespace, name, subresource)
        answer = await self.request("PATCH", path, request, body=patch, content_type=_MERGE_PATCH)
        return self._decode(resource, answer, request)

    def _decode(self, resource: Resource[T], raw: bytes, request: str) -> T:
        try:
            return msgspec.json.decode(raw, type=resource.type)
        except msgspec.MsgspecError as error:
            raise KubeError(200, "Undecodable", f"{request} at {self.access.server}: {error}") from None

    def _unreachable(self, request: str, error: Exception) -> Unreachable:
        reason = diagnosis.why(error, self.access.context)
        return Unreachable(f"{request}: the Kubernetes API at {self.access.server} does not answer: {reason}")

    async def _open(self) -> aiohttp.ClientSession:
        async with self._lock:
            if self.access.exec_plugin and (self._credential is None or expired(self._credential, time.time())):
                await self._run_plugin()
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._tls(), socket_factory=_socket, limit=0),
                    auto_decompress=True,
                )
            return self._session

    async def _run_plugin(self) -> None:
        assert self.access.exec_plugin is not None
        before = self._credential
        self._credential = await asyncio.to_thread(self.access.exec_plugin.run)
        renewed = before is not None and (before.client_certificate_data != self._credential.client_certificate_data)
        if renewed:
            # The certificate belongs to the connections, so they are made anew.
            await self.close()

    async def _forget_credential(self) -> None:
        async with self._lock:
            if self._credential is not None and self._credential.token:
                self._credential = None

    async def _authorization(self) -> Mapping[str, str]:
        token = self.access.token
        if self._token_file is not None:
            token = self._token_file.token()
        elif self._credential is not None and self._credential.token:
            token = self._credential.token
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _tls(self) -> ssl.SSLContext | bool:
        if self.access.server.startswith("http://"):
            return False
        try:
            context = ssl.create_default_context(cadata=self.access.ca.decode() if self.access.ca else None)
            if self.access.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            certificate, key = self.access.client_certificate, self.access.client_key
            if self._credential is not None and self._credential.client_certificate_data:
                certificate = self._credential.client_certificate_data.encode()
                key = self._credential.client_key_data.encode()
            if certificate and key:
                _load_pair(context, certificate, key)
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise CredentialError(
                f"certificates of context {self.access.context!r} cannot be used: {error}:"
                " renew the kubeconfig's CA, client-certificate and client-key"
            ) from None
        return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """ssl reads only from files, so the pair passes through one that only we can read, for a moment."""
    descriptor, path = tempfile.mkstemp(prefix="clustermesh-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate + b"\n" + key)
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices within half a minute that its peer or the path to it is gone."""
    family, kind, protocol = address[:3]
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)  # milliseconds
    return made


def _document(resource: Resource[T], body: Body) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(body)
    metadata = document.get("metadata") or msgspec.to_builtins(ObjectMeta())
    return {"apiVersion": resource.api_version, "kind": resource.kind, **document, "metadata": metadata}


def _overlay(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`present` with everything but metadata and status taken from `wanted`; metadata's maps are merged."""
    metadata = dict(present["metadata"])
    for field in ("labels", "annotations"):
        if given := wanted["metadata"].get(field):
            metadata[field] = {**(metadata.get(field) or {}), **given}
    content = {key: value for key, value in wanted.items() if key not in ("metadata", "status")}
    kept = {key: value for key, value in present.items() if key in ("status", "apiVersion", "kind")}
    return {**kept, **content, "metadata": metadata}


def _name(name: str, namespace: str | None) -> str:
    return f"{namespace}/{name}" if namespace else name


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; the form with a date is not used by Kubernetes."""
    try:
        return float(header) if header else None
    except ValueError:
        return None
