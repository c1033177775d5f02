"""Label and field selectors of list and watch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .errors import Object, bad_request
from .resources import Resource

Predicate = Callable[[Object], bool]

_SET = re.compile(r"^(?P<key>[^\s!=,()]+)\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUALITY = re.compile(r"^(?P<key>[^\s!=,()]+)\s*(?P<operator>==|!=|=)\s*(?P<value>[^\s!=,()]*)$")
_EXISTS = re.compile(r"^(?P<not>!?)\s*(?P<key>[^\s!=,()]+)$")


def lookup(item: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for part in path.strip(".").split("."):
        item = item.get(part) if isinstance(item, dict) else None
    return item


def _requirements(text: str) -> list[str]:
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def _label_requirement(text: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(text):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUALITY.match(text):
        key, value = match["key"], match["value"]
        if match["operator"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(text):
        key, wanted = match["key"], not match["not"]
        return lambda labels: (key in labels) is wanted
    raise bad_request(f"unable to parse requirement: {text!r} is not a label selector")


def labels(text: str) -> Predicate | None:
    """Compile a label selector (equality- and set-based); None when it selects everything."""
    tests = [_label_requirement(part) for part in _requirements(text)]
    if not tests:
        return None

    def matches(item: Object) -> bool:
        own = item["metadata"].get("labels") or {}
        return all(test(own) for test in tests)

    return matches


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def fields(resource: Resource, text: str) -> Predicate | None:
    """Compile a field selector; None when it selects everything."""
    tests: list[tuple[str, bool, str]] = []
    for part in _requirements(text):
        match = _EQUALITY.match(part)
        if match is None:
            raise bad_request(f"invalid field selector {part!r}: can't understand it")
        path = match["key"]
        if path not in ("metadata.name", "metadata.namespace", *resource.fields):
            raise bad_request(f'field label not supported: "{path}"')
        tests.append((path, match["operator"] != "!=", match["value"]))
    if not tests:
        return None
    return lambda item: all((_as_text(lookup(item, path)) == value) is wanted for path, wanted, value in tests)


def of_object(selector: Object | None) -> str:
    """The text form of a LabelSelector object."""
    selector = selector or {}
    words = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or []:
        key, operator = expression["key"], expression["operator"]
        if operator in ("In", "NotIn"):
            words.append(f"{key} {operator.lower()} ({','.join(expression.get('values') or [])})")
        else:
            words.append(key if operator == "Exists" else "!" + key)
    return ",".join(words)
