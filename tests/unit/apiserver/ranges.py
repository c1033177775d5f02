"""Ranges as one writes them."""

from ipaddress import ip_network

from clustermesh.wire.ranges import Range


def cidr(text: str) -> Range:
    return Range.of(ip_network(text))
