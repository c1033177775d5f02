"""users.yaml of ConfigMap clustermesh-remote-users: who gets a user of its own in a Cilium cluster's etcd.

A list of {name, role} below `users`; absent with authMode legacy. It may be an operator's own text, so entries of
others, their order and, as long as the text is block style, its comments stay.
"""

from collections.abc import Mapping
from typing import Any

import yaml

FILE = "users.yaml"
_ROLE = "remote"
# How YAML's null reads when everything is a string.
_NOTHING = (None, "", "~", "null")


class UsersError(ValueError):
    """users.yaml is not the list that Cilium expects."""


def names(text: str) -> tuple[str, ...]:
    """The users that are listed; UsersError."""
    return tuple(entry["name"] for entry in _entries(_document(text)) if isinstance(entry.get("name"), str))


def add(text: str, user: str) -> str:
    """The text with one user more; the same text if it is listed. UsersError."""
    document = _document(text)
    if user in names(text):
        return text
    wanted = {**document, "users": [*_entries(document), {"name": user, "role": _ROLE}]}
    return _checked(_insert(text, user), wanted)


def remove(text: str, user: str) -> str:
    """The text without a user; the same text if it is not listed. UsersError."""
    document = _document(text)
    if user not in names(text):
        return text
    wanted = {**document, "users": [entry for entry in _entries(document) if entry.get("name") != user]}
    return _checked(_cut(text, user), wanted)


def _document(text: str) -> Mapping[str, Any]:
    try:
        # The base loader makes strings, lists and mappings and nothing else.
        document = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsersError(f"{FILE} is no YAML: {' '.join(str(error).split())}") from None
    if document in _NOTHING:
        return {}
    if not isinstance(document, dict):
        raise UsersError(f"{FILE} is no mapping with the key users")
    return document


def _entries(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = document.get("users", [])
    if found in _NOTHING:
        return []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UsersError(f"users in {FILE} is no list of {{name, role}}")
    return found


def _checked(edited: str, wanted: Mapping[str, Any]) -> str:
    """An edit of the text, if it says what is wanted; otherwise the document written anew, without its comments."""
    try:
        if _document(edited) == wanted:
            return edited
    except UsersError:
        pass
    return yaml.safe_dump(dict(wanted), sort_keys=False)


def _insert(text: str, user: str) -> str:
    entry = (f"- name: {user}", f"  role: {_ROLE}")
    found = _users_node(text)
    if found is None:
        start = text if not text or text.endswith("\n") else text + "\n"
        return start + "\n".join(("users:", *entry, ""))
    key, value = found
    items = value.value if isinstance(value, yaml.SequenceNode) else []
    if isinstance(value, yaml.SequenceNode) and items and not value.flow_style:
        lines = text.splitlines(keepends=True)
        last = _last_line(items[-1])
        if not lines[last].endswith("\n"):
            lines[last] += "\n"
        indent = " " * value.start_mark.column
        lines[last + 1 : last + 1] = [f"{indent}{line}\n" for line in entry]
        return "".join(lines)
    if not items:
        rest = text[value.end_mark.index :].lstrip(" ")
        return text[: key.start_mark.index] + "\n".join(("users:", *entry)) + (rest or "\n")
    return ""


def _cut(text: str, user: str) -> str:
    found = _users_node(text)
    if found is None or not isinstance(found[1], yaml.SequenceNode) or found[1].flow_style:
        return ""
    key, value = found
    ours = [item for item in value.value if _name(item) == user]
    if len(ours) == len(value.value):
        return text[: key.start_mark.index] + "users: []\n" + _after(text, value)
    lines = text.splitlines(keepends=True)
    for item in reversed(ours):
        del lines[item.start_mark.line : _last_line(item) + 1]
    return "".join(lines)


def _after(text: str, value: yaml.Node) -> str:
    return "".join(text.splitlines(keepends=True)[_last_line(value) + 1 :])


def _users_node(text: str) -> tuple[yaml.Node, yaml.Node] | None:
    root = yaml.compose(text, Loader=yaml.BaseLoader)
    if not isinstance(root, yaml.MappingNode):
        return None
    return next(((key, value) for key, value in root.value if key.value == "users"), None)


def _name(item: yaml.Node) -> str | None:
    pairs = item.value if isinstance(item, yaml.MappingNode) else []
    return next((value.value for key, value in pairs if key.value == "name"), None)


def _last_line(node: yaml.Node) -> int:
    """Of the node's last word. The end of a block is where the next one starts, which may be behind comments."""
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        return _last_line(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and node.value and not node.flow_style:
        return _last_line(node.value[-1])
    end: yaml.Mark = node.end_mark
    return int(end.line)
