"""URLs of etcd members."""

import pytest

from clustermesh.kvstore.endpoint import Endpoint


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://10.0.0.1:2380", "https://10.0.0.1:2380"),
        ("https://etcd.example/", "https://etcd.example:2379"),
        ("http://[fd00::1]:79", "http://[fd00::1]:79"),
    ],
)
def test_urls_are_read_with_etcds_port_as_default(url: str, text: str) -> None:
    assert str(Endpoint.parse(url)) == text


@pytest.mark.parametrize("url", ["10.0.0.1:2379", "https://", "ftp://a:1", "https://a:99999", "https://a/path", ""])
def test_anything_else_is_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match="etcd endpoint") as caught:
        Endpoint.parse(url)
    assert repr(url) in str(caught.value)
