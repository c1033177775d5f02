"""etcd's v3 API: etcd.proto and the stubs generated from it (the command stands at the top of etcd.proto)."""
