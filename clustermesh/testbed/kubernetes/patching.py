"""The four kinds of patches, as pure functions on objects."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import msgspec

from .errors import Cause, Object, bad_request, invalid

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

# The keys by which strategic merge knows the items of a list, by (parent field, field).
# The parent "*" is any; the key "" means a list of scalars that is merged as a set.
_MERGE_KEYS = {
    ("containers", "ports"): "containerPort",
    ("initContainers", "ports"): "containerPort",
    ("spec", "ports"): "port",
    ("*", "containers"): "name",
    ("*", "initContainers"): "name",
    ("*", "ephemeralContainers"): "name",
    ("*", "env"): "name",
    ("*", "volumes"): "name",
    ("*", "volumeMounts"): "mountPath",
    ("*", "volumeDevices"): "devicePath",
    ("*", "imagePullSecrets"): "name",
    ("*", "hostAliases"): "ip",
    ("*", "topologySpreadConstraints"): "topologyKey",
    ("*", "resourceClaims"): "name",
    ("*", "secrets"): "name",
    ("*", "ownerReferences"): "uid",
    ("status", "conditions"): "type",
    ("status", "addresses"): "type",
    ("status", "podIPs"): "ip",
    ("status", "hostIPs"): "ip",
    ("*", "finalizers"): "",
    ("spec", "podCIDRs"): "",
}


def _merge_key(parent: str, field: str) -> str | None:
    return _MERGE_KEYS.get((parent, field), _MERGE_KEYS.get(("*", field)))


def merge(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def json_patch(target: Object, operations: Any) -> Object:
    """JSON patch (RFC 6902); raises 422 when an operation does not fit the object."""
    import jsonpatch

    try:
        result: Object = jsonpatch.JsonPatch(operations).apply(target)
    except (jsonpatch.JsonPatchConflict, jsonpatch.JsonPatchTestFailed) as error:
        raise _unprocessable(target, error) from error
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        raise bad_request(f"error decoding patch: {error}") from error
    return result


def _unprocessable(target: Object, error: Exception) -> Exception:
    return invalid(
        "", target.get("kind", ""), target["metadata"]["name"], [Cause("FieldValueInvalid", str(error), "patch")]
    )


def strategic(target: Any, patch: Any, field: str = "") -> Any:
    """Strategic merge patch with its directives ($patch, $retainKeys, $deleteFromPrimitiveList, $setElementOrder)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: copy.deepcopy(value) for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    result = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        result = {key: value for key, value in result.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [item for item in result.get(name) or [] if item not in value]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        by = _merge_key(field, key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, list) and by is not None:
            order = patch.get(f"$setElementOrder/{key}")
            result[key] = _merge_list(result.get(key) or [], value, by, key, order)
        else:
            result[key] = strategic(result.get(key), value, key)
    return result


def _merge_list(target: list[Any], patch: list[Any], by: str, field: str, order: list[Any] | None) -> list[Any]:
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [copy.deepcopy(item) for item in patch if item.get("$patch") != "replace"]
    if by == "":
        return [*target, *(item for item in patch if item not in target)]
    result = list(target)
    for item in patch:
        place = next((i for i, old in enumerate(result) if old.get(by) == item.get(by)), None)
        if item.get("$patch") == "delete":
            result = [old for old in result if old.get(by) != item.get(by)]
        elif place is None:
            result.append(strategic({}, item, field))
        else:
            result[place] = strategic(result[place], item, field)
    if order:
        rank = {item.get(by): i for i, item in enumerate(order)}
        result.sort(key=lambda item: rank.get(item.get(by), len(rank)))
    return result


def apply(target: Object, intent: Object, manager: str, now: str, *, keyed: bool) -> Object:
    """Server-side apply: merge what `manager` wants, drop what it wanted before and no longer does.

    Conflicts between managers are not detected: the last one wins. `keyed` merges lists of built-in
    kinds by their keys; lists of custom resources are replaced.
    """
    owners = target.get("metadata", {}).get("managedFields") or []
    mine = next((entry for entry in owners if (entry["manager"], entry["operation"]) == (manager, "Apply")), None)
    others = [entry for entry in owners if entry is not mine]
    fields = _field_set(intent, "", keyed)
    result: Object = copy.deepcopy(target)
    if mine is not None:
        kept = [fields, *(entry.get("fieldsV1") or {} for entry in others)]
        _drop(result, mine.get("fieldsV1") or {}, kept)
    result = strategic(result, intent) if keyed else merge(result, intent)
    entry = {"manager": manager, "operation": "Apply", "apiVersion": intent.get("apiVersion"), "time": now}
    entry |= {"fieldsType": "FieldsV1", "fieldsV1": fields}
    if mine is not None and mine.get("fieldsV1") == fields:
        entry["time"] = mine["time"]
    result["metadata"]["managedFields"] = [*others, entry]
    return result


def _field_set(value: Any, field: str, keyed: bool) -> Object:
    if not isinstance(value, dict):
        return {}
    fields: Object = {}
    for key, item in value.items():
        by = _merge_key(field, key) if keyed and isinstance(item, list) else None
        if by:
            fields[f"f:{key}"] = {_item_key(by, element): _field_set(element, key, keyed) for element in item}
        elif (field, key) not in (("metadata", "name"), ("metadata", "namespace"), ("", "apiVersion"), ("", "kind")):
            fields[f"f:{key}"] = _field_set(item, key, keyed)
    return fields


def _item_key(by: str, element: Object) -> str:
    return "k:" + msgspec.json.encode({by: element.get(by)}).decode()


def _drop(value: Any, fields: Object, kept: Iterable[Object]) -> None:
    """Remove from `value` the leaves of `fields` that none of `kept` has."""
    for name, inner in fields.items():
        holders = [keep[name] for keep in kept if name in keep]
        child = value.get(name[2:]) if isinstance(value, dict) and name.startswith("f:") else None
        if isinstance(value, list) and name.startswith("k:"):
            match = msgspec.json.decode(name[2:])
            child = next((item for item in value if match.items() <= item.items()), None)
        if child is None:
            continue
        if holders:
            _drop(child, inner, holders)
        elif isinstance(value, list):
            value.remove(child)
        elif not inner or not isinstance(child, dict | list):
            del value[name[2:]]
        else:
            _drop(child, inner, [])
            if not child:
                del value[name[2:]]
