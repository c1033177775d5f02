"""Labels of an identity: which labels of a pod count, and how they are written down.

An identity is a set of labels `source:key=value`. On the wire they are sorted by key and each is followed by ";",
the last one too. Keys cannot contain "=" and Kubernetes values can contain neither ";" nor "=".
"""

import re
from collections.abc import Mapping

from clustermesh.wire.errors import RecordError

CLUSTER = "k8s:io.cilium.k8s.policy.cluster"
SERVICE_ACCOUNT = "k8s:io.cilium.k8s.policy.serviceaccount"
NAMESPACE = "k8s:io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "k8s:io.cilium.k8s.namespace.labels."

# Pod labels that say nothing of what a workload is: they differ from pod to pod or from rollout to rollout and would
# give each its own identity. The list is the default filter of Cilium.
_IRRELEVANT = re.compile(
    r"""
      io\.kubernetes\.(?!pod\.namespace$)
    | kubernetes\.io/
    | (?:.*\.)?beta\.kubernetes\.io/
    | k8s\.io/
    | pod-template-generation$
    | pod-template-hash$
    | controller-revision-hash$
    | controller-uid$
    | batch\.kubernetes\.io/
    | job-name$
    | annotation\.
    | etcd_node$
    | statefulset\.kubernetes\.io/pod-name$
    | apps\.kubernetes\.io/pod-index$
    """,
    re.VERBOSE,
)


def encode(labels: Mapping[str, str]) -> str:
    """Write `{"k8s:app": "web"}` as `k8s:app=web;`."""
    return "".join(f"{key}={labels[key]};" for key in sorted(labels, key=_without_source))


def decode(text: str) -> dict[str, str]:
    """Read what `encode` wrote; RecordError on anything else."""
    if not text.endswith(";"):
        raise RecordError("a label list must end in ';'")
    labels: dict[str, str] = {}
    for item in text[:-1].split(";"):
        key, equals, value = item.partition("=")
        source, colon, name = key.partition(":")
        if not (equals and colon and source and name):
            raise RecordError(f"label {item!r} is not of the form source:key=value")
        if key in labels:
            raise RecordError(f"label {key!r} is given twice")
        labels[key] = value
    return labels


def of_pod(
    cluster: str,
    namespace: str,
    namespace_labels: Mapping[str, str],
    service_account: str,
    pod_labels: Mapping[str, str],
) -> dict[str, str]:
    """The labels that make a pod's identity."""
    labels = {f"k8s:{key}": value for key, value in pod_labels.items() if not _IRRELEVANT.match(key)}
    labels.update({NAMESPACE_LABELS + key: value for key, value in namespace_labels.items()})
    labels[CLUSTER] = cluster
    labels[NAMESPACE] = namespace
    labels[SERVICE_ACCOUNT] = service_account or "default"
    return labels


def _without_source(key: str) -> str:
    return key.partition(":")[2]
