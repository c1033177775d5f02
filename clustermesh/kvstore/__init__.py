"""etcd over mTLS: connection, list and watch, leased writer, users. Only this package knows gRPC."""

import os

# gRPC's C core writes every failed handshake to stderr, besides the KvError that says it. It reads this variable once,
# when grpc is imported, and every process comes by here before that; so it is set on import, unless the user did.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
