"""Which labels make an identity: Cilium's defaults, and patterns of an operator on top of them.

A pattern is `[source:][!]regex`, its regex anchored at the start of the key alone: `app` also means `application`.
With "!" it excludes. As soon as one pattern includes, only included labels count. Where patterns of both sorts match a
label, the longer match wins, and of several exclusions the shortest match counts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from clustermesh.wire.errors import LabelPatternError

# Cilium's own patterns. They say nothing of what a workload is: such labels differ from pod to pod or from rollout to
# rollout and would give each an identity of its own.
_EXCLUDED = (
    r"!io\.kubernetes",
    r"!kubernetes\.io",
    r"!statefulset\.kubernetes\.io/pod-name",
    r"!apps\.kubernetes\.io/pod-index",
    r"!batch\.kubernetes\.io/job-completion-index",
    r"!batch\.kubernetes\.io/controller-uid",
    r"!.*beta\.kubernetes\.io",
    r"!k8s\.io",
    r"!pod-template-generation",
    r"!pod-template-hash",
    r"!controller-revision-hash",
    r"!annotation.*",
    r"!controller-uid",
    r"!etcd_node",
)
# These stay however few an operator includes. On their own they do not make other labels count less.
_INCLUDED = (
    r"reserved:.*",
    r"io\.kubernetes\.pod\.namespace",
    r"io\.cilium\.k8s\.namespace\.labels",
    r"app\.kubernetes\.io",
    r"io\.cilium\.k8s\.policy\.cluster",
)
_ANY = "any"
_REMEMBERED = 16384  # keys whose verdict is kept


@dataclass(frozen=True, slots=True)
class Pattern:
    source: str  # "": of any source
    excludes: bool
    expression: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read `k8s:!job-name`; LabelPatternError when it is none."""
        source, colon, rest = text.partition(":")
        if not colon:
            source, rest = "", text
        excludes = rest.startswith("!")
        rest = rest.removeprefix("!")
        if not rest:
            raise LabelPatternError(f"label pattern {text!r} is empty: write [SOURCE:][!]REGEX")
        try:
            return cls("" if source == _ANY else source, excludes, re.compile(rest))
        except re.error as error:
            raise LabelPatternError(f"label pattern {text!r}: {error}") from None

    def length(self, source: str, key: str) -> int:
        """How much of the key it matches, from the key's start; 0 for no match."""
        if self.source and self.source != source:
            return 0
        found = self.expression.match(key)
        return found.end() if found else 0


_DEFAULTS = tuple(Pattern.parse(text) for text in (*_INCLUDED, *_EXCLUDED))


class LabelFilter:
    """Decides by a label's source and key. Verdicts are remembered: the same few keys come again and again."""

    def __init__(self, patterns: Iterable[Pattern] = ()) -> None:
        own = tuple(patterns)
        self._patterns = (*_DEFAULTS, *own)
        self._only_included = any(not pattern.excludes for pattern in own)
        self._verdicts: dict[str, bool] = {}

    @classmethod
    def parse(cls, text: str) -> "LabelFilter":
        """Patterns separated by spaces or commas; LabelPatternError names the one that is wrong."""
        return cls(Pattern.parse(item) for item in re.split(r"[\s,]+", text) if item)

    def keeps(self, label: str) -> bool:
        """Whether `k8s:app` is part of an identity."""
        verdict = self._verdicts.get(label)
        if verdict is None:
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            verdict = self._verdicts[label] = self._judge(*label.split(":", 1))
        return verdict

    def _judge(self, source: str, key: str) -> bool:
        included, excluded = 0, 0
        for pattern in self._patterns:
            length = pattern.length(source, key)
            if pattern.excludes and length:
                excluded = min(excluded or length, length)
            elif not pattern.excludes:
                included = max(included, length)
        return included > excluded or not (excluded or self._only_included)


DEFAULT = LabelFilter()
