"""Labels of an identity: which labels of a pod count, and how they are written down.

An identity is a set of labels `source:key=value`. On the wire they are sorted by key and each is followed by ";",
the last one too. Keys cannot contain "=" and Kubernetes values can contain neither ";" nor "=".
"""

from collections.abc import Mapping

from clustermesh.wire import label_filter
from clustermesh.wire.errors import RecordError
from clustermesh.wire.label_filter import LabelFilter

CLUSTER = "k8s:io.cilium.k8s.policy.cluster"
SERVICE_ACCOUNT = "k8s:io.cilium.k8s.policy.serviceaccount"
NAMESPACE = "k8s:io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "k8s:io.cilium.k8s.namespace.labels."
_OWNED = "k8s:io.cilium.k8s"  # what starts like this is not for a pod to say


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
    relevant: LabelFilter = label_filter.DEFAULT,
) -> dict[str, str]:
    """The labels that make a pod's identity. A pod cannot give itself what others say of it, as Cilium has it."""
    labels = {f"k8s:{key}": value for key, value in pod_labels.items()}
    labels = {key: value for key, value in labels.items() if not key.startswith(_OWNED)}
    labels.update({NAMESPACE_LABELS + key: value for key, value in namespace_labels.items()})
    labels[SERVICE_ACCOUNT] = service_account or "default"
    labels = {key: value for key, value in labels.items() if relevant.keeps(key)}
    # A reader takes no identity without its cluster, and who may see one depends on its namespace.
    labels[CLUSTER] = cluster
    labels[NAMESPACE] = namespace
    return labels


def namespace_of(text: str) -> str:
    """The namespace in labels as they are written on the wire; "" when there is none."""
    _, found, rest = f";{text}".partition(f";{NAMESPACE}=")
    return rest.partition(";")[0] if found else ""


def _without_source(key: str) -> str:
    return key.partition(":")[2]
