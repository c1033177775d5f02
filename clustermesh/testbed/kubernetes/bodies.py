"""Request bodies: JSON, YAML for apply, and protobuf for the few kinds that `kubectl create` sends so."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from . import protobuf
from .errors import Object, bad_request, unsupported_media_type
from .resources import Resource

_JSON = ("application/json", "")
_YAML = ("application/yaml", "application/apply-patch+yaml")
_PROTOBUF = "application/vnd.kubernetes.protobuf"


async def read_body(request: web.Request, resource: Resource | None) -> Object:
    """The object that the client sent; of `resource`'s kind if that is given. Raises 400 or 415."""
    raw, media = await request.read(), request.content_type if "Content-Type" in request.headers else ""
    if media in _JSON:
        item = msgspec.json.decode(raw)
    elif media in _YAML:
        item = _yaml(raw)
    elif media == _PROTOBUF:
        item = protobuf.decode(raw)
    else:
        raise unsupported_media_type(media, [*_JSON[:1], *_YAML, _PROTOBUF])
    if not isinstance(item, dict):
        raise bad_request("the body must be an object")
    if resource is not None:
        _check_kind(item, resource)
    return item


def _yaml(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        import yaml

        try:
            return yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise bad_request(f"error decoding YAML: {error}") from error


def _check_kind(item: Object, resource: Resource) -> None:
    kind, version = item.get("kind") or resource.kind, item.get("apiVersion") or resource.api_version
    if (kind, version) not in ((resource.kind, resource.api_version), ("Scale", "autoscaling/v1")):
        raise bad_request(f"a {kind} of {version!r} cannot be handled as a {resource.kind} of {resource.api_version!r}")
