"""Which web pages may call a service from a browser (https://fetch.spec.whatwg.org/#http-cors-protocol).

A page of an origin that is not allowed gets an answer without these headers, and the browser keeps the answer from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import Message

from duet.errors import ForbiddenOrigin

ANY = "*"
ANY_PORT = ":*"
METHODS = "GET, HEAD, POST, DELETE"
MAX_AGE_SECONDS = 600
"""How long a browser may remember the answer to its question."""
EXPOSED = ("location", "retry-after", "x-request-id")
"""Headers that a page may read, beside all whose names begin with X-Duet-."""

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+){0,63}")
_PORT = re.compile(r":[0-9]{1,5}\Z")
_SHOWN_CHARACTERS = 100


class Origins:
    """The origins of the setting `allowed_origins`: whole ones, ones with any port (`http://localhost:*`), or `*`."""

    def __init__(self, allowed: Iterable[str]) -> None:
        normalised = {_normalised(origin) for origin in allowed}
        self._hosts = frozenset(origin.removesuffix(ANY_PORT) for origin in normalised if origin.endswith(ANY_PORT))
        self._whole = frozenset(origin for origin in normalised if not origin.endswith(ANY_PORT))

    def preflight(self, method: str, headers: Headers) -> Response | ForbiddenOrigin | None:
        """The answer to a browser that asks whether a page may call us, which it does without a key. None: it does not ask."""
        origin = headers.get("origin")
        if method != "OPTIONS" or origin is None or "access-control-request-method" not in headers:
            return None
        if self._granted(origin) is None:
            shown = origin[:_SHOWN_CHARACTERS]
            return ForbiddenOrigin(
                f"pages of {shown!r} may not call this service: add it to allowed_origins in config.toml if they are yours"
            )
        found = {"Access-Control-Allow-Methods": METHODS, "Access-Control-Max-Age": str(MAX_AGE_SECONDS)}
        asked = headers.get("access-control-request-headers", "")
        if _HEADER_NAMES.fullmatch(asked):
            found["Access-Control-Allow-Headers"] = asked
        if headers.get("access-control-request-private-network") == "true":
            found["Access-Control-Allow-Private-Network"] = "true"
        answer = Response(status_code=204, headers=found)
        answer.headers.add_vary_header(
            "Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
        )
        return answer

    def mark(self, start: Message, asked: Headers) -> None:
        """Give the start of any answer, errors included, the headers by which a browser shows it to the page."""
        headers = MutableHeaders(scope=start)
        if ANY not in self._whole:
            headers.add_vary_header("Origin")
        granted = self._granted(asked.get("origin"))
        if granted is None:
            return
        headers["Access-Control-Allow-Origin"] = granted
        if granted != ANY:
            headers["Access-Control-Allow-Credentials"] = "true"
        names = [name for name in dict.fromkeys(headers.keys()) if name in EXPOSED or name.startswith("x-duet-")]
        headers["Access-Control-Expose-Headers"] = ", ".join(names)

    def _granted(self, origin: str | None) -> str | None:
        """What Access-Control-Allow-Origin says; None when the origin is not allowed."""
        if origin is None:
            return None
        if ANY in self._whole:
            return ANY
        asked = _normalised(origin)
        return origin if asked in self._whole or _PORT.sub("", asked) in self._hosts else None


def _normalised(origin: str) -> str:
    """In lower case and without its scheme's own port, as browsers write it."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "\0"))
