"""What a request to Kubernetes can fail with. Every error says what was asked, of whom, and why it was refused."""

import msgspec


class ConfigError(Exception):
    """A kubeconfig that cannot be used; the text names the file, the context and the remedy."""


class CredentialError(Exception):
    """Credentials that cannot be obtained: a plugin that fails, a token file that is not there."""


class Status(msgspec.Struct, frozen=True, gc=False):
    """The Status object in which the API server puts a refusal."""

    message: str = ""
    reason: str = ""
    code: int = 0


class KubeError(Exception):
    """A refused request: HTTP status, Kubernetes' reason ("NotFound", "Expired", …) and message."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after  # seconds, when the server asked for patience

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed a little later."""
        return self.status == 0 or self.status == 429 or self.status >= 500


class NotFound(KubeError):
    """No such object, or (when a list fails so) no such kind: its CRD is not installed."""


class Conflict(KubeError):
    """The object has changed since it was read."""


class AlreadyExists(Conflict):
    """An object of that name is there."""


class Expired(KubeError):
    """The resource version or continue token is too old: list again."""


class Unauthorized(KubeError):
    """The API server does not know who asks."""


class Forbidden(KubeError):
    """The asker lacks a right; the message names verb and resource."""


class Invalid(KubeError):
    """The object breaks its schema."""


class Unreachable(KubeError):
    """No answer: name resolution, TCP or TLS failed, or time ran out."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message)


_BY_STATUS: dict[int, type[KubeError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Expired,
    422: Invalid,
}


def from_response(
    status: int, body: bytes, *, request: str, server: str, retry_after: float | None = None
) -> KubeError:
    """The error for a response with status ≥ 400. `request` reads like "list pods", `server` is a URL."""
    try:
        answer = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:
        # Proxies in front of an API server answer in HTML or plain text.
        answer = Status(message=body[:200].decode(errors="replace").strip())
    kind = _BY_STATUS.get(status, KubeError)
    if status == 409 and answer.reason == "AlreadyExists":
        kind = AlreadyExists
    if answer.reason in ("Expired", "Gone"):
        kind = Expired
    detail = answer.message or answer.reason or "no reason given"
    return kind(status, answer.reason, f"{request} at {server}: {detail} (HTTP {status})", retry_after=retry_after)
