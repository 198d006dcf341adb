"""Who may call a service: a Host allow-list against DNS rebinding, and the API key.

It looks at a path and headers alone, so a scope of any kind can ask it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from starlette.datastructures import Headers

from duet.errors import DuetError, ForbiddenHost, Unauthorized

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "host.docker.internal"})
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that are answered without a key."""


@dataclass(frozen=True)
class Access:
    """`hosts` are names in lower case without a port; `open_paths` need no key, but a known host."""

    key: str
    hosts: frozenset[str]
    open_paths: frozenset[str]

    def refusal(self, path: str, headers: Headers) -> DuetError | None:
        """The error to answer with; None when the caller may pass."""
        host = _host_name(headers.get("host", ""))
        if host not in self.hosts:
            return ForbiddenHost(f"Host {host!r} is not allowed: add it to allowed_hosts in config.toml if it is yours")
        if path in self.open_paths:
            return None
        sent = _sent_key(headers)
        if not sent:
            return Unauthorized("no API key: send 'Authorization: Bearer KEY' (`duet key` prints it)")
        if not hmac.compare_digest(sent.encode(), self.key.encode()):
            return Unauthorized("this API key is wrong (`duet key` prints the right one)")
        return None


def _host_name(header: str) -> str:
    """The name without its port; an IPv6 address keeps its brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]


def _sent_key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
