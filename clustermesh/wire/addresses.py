"""How IP addresses are written on the wire."""

import ipaddress

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse(text: str) -> IpAddress | None:
    """None for what is no address, or one that means something on one host only (`fe80::1%eth0`)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if getattr(address, "scope_id", None) is not None else address


def canonical(text: str) -> str | None:
    """The one way to write an address: `FD00:0::1` is `fd00::1`. None as above."""
    address = parse(text)
    return None if address is None else str(address)
