"""One gRPC channel to one etcd member with one set of credentials, and the meaning of its errors.

A Session never changes. When credentials change or the member fails, the Connection retires it and makes another;
a retired session serves the calls that are under way and closes behind the last of them.
"""

import asyncio
import ssl
from collections.abc import Awaitable
from typing import Any

import grpc
from grpc import StatusCode
from grpc.aio import AioRpcError

from clustermesh.kvstore.diagnosis import diagnose
from clustermesh.kvstore.endpoint import Endpoint
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.rpc import etcd_pb2_grpc
from clustermesh.kvstore.tls import TlsPem, client_context

# Bytes of an answer, ten times what a page of ordinary records takes. A page that would be larger is read in pieces.
LARGEST_ANSWER = 32 << 20

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without this one the C core waits 60 s for a ping's answer, whatever keepalive_timeout_ms says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # How long one attempt to connect may take, despite its name.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A new session must not inherit the back-off or the connection of an old one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

_END_OF_STREAM: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs

# Calls that fail together share one diagnosis for this long, in seconds.
_DIAGNOSIS_HOLDS = 1.0

_BY_CODE = {
    StatusCode.PERMISSION_DENIED: Stage.PERMISSION,
    StatusCode.UNAUTHENTICATED: Stage.AUTHENTICATION,
    StatusCode.INVALID_ARGUMENT: Stage.INVALID,
    StatusCode.DEADLINE_EXCEEDED: Stage.TIMEOUT,
    StatusCode.UNIMPLEMENTED: Stage.UNSUPPORTED,
}

# Parts of etcd's error texts that say more than their gRPC code does.
_BY_TEXT = (
    ("has been compacted", Stage.COMPACTED),
    ("future revision", Stage.FUTURE),
    ("lease not found", Stage.LEASE),
    ("already exist", Stage.EXISTS),
    ("not found", Stage.MISSING),
    ("not granted", Stage.MISSING),
    ("space exceeded", Stage.FULL),
    ("too many operations", Stage.TOO_MANY),
    ("request is too large", Stage.TOO_LARGE),
    ("larger than max", Stage.TOO_LARGE),
    ("user name is empty", Stage.AUTHENTICATION),
    ("authentication failed", Stage.AUTHENTICATION),
    ("auth store is old", Stage.UNAVAILABLE),
)

_REMEDIES = {
    Stage.PERMISSION: "give this user a role for the key range",
    Stage.AUTHENTICATION: "etcd takes the user from the certificate's common name",
    Stage.FULL: "compact and defragment etcd or raise its quota, then disarm the alarm",
    Stage.TOO_MANY: "raise etcd's --max-txn-ops",
    Stage.TOO_LARGE: "split the value or raise etcd's --max-request-bytes",
}


def stage_of(code: StatusCode, text: str) -> Stage:
    """The stage that a gRPC status from an etcd stands for."""
    for part, stage in _BY_TEXT:
        if part in text:
            return stage
    return _BY_CODE.get(code, Stage.UNAVAILABLE)


def etcd_error(code: StatusCode, text: str, endpoint: str) -> KvError:
    """What etcd itself answered, as our error with its remedy."""
    stage = stage_of(code, text)
    reason = text.removeprefix("etcdserver: ") or code.name
    remedy = _REMEDIES.get(stage)
    return KvError(stage, f"{reason}; {remedy}" if remedy else reason, endpoint)


class Session:
    """A channel and its stubs; once `leave` is set, new calls and long-lived streams should go elsewhere."""

    def __init__(self, endpoint: Endpoint, pem: TlsPem | None, server_name: str | None) -> None:
        """Raises KvError(CREDENTIALS); connects on the first call."""
        self.endpoint = endpoint
        self.leave = asyncio.Event()
        self._server_name = server_name
        self._context: ssl.SSLContext | None = None
        self._users = 0
        self._diagnosing = asyncio.Lock()
        self._diagnosis: KvError | None = None
        self._diagnosed_at = float("-inf")
        options = list(_OPTIONS)
        if endpoint.secure:
            if pem is None:
                raise KvError(Stage.CREDENTIALS, "an https endpoint needs certificates", str(endpoint))
            self._context = client_context(pem)
            if server_name:
                options.append(("grpc.ssl_target_name_override", server_name))
            credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
            self._channel = grpc.aio.secure_channel(endpoint.authority, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(endpoint.authority, options)
        self.kv: Any = etcd_pb2_grpc.KVStub(self._channel)
        self.watch: Any = etcd_pb2_grpc.WatchStub(self._channel)
        self.lease: Any = etcd_pb2_grpc.LeaseStub(self._channel)
        self.auth: Any = etcd_pb2_grpc.AuthStub(self._channel)
        self.maintenance: Any = etcd_pb2_grpc.MaintenanceStub(self._channel)

    @property
    def retired(self) -> bool:
        return self.leave.is_set()

    async def __aenter__(self) -> "Session":
        self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        await self._close_if_idle()

    async def retire(self) -> None:
        """Take no new users and close behind the last one."""
        self.leave.set()
        await self._close_if_idle()

    async def close(self) -> None:
        """Close now; calls under way fail."""
        self.leave.set()
        await self._channel.close(grace=None)

    async def _close_if_idle(self) -> None:
        if self.retired and self._users == 0:
            await self._channel.close(grace=None)

    async def outcome(self, answer: Awaitable[Any]) -> Any:
        """Await an answer of gRPC; its failures become KvError, a cancellation of our own task stays one."""
        try:
            return await answer
        except AioRpcError as error:
            raise await self.explain(error.code(), error.details() or "") from error
        except asyncio.CancelledError:
            # A closed channel cancels its calls, which looks like a cancellation of the caller.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise KvError(Stage.UNAVAILABLE, "the connection was closed", str(self.endpoint)) from None

    async def receive(self, call: Any) -> Any:
        """The next message of a stream; its end is KvError(UNAVAILABLE)."""
        message = await self.outcome(call.read())
        if message is _END_OF_STREAM:
            raise KvError(Stage.UNAVAILABLE, "etcd ended the stream", str(self.endpoint))
        return message

    async def explain(self, code: StatusCode, text: str) -> KvError:
        """The typed error for a gRPC status; looks at the network when it is not etcd that speaks."""
        url = str(self.endpoint)
        if not text.startswith("etcdserver: ") and not self.retired:
            connected = self._channel.get_state() is grpc.ChannelConnectivity.READY
            if code is StatusCode.UNAVAILABLE or (code is StatusCode.DEADLINE_EXCEEDED and not connected):
                found = await self._diagnose()
                if found is not None:
                    return found
        return etcd_error(code, text, url)

    async def _diagnose(self) -> KvError | None:
        clock = asyncio.get_running_loop().time
        async with self._diagnosing:
            if clock() - self._diagnosed_at > _DIAGNOSIS_HOLDS:
                self._diagnosis = await diagnose(self.endpoint, self._context, self._server_name)
                self._diagnosed_at = clock()
        return self._diagnosis
