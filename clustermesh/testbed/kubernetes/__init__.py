"""A small stand-in for the Kubernetes API server, for clusters that live on one machine.

Objects are JSON in the cluster's etcd under ``/registry/<group>/<plural>/[<namespace>/]<name>``; an object's
resourceVersion is the key's mod_revision. One watch of ``/registry/`` feeds a cache with a bounded window of changes
per resource, from which every client's watch is served (as in the real server): older than the window is 410 Gone.

The way of a request: ``server`` (TLS, routes, errors) → ``listing`` | ``watching`` | ``registry`` (with ``patching``,
``defaults``, ``schema``, ``allocation``) → ``store`` → etcd. ``lifecycle`` empties namespaces and collects garbage.

What differs from the real server: no RBAC (any client certificate of the CA may do all), no protobuf beyond a few
kinds that kubectl creates, no admission plugins, server-side apply without conflicts, no conversion between versions
of a custom resource beyond ``apiVersion``. Deleting a pod that sits on a node only marks it; its kubelet ends it by
deleting it again with gracePeriodSeconds=0.
"""
