"""Which IP addresses are on the public internet."""

from __future__ import annotations

import ipaddress
from typing import Final

_NOT_PUBLIC_4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
            *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),  # the last: Azure's own services
        ),
    )
)
_UNICAST_6: Final = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is routed so far. Everything else is of this machine, of a site, a group, or of nobody."""
_NOT_PUBLIC_6: Final = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20"))  # protocols such as Teredo, and examples
)
_IPV4_AT_THE_END: Final = tuple(
    map(ipaddress.IPv6Network, ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
)
"""IPv4 addresses as IPv6: mapped, compatible (RFC 4291), translated (RFC 2765), and of NAT64's well-known prefix (RFC 6052)."""
_6TO4: Final = ipaddress.IPv6Network("2002::/16")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
"""In the third quarter of an address; an IPv4 address follows (RFC 5214)."""


def is_public(address: str) -> bool:
    """Whether an IP address is reached over the public internet. Of an IPv4 address within an IPv6 address both count: a gateway
    may pass the connection on to the inner one. `ipaddress.is_global` knows only the networks of its Python version, so it
    does not decide alone."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed.is_global and not any(parsed in network for network in _NOT_PUBLIC_4)
    if parsed.scope_id is not None:
        return False
    if any(parsed in network for network in _IPV4_AT_THE_END):
        return is_public(str(_last_four(parsed)))
    if parsed not in _UNICAST_6 or any(parsed in network for network in _NOT_PUBLIC_6):
        return False
    if parsed in _6TO4:
        return is_public(str(ipaddress.IPv4Address(parsed.packed[2:6])))
    if int.from_bytes(parsed.packed[8:12]) in _ISATAP and not is_public(str(_last_four(parsed))):
        return False
    return parsed.is_global


def _last_four(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(address.packed[12:])
