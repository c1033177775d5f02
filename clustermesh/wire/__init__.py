"""The wire format: keys, records, identity numbering and labels as Cilium ClusterMesh writes them to etcd.

The room reads as the format's documentation and depends on nothing else of the project.
"""
