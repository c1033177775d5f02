"""What can go wrong between us and an etcd, by the stage at which it went wrong."""

from enum import StrEnum


class Stage(StrEnum):
    """The step that failed; an operator reads it in a peer's status."""

    CREDENTIALS = "credentials"  # our own certificate files are missing or do not fit together
    DNS = "dns"  # the host name does not resolve
    TCP = "tcp"  # nobody answers on that address and port
    TLS = "tls"  # either side refused the other's certificate
    AUTHENTICATION = "authentication"  # etcd does not know who we are
    PERMISSION = "permission"  # etcd knows us and forbids this key range
    COMPACTED = "compacted"  # the revision asked for is gone
    FUTURE = "future"  # the revision asked for is not there yet
    UNAVAILABLE = "unavailable"  # connected, but etcd cannot serve now
    TIMEOUT = "timeout"  # connected, but no answer in time
    TOO_LARGE = "too-large"  # this request will never be accepted: it is too big
    TOO_MANY = "too-many-operations"  # etcd takes smaller transactions only
    FULL = "full"  # etcd's space quota is used up
    LEASE = "lease"  # the lease does not live any more
    EXISTS = "exists"  # the user, role or lease is there already
    MISSING = "missing"  # the user, role or grant is not there
    INVALID = "invalid"  # etcd says the request makes no sense
    UNSUPPORTED = "unsupported"  # this version of etcd does not have the operation
    REPLACED = "replaced"  # another store answers than the one we knew
    FENCED = "fenced"  # another replica leads and may write, we may not


# Trying the same request again can never help with these; all others pass by themselves or by an operator's hand.
HOPELESS = frozenset({Stage.TOO_LARGE, Stage.INVALID})


class KvError(Exception):
    """A failed etcd operation.

    stage: where it failed; message: what was wrong and what to do; endpoint: URL of the server, "" if none was reached.
    """

    def __init__(self, stage: Stage, message: str, endpoint: str = "") -> None:
        super().__init__(stage, message, endpoint)
        self.stage = stage
        self.message = message
        self.endpoint = endpoint

    @property
    def hopeless(self) -> bool:
        """Whether the same request can never succeed."""
        return self.stage in HOPELESS

    def __str__(self) -> str:
        where = f" ({self.endpoint})" if self.endpoint else ""
        return f"{self.stage}: {self.message}{where}"
