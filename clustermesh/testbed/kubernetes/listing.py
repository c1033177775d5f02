"""Lists: selectors, and pages of one revision by limit and continue."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from . import selectors
from .errors import Object, bad_request
from .resources import Resource
from .selectors import Predicate
from .store import Store

_BATCH = 500  # objects read at once while a selector looks for matches


@dataclass(frozen=True)
class Selection:
    """Which objects of a resource a request is about."""

    resource: Resource
    namespace: str
    labels: Predicate | None
    fields: Predicate | None

    @classmethod
    def of(cls, resource: Resource, namespace: str, query: Mapping[str, str]) -> Selection:
        """From the query; raises 400 for selectors that do not parse."""
        labels = selectors.labels(query.get("labelSelector", ""))
        return cls(resource, namespace, labels, selectors.fields(resource, query.get("fieldSelector", "")))

    @property
    def prefix(self) -> str:
        return f"{self.resource.prefix}{self.namespace}/" if self.namespace else self.resource.prefix

    @property
    def filtered(self) -> bool:
        return self.labels is not None or self.fields is not None

    def matches(self, item: Object) -> bool:
        """Is it chosen by the selectors? The namespace is a matter of the prefix."""
        return (self.labels is None or self.labels(item)) and (self.fields is None or self.fields(item))


def number(query: Mapping[str, str], name: str) -> int:
    """A whole number of the query, 0 if absent; raises 400 for anything else."""
    text = query.get(name, "") or "0"
    if not text.isdigit():
        raise bad_request(f"invalid value {text!r} for parameter {name}: must be a whole number")
    return int(text)


def flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name) in ("true", "True", "1")


class _Continue(msgspec.Struct):
    rv: int
    after: str


def _token(revision: int, after: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(_Continue(revision, after))).decode()


def _read_token(text: str) -> _Continue:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text), type=_Continue)
    except (binascii.Error, msgspec.DecodeError, UnicodeError) as error:
        raise bad_request("continue key is not valid") from error


async def fetch(store: Store, selection: Selection, query: Mapping[str, str]) -> tuple[list[Object], Object]:
    """The chosen objects and the list's metadata; raises 410 when the revision asked for is compacted."""
    limit, after, revision = number(query, "limit"), "", 0
    if query.get("resourceVersionMatch") == "Exact":
        revision = number(query, "resourceVersion")
    if token := query.get("continue"):
        position = _read_token(token)
        after, revision = position.after, position.rv
    items: list[Object] = []
    while True:
        size = 0 if not limit else max(_BATCH, limit) if selection.filtered else limit
        page = await store.page(selection.prefix, after=after, limit=size, revision=revision)
        revision, after = page.revision, page.last
        matching = [item for item in page.items if selection.matches(item)]
        if limit and len(items) + len(matching) > limit:
            matching = matching[: limit - len(items)]
            after = selection.resource.key_of(matching[-1])
        items += matching
        if not after or (limit and len(items) >= limit):
            break
    metadata: dict[str, Any] = {"resourceVersion": str(revision)}
    if after:
        metadata["continue"] = _token(revision, after)
        if not selection.filtered:
            metadata["remainingItemCount"] = page.remaining
    return items, metadata
