"""What a Deployment asks for next, computed from its pods. A Deployment owns its pods directly: there are no
ReplicaSets.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clustermesh.testbed.objects import Deployment, Pod

HASH_LABEL = "pod-template-hash"


class Rollout(NamedTuple):
    """The next step: how many pods of the present template to create, and which pods (by name) to delete."""

    create: int
    delete: tuple[str, ...]


class Bounds(NamedTuple):
    """How far a rolling update may leave the wanted number of pods."""

    surge: int
    unavailable: int


def template_hash(deployment: Deployment) -> str:
    """Names the revision of the template; pods carry it as a label."""
    canonical = json.dumps(deployment.spec.template, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def owner_uid(pod: Pod) -> str | None:
    """The uid of the object that controls a pod."""
    for reference in pod.metadata.owner_references or ():
        if reference.get("controller"):
            return str(reference.get("uid"))
    return None


def plan(deployment: Deployment, pods: Sequence[Pod]) -> Rollout:
    """The next step towards `replicas` pods of the present template. `pods` are all that the Deployment owns."""
    if deployment.spec.paused:
        return Rollout(0, ())
    wanted, revision, bounds = deployment.spec.replicas, template_hash(deployment), _bounds(deployment)
    live = [pod for pod in pods if not pod.terminating and not pod.finished]
    new = sorted((pod for pod in live if _revision(pod) == revision), key=_dispensable)
    old = sorted((pod for pod in live if _revision(pod) != revision), key=_dispensable)
    surplus = new[: max(0, len(new) - wanted)]
    if deployment.spec.strategy.type == "Recreate":
        outdated_left = any(_revision(pod) != revision and not pod.finished for pod in pods)
        create = 0 if outdated_left else max(0, wanted - len(new))
        return Rollout(create, _names([*surplus, *old]))
    create = max(0, min(wanted - len(new), wanted + bounds.surge - len(live)))
    # Pods that are not ready serve nobody; of the others as many may go as the bound allows.
    spare = max(0, sum(pod.ready for pod in live) - sum(pod.ready for pod in surplus) - (wanted - bounds.unavailable))
    useless = [pod for pod in old if not pod.ready]
    return Rollout(create, _names([*surplus, *useless, *[pod for pod in old if pod.ready][:spare]]))


def pod_document(deployment: Deployment) -> dict[str, Any]:
    """A new pod of the present template."""
    template = deployment.spec.template
    metadata: Mapping[str, Any] = template.get("metadata") or {}
    revision = template_hash(deployment)
    return {
        "metadata": {
            "name": f"{deployment.name}-{revision}-{secrets.token_hex(3)[:5]}",
            "namespace": deployment.namespace,
            "labels": {**(metadata.get("labels") or {}), HASH_LABEL: revision},
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "name": deployment.name,
                    "uid": deployment.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": template.get("spec") or {},
    }


def status(deployment: Deployment, pods: Sequence[Pod], now: str) -> dict[str, Any]:
    """The Deployment's status; `now` (RFC 3339) dates the conditions that changed."""
    wanted, revision = deployment.spec.replicas, template_hash(deployment)
    live = [pod for pod in pods if not pod.terminating and not pod.finished]
    ready = sum(pod.ready for pod in live)
    updated = sum(_revision(pod) == revision for pod in live)
    available = ready >= wanted - _bounds(deployment).unavailable
    complete = updated == wanted == len(live) == ready
    conditions = [
        ("Available", available, "MinimumReplicasAvailable" if available else "MinimumReplicasUnavailable"),
        ("Progressing", True, "NewReplicaSetAvailable" if complete else "ReplicaSetUpdated"),
    ]
    before = {condition["type"]: condition for condition in deployment.status.get("conditions") or ()}
    return {
        "observedGeneration": deployment.metadata.generation,
        "replicas": len(live),
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, max(wanted, len(live)) - ready),
        "conditions": [_condition(kind, holds, reason, before.get(kind), now) for kind, holds, reason in conditions],
    }


def _condition(kind: str, holds: bool, reason: str, before: Mapping[str, Any] | None, now: str) -> dict[str, Any]:
    state = "True" if holds else "False"
    changed = before is None or before.get("status") != state
    since = now if changed or before is None else before.get("lastTransitionTime", now)
    updated = now if changed or before is None or before.get("reason") != reason else before.get("lastUpdateTime", now)
    return {"type": kind, "status": state, "reason": reason, "lastTransitionTime": since, "lastUpdateTime": updated}


def _bounds(deployment: Deployment) -> Bounds:
    wanted, rolling = deployment.spec.replicas, deployment.spec.strategy.rolling_update
    if deployment.spec.strategy.type == "Recreate":
        return Bounds(0, wanted)
    surge = _count(rolling.max_surge if rolling else None, wanted, math.ceil)
    unavailable = _count(rolling.max_unavailable if rolling else None, wanted, math.floor)
    return Bounds(surge, unavailable) if surge or unavailable else Bounds(0, 1)


def _count(value: int | str | None, wanted: int, rounded: Any) -> int:
    if isinstance(value, int):
        return value
    return int(rounded(wanted * int((value or "25%").rstrip("%")) / 100))


def _revision(pod: Pod) -> str:
    return (pod.metadata.labels or {}).get(HASH_LABEL, "")


def _dispensable(pod: Pod) -> tuple[bool, int, str]:
    """Sorts first what is missed least: not ready before ready, young before old."""
    return pod.ready, -_age_rank(pod), pod.name


def _age_rank(pod: Pod) -> int:
    digits = "".join(filter(str.isdigit, pod.metadata.creation_timestamp or ""))
    return int(digits or 0)


def _names(pods: Sequence[Pod]) -> tuple[str, ...]:
    return tuple(pod.name for pod in pods)
