"""Who may call a service: a Host allow-list against DNS rebinding, and the API key.

It looks at a path and headers alone, so a scope of any kind can ask it.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from duet.errors import DuetError, ForbiddenHost, Unauthorized

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "host.docker.internal"})
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
"""Paths that are answered without a key, in this spelling alone. They are the same for everybody and tell nothing about this
machine: monitors and browsers send no key."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class Access:
    """`hosts` are names in lower case without a port."""

    key: str
    hosts: frozenset[str]

    def host_refusal(self, headers: Headers) -> DuetError | None:
        """The error for a Host header that is missing, repeated, badly written or not known; None when it is known."""
        found = headers.getlist("host")
        if len(found) != 1:
            return ForbiddenHost(f"a request needs exactly one Host header, and this one has {len(found)}")
        if _host_name(found[0]) in self.hosts:
            return None
        shown = found[0][:_SHOWN_CHARACTERS]
        return ForbiddenHost(
            f"Host {shown!r} is not allowed: add its name to allowed_hosts in config.toml if it is yours"
        )

    def key_refusal(self, path: str, headers: Headers) -> DuetError | None:
        """The error for a missing or wrong key; None when the path is open or the key is right."""
        if path in OPEN_PATHS:
            return None
        sent = _sent_key(headers)
        if not sent:
            return Unauthorized("no API key: send 'Authorization: Bearer KEY' (`duet key` prints it)")
        if not hmac.compare_digest(sent.encode(), self.key.encode()):
            return Unauthorized("this API key is wrong (`duet key` prints the right one)")
        return None


def _host_name(header: str) -> str | None:
    """The name without its port, an IPv6 address in brackets; None for what is not written like a Host header."""
    written = _HOST.fullmatch(header.lower())
    return written.group(1) if written else None


def _sent_key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
