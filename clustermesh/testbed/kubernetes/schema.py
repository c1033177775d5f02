"""Structural schemas of custom resources: prune what they do not know, fill in defaults, report what is wrong."""

from __future__ import annotations

import copy
import re
from typing import Any

from .errors import Cause

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def prune(schema: Schema, value: Any, path: str = "", *, root: bool = True) -> list[str]:
    """Remove unknown fields in place; returns their paths."""
    dropped: list[str] = []
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for i, item in enumerate(value):
            dropped += prune(schema["items"], item, f"{path}[{i}]", root=False)
    if not isinstance(value, dict) or schema.get("x-kubernetes-embedded-resource"):
        return dropped
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    keep = bool(schema.get("x-kubernetes-preserve-unknown-fields")) or extra is True
    for name in list(value):
        where = f"{path}.{name}" if path else name
        if root and name in ("apiVersion", "kind", "metadata"):
            continue
        if name in properties:
            dropped += prune(properties[name], value[name], where, root=False)
        elif isinstance(extra, dict):
            dropped += prune(extra, value[name], where, root=False)
        elif not keep:
            del value[name]
            dropped.append(where)
    return dropped


def fill(schema: Schema, value: Any) -> None:
    """Set defaults of absent fields, in place."""
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            fill(schema["items"], item)
    if not isinstance(value, dict):
        return
    properties: dict[str, Schema] = schema.get("properties") or {}
    for name, property_ in properties.items():
        if "default" in property_ and (name not in value or (value[name] is None and not property_.get("nullable"))):
            value[name] = copy.deepcopy(property_["default"])
        if name in value:
            fill(property_, value[name])
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        for name in value.keys() - properties.keys():
            fill(extra, value[name])


def check(schema: Schema, value: Any, path: str = "") -> list[Cause]:
    """Everything in `value` that the schema does not allow."""
    if value is None and schema.get("nullable"):
        return []
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, int | str) else [_type(path, value, "integer or string")]
    expected = _TYPES.get(schema.get("type", ""))
    if expected and (not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)):
        return [_type(path, value, schema["type"])]
    causes = _check_scalar(schema, value, path)
    if isinstance(value, list):
        items = schema.get("items") or {}
        causes += [cause for i, item in enumerate(value) for cause in check(items, item, f"{path}[{i}]")]
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        extra = schema.get("additionalProperties")
        missing = [name for name in schema.get("required") or [] if name not in value]
        causes += [Cause("FieldValueRequired", "Required value", f"{path}.{name}".lstrip(".")) for name in missing]
        for name, item in value.items():
            inner = properties.get(name) or (extra if isinstance(extra, dict) else None)
            if inner and not (path == "" and name == "metadata"):
                causes += check(inner, item, f"{path}.{name}".lstrip("."))
    return causes


def _type(path: str, value: Any, expected: str) -> Cause:
    message = f'Invalid value: "{type(value).__name__}": {path} in body must be of type {expected}'
    return Cause("FieldValueTypeInvalid", message, path or "<nil>")


def _check_scalar(schema: Schema, value: Any, path: str) -> list[Cause]:
    wrong: list[str] = []
    if schema.get("enum") and value not in schema["enum"]:
        supported = ", ".join(f'"{choice}"' for choice in schema["enum"])
        return [Cause("FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {supported}', path)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "minimum" in schema and value < schema["minimum"]:
            wrong.append(f"should be greater than or equal to {schema['minimum']}")
        if "maximum" in schema and value > schema["maximum"]:
            wrong.append(f"should be less than or equal to {schema['maximum']}")
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            wrong.append(f"should match '{schema['pattern']}'")
        if len(value) < schema.get("minLength", 0):
            wrong.append(f"should be at least {schema['minLength']} chars long")
        if "maxLength" in schema and len(value) > schema["maxLength"]:
            wrong.append(f"may not be longer than {schema['maxLength']}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            wrong.append(f"should have at least {schema['minItems']} items")
        if "maxItems" in schema and len(value) > schema["maxItems"]:
            wrong.append(f"must have at most {schema['maxItems']} items")
    return [Cause("FieldValueInvalid", f'Invalid value: "{value}": {path} in body {why}', path) for why in wrong]
