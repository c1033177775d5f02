"""Where an etcd listens."""

from typing import NamedTuple
from urllib.parse import urlsplit

DEFAULT_PORT = 2379


class Endpoint(NamedTuple):
    """One client URL of an etcd member."""

    host: str
    port: int
    secure: bool

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        """Read "https://host:port" or "http://host:port" (port 2379 if none); raises ValueError."""
        parts = urlsplit(url)
        try:
            port = parts.port or DEFAULT_PORT
        except ValueError as error:
            raise ValueError(f"etcd endpoint {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError(f"etcd endpoint {url!r}: write it as https://host:port")
        return cls(parts.hostname, port, parts.scheme == "https")

    @property
    def authority(self) -> str:
        """host:port, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}"
