"""Which labels make an identity. Expected verdicts follow from Cilium's documentation of its `labels` setting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.wire import labels
from clustermesh.wire.errors import LabelPatternError
from clustermesh.wire.label_filter import DEFAULT, LabelFilter


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        ("app", True),
        ("app.kubernetes.io/name", True),
        ("ignore", True),
        ("ioXkubernetes", True),
        ("io.kubernetes.pod.namespace", True),
        ("io.kubernetes.pod.uid", False),
        ("io.kubernetes.container.hash", False),
        ("kubernetes.io/os", False),
        ("kubernetes.ioX", False),
        ("node.kubernetes.io/role", True),
        ("statefulset.kubernetes.io/pod-name", False),
        ("apps.kubernetes.io/pod-index", False),
        ("batch.kubernetes.io/job-completion-index", False),
        ("batch.kubernetes.io/controller-uid", False),
        ("batch.kubernetes.io/job-name", True),
        ("beta.kubernetes.io/arch", False),
        ("failure-domain.beta.kubernetes.io/zone", False),
        ("k8s.io/cluster", False),
        ("pod-template-generation", False),
        ("pod-template-hash", False),
        ("controller-revision-hash", False),
        ("controller-uid", False),
        ("job-name", True),
        ("annotation.hello", False),
        ("etcd_node", False),
        ("io.cilium.k8s.namespace.labels.team", True),
        ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", True),
        ("io.cilium.k8s.namespace.labels.beta.kubernetes.io/x", False),
        ("io.cilium.k8s.policy.serviceaccount", True),
    ],
)
def test_without_patterns_it_is_the_default_filter(key: str, kept: bool) -> None:
    assert DEFAULT.keeps(f"k8s:{key}") is kept
    assert LabelFilter.parse("").keeps(f"k8s:{key}") is kept


@pytest.mark.parametrize(
    ("patterns", "kept", "dropped"),
    [
        # One inclusion: nothing else counts, but for what always does.
        (
            "k8s:k8s-app k8s:app k8s:name",
            ("k8s-app", "k8s-app-team", "application", "name", "app.kubernetes.io/x", "io.kubernetes.pod.namespace"),
            ("team", "lizards.app", "io.cilium.k8s.policy.serviceaccount", "io.kubernetes.pod.uid"),
        ),
        ("k8s:app,k8s:name", ("app", "name"), ("team",)),
        (r"k8s:io\.cilium\.k8s\.policy k8s:app", ("io.cilium.k8s.policy.serviceaccount",), ("team",)),
        # Only exclusions: the rest still counts.
        ("k8s:!controller-uid k8s:!job-name", ("app", "team"), ("job-name", "job-name-x", "controller-uid")),
        ("!team", ("app",), ("team", "teams")),
        ("any:!team", ("app",), ("team",)),
        ("container:!team", ("team",), ()),
        (r"!.*\.example\.com", ("team",), ("a.example.com/x", "a.b.example.com")),
        ("!ignor[eE]", ("ignoring",), ("ignore", "ignorE")),
        # Both: the longer match wins.
        (r"!foo foo\.bar", ("foo.bar", "foo.bar.x"), ("foo", "foo.baz", "app")),
        (r"io\.kubernetes\.pod\.name", ("io.kubernetes.pod.name",), ("io.kubernetes.pod.uid", "app")),
        # A match of nothing is none.
        ("!x*", ("app",), ("xx",)),
    ],
)
def test_patterns_add_to_the_defaults(patterns: str, kept: tuple[str, ...], dropped: tuple[str, ...]) -> None:
    chosen = LabelFilter.parse(patterns)
    assert [key for key in kept if not chosen.keeps(f"k8s:{key}")] == []
    assert [key for key in dropped if chosen.keeps(f"k8s:{key}")] == []


@pytest.mark.parametrize("text", ["k8s:", "!", "k8s:!", "k8s:app(", "app[", "ok *"])
def test_a_pattern_that_cannot_be_used_is_named(text: str) -> None:
    with pytest.raises(LabelPatternError, match="label pattern '"):
        LabelFilter.parse(text)


def test_whatever_the_patterns_an_identity_names_its_cluster() -> None:
    chosen = LabelFilter.parse("!io.cilium !io.kubernetes !app !i")
    kept = {labels.CLUSTER: "red", labels.NAMESPACE: "prod"}
    assert labels.of_pod("red", "prod", {}, "", {"app": "web"}, chosen) == kept


KEY = st.from_regex(r"[a-z][a-z0-9./_-]{0,20}", fullmatch=True)


@given(st.lists(KEY, max_size=4), st.dictionaries(KEY, KEY, max_size=5))
def test_of_included_prefixes_only_what_begins_with_one_of_them_is_kept(
    prefixes: list[str], pod_labels: dict[str, str]
) -> None:
    chosen = LabelFilter.parse(" ".join(f"k8s:{prefix.replace('.', '[.]')}" for prefix in prefixes))
    found = labels.of_pod("red", "prod", {}, "web", pod_labels, chosen)
    own = {key for key in found if key.removeprefix("k8s:") in pod_labels} - {labels.CLUSTER}
    if prefixes:
        always = ("app.kubernetes.io", "io.kubernetes.pod.namespace", "io.cilium.k8s.")
        assert all(key.removeprefix("k8s:").startswith((*prefixes, *always)) for key in own)
    assert labels.encode(found) == labels.encode(dict(reversed(found.items())))
    assert labels.decode(labels.encode(found)) == found


@given(st.text(max_size=30))
def test_any_text_is_either_patterns_or_refused_by_name(text: str) -> None:
    try:
        LabelFilter.parse(text).keeps("k8s:app")
    except LabelPatternError as error:
        assert "label pattern" in str(error)
