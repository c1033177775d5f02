"""Protobuf bodies of the objects that `kubectl create namespace|configmap|secret|serviceaccount|deployment` makes.

kubectl's typed clients send nothing else. Field numbers are those of Kubernetes' generated.proto files; fields that
these commands never set are not known here and refused, so that nothing is lost silently.
"""

from __future__ import annotations

import base64
from typing import Any

from .errors import Object, bad_request

_MAGIC = b"k8s\x00"

# Message → field number → (name, type); a type is a message, "string", "int", "map", "bytes map" or "ignored".
# "*" before it: repeated.
_METADATA = {1: ("metadata", "ObjectMeta")}
_IGNORED = ("", "ignored")
_REVIEW = _METADATA | {2: _IGNORED, 3: _IGNORED}
_MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "Unknown": {1: ("type", "TypeMeta"), 2: ("raw", "bytes")},
    "TypeMeta": {1: ("apiVersion", "string"), 2: ("kind", "string")},
    "ObjectMeta": {
        1: ("name", "string"),
        2: ("generateName", "string"),
        3: ("namespace", "string"),
        11: ("labels", "map"),
        12: ("annotations", "map"),
    },
    "Namespace": _METADATA,
    "ConfigMap": _METADATA | {2: ("data", "map"), 3: ("binaryData", "bytes map")},
    "Secret": _METADATA | {2: ("data", "bytes map"), 3: ("type", "string"), 4: ("stringData", "map")},
    "ServiceAccount": _METADATA,
    "Deployment": _METADATA | {2: ("spec", "DeploymentSpec"), 3: _IGNORED},
    "DeploymentSpec": {1: ("replicas", "int"), 2: ("selector", "LabelSelector"), 3: ("template", "PodTemplateSpec")},
    "LabelSelector": {1: ("matchLabels", "map")},
    "PodTemplateSpec": _METADATA | {2: ("spec", "PodSpec")},
    "PodSpec": {2: ("containers", "*Container")},
    "Container": {
        1: ("name", "string"),
        2: ("image", "string"),
        3: ("command", "*string"),
        4: ("args", "*string"),
        6: ("ports", "*ContainerPort"),
    },
    "ContainerPort": {3: ("containerPort", "int"), 4: ("protocol", "string")},
    "SelfSubjectReview": _REVIEW,
    "SelfSubjectAccessReview": _REVIEW,
    "SubjectAccessReview": _REVIEW,
}


def decode(raw: bytes) -> Object:
    """The object in Kubernetes' protobuf envelope; raises 400 for what this module does not know."""
    if not raw.startswith(_MAGIC):
        raise bad_request("the protobuf body lacks Kubernetes' magic number")
    try:
        envelope = _message("Unknown", raw[len(_MAGIC) :])
        kind = envelope["type"]["kind"]
        if kind not in _MESSAGES:
            raise bad_request(f"{kind} is not known as protobuf here: send JSON, for instance with kubectl apply")
        return {**envelope["type"], **_message(kind, envelope["raw"])}
    except (IndexError, KeyError, ValueError) as error:
        raise bad_request(f"the protobuf body does not decode: {error!r}") from error


def _message(name: str, raw: bytes) -> Object:
    fields, at = _MESSAGES[name], 0
    result: Object = {}
    while at < len(raw):
        number, value, at = _field(raw, at)
        if number not in fields and _is_empty(value):
            continue
        if number not in fields:
            raise bad_request(f"field {number} of {name} is not known as protobuf here: send JSON")
        field, type_ = fields[number]
        if type_ in ("map", "bytes map"):
            key, item = _entry(value, type_)
            result.setdefault(field, {})[key] = item
        elif type_.startswith("*"):
            result.setdefault(field, []).append(_value(type_[1:], value))
        elif type_ != "ignored" and value != b"":
            result[field] = _value(type_, value)
    return result


def _is_empty(value: int | bytes) -> bool:
    """Zero, nothing, or a message of one empty field: typed clients write out what is not set."""
    return not value or (isinstance(value, bytes) and len(value) == 2 and value[1] == 0)


def _value(type_: str, raw: int | bytes) -> Any:
    if isinstance(raw, int) is not (type_ == "int"):
        raise ValueError(f"a {type_} cannot be {raw!r}")
    if isinstance(raw, int) or type_ == "bytes":
        return raw
    return raw.decode() if type_ == "string" else _message(type_, raw)


def _entry(raw: int | bytes, type_: str) -> tuple[str, str]:
    parts = {1: b"", 2: b""}
    at = 0
    while isinstance(raw, bytes) and at < len(raw):
        number, value, at = _field(raw, at)
        parts[number] = _value("bytes", value)
    text = parts[2].decode() if type_ == "map" else base64.b64encode(parts[2]).decode()
    return parts[1].decode(), text


def _field(raw: bytes, at: int) -> tuple[int, int | bytes, int]:
    """Its number, its value and where the next one begins."""
    tag, at = _varint(raw, at)
    if tag & 7 not in (0, 2):
        raise ValueError(f"unexpected wire type {tag & 7}")
    value, at = _varint(raw, at)
    if tag & 7 == 0:
        return tag >> 3, value, at
    if at + value > len(raw):
        raise ValueError("the end is missing")
    return tag >> 3, raw[at : at + value], at + value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
