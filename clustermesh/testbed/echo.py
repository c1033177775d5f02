"""The HTTP server behind the image name `clustermesh/echo`: tells who answers and who asked.

Every path answers with cluster, node, namespace, pod and the client's address, as JSON, or as text for `Accept:
text/plain`. Run as a script in isolated mode it needs the standard library's smallest modules alone, so that a pod is
up in some 20 ms and takes a few MiB. HTTP/1.1 with keep-alive and pipelining, one thread, any number of connections.

At SIGTERM it goes on for DRAIN seconds, since clients learn of a pod's end a moment later than the pod; its answers
then ask to close the connection.
"""

import json
import os
import selectors
import signal
import socket
import sys
import time

DRAIN = 1.0  # seconds
_MAX_HEAD = 65536
_FIELDS = {"cluster": "CLUSTER_NAME", "node": "NODE_NAME", "namespace": "POD_NAMESPACE", "pod": "POD_NAME"}


class Connection:
    """One client: bytes come in, whole answers go out."""

    def __init__(self, sock: socket.socket, client: str, identity: dict[str, str]) -> None:
        self.sock = sock
        self._body = {**identity, "client": client}
        self._received = b""
        self._skip = 0  # bytes of a request's body that are still to come
        self._answers = b""
        self.closing = False

    def receive(self, *, draining: bool) -> None:
        """Read what is there; `closing` when the client has left or sends no HTTP."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.closing = True
            return
        self._received += data
        while not self.closing and self._next(draining):
            pass

    def send(self) -> bool:
        """Write what can be written; True when everything is."""
        try:
            self._answers = self._answers[self.sock.send(self._answers) :] if self._answers else b""
        except BlockingIOError:
            return False
        except OSError:
            self._answers, self.closing = b"", True
        return not self._answers

    def _next(self, draining: bool) -> bool:
        """Answer one request; False when none is complete."""
        skipped = min(self._skip, len(self._received))
        self._received, self._skip = self._received[skipped:], self._skip - skipped
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            self.closing = len(self._received) > _MAX_HEAD
            return False
        self._received = rest
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (item.partition(":") for item in lines)}
        length = headers.get("content-length", "0")
        if not line.endswith(("HTTP/1.1", "HTTP/1.0")) or not length.isdigit():
            self._answers += b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            self.closing = True
            return False
        self._skip = int(length)
        wish = headers.get("connection", "").lower()
        self.closing = draining or wish == "close" or (line.endswith("HTTP/1.0") and wish != "keep-alive")
        self._answers += self._answer(line, headers)
        return True

    def _answer(self, line: str, headers: dict[str, str]) -> bytes:
        if "text/plain" in headers.get("accept", ""):
            kind, body = "text/plain", " ".join(f"{key}={value}" for key, value in self._body.items()) + "\n"
        else:
            kind, body = "application/json", json.dumps(self._body) + "\n"
        connection = "close" if self.closing else "keep-alive"
        head = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n"
        return ("HTTP/1.1 200 OK\r\n" + head + ("" if line.startswith("HEAD ") else body)).encode()


class EchoServer:
    def __init__(self, port: int, identity: dict[str, str]) -> None:
        self._identity = identity
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("", port), backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ends_at: float | None = None
        # A signal interrupts the wait by a byte in this pair, even if it comes just before it.
        self._wake, waker = socket.socketpair()
        self._wake.setblocking(False)
        waker.setblocking(False)
        self._waker = waker
        self._selector.register(self._wake, selectors.EVENT_READ)

    def drain(self) -> None:
        """Have `run` return in DRAIN seconds."""
        self._ends_at = time.monotonic() + DRAIN
        self._waker.send(b"\0")

    def run(self) -> None:
        while (left := self._time_left()) is None or left > 0:
            for key, events in self._selector.select(left):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake:
                    self._wake.recv(16)
                else:
                    self._serve(key.data, events)

    def _time_left(self) -> float | None:
        return None if self._ends_at is None else self._ends_at - time.monotonic()

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError:
            return  # gone before we came
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_READ, Connection(sock, address[0], self._identity))

    def _serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_READ:
            connection.receive(draining=self._ends_at is not None)
        if not connection.send():
            wanted = selectors.EVENT_WRITE if connection.closing else selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(connection.sock, wanted, connection)
        elif connection.closing:
            self._selector.unregister(connection.sock)
            connection.sock.close()
        else:
            self._selector.modify(connection.sock, selectors.EVENT_READ, connection)


def main() -> None:
    identity = {field: os.environ.get(variable, "") for field, variable in _FIELDS.items()}
    server = EchoServer(int(os.environ.get("PORT", "8080")), identity)
    signal.signal(signal.SIGTERM, lambda _number, _frame: server.drain())
    sys.stderr.write(f"listening on port {server.port}\n")
    server.run()


if __name__ == "__main__":
    main()
