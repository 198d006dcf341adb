"""HTTP calls to our own services: address, key, priority, time limits, and errors in one form.

Something else may answer instead: another server that speaks OpenAI's protocol, or a program that happens to use the port.
"""

from __future__ import annotations

from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal

import httpx

from duet.errors import DuetError, Unavailable

CONNECT_SECONDS = 2.0
"""The services run on this machine or near it: one that does not accept a connection by then is down."""


class Unreachable(Unavailable):
    """No answer came: nothing listens at the address, or a time limit passed. `cause` is the name of httpx's error."""

    def __init__(self, url: str, error: httpx.HTTPError) -> None:
        self.cause = type(error).__name__
        super().__init__(f"{url} is out of reach ({self.cause})")


class Refused(DuetError):
    """The service answered with an error. `answered` is its HTTP status. `said` and `param` come from OpenAI's error
    envelope; they are None where the body is something else."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answered = answer.status_code
        self.said, param = _envelope(answer)
        super().__init__(self.said or f"status {self.answered}", param=param)


class Client:
    """One service. Safe to call concurrently; its owner closes it."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_seconds: float,
        connect_seconds: float = CONNECT_SECONDS,
        priority: Literal["interactive", "normal", "batch"] | None = None,
    ) -> None:
        """`priority` None leaves the service's own default."""
        self.url = url
        headers = _bearer(key) | ({"X-Duet-Priority": priority} if priority else {})
        timeout = httpx.Timeout(timeout_seconds, connect=connect_seconds)
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer, whose status is 200. `options` are httpx's: json, data, files, timeout.

        Raises `Unreachable` or `Refused`.
        """
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Unreachable(self.url, error) from error
        if answer.status_code != 200:
            raise Refused(answer)
        return answer

    async def close(self) -> None:
        await self._http.aclose()


def sync_client(key: str | None, *, url: str = "", timeout: float | httpx.Timeout) -> httpx.Client:
    """For the command line: httpx's own client, with our key. Without a key only open paths can be asked."""
    return httpx.Client(base_url=url, headers=_bearer(key) if key else {}, timeout=timeout, trust_env=False)


def offered_name(answer: httpx.Response) -> str:
    """The file name that a download offers, without any folder; "" where it offers none."""
    header = EmailMessage()
    header["Content-Disposition"] = answer.headers.get("Content-Disposition", "")
    return Path(header.get_filename(failobj="")).name


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _envelope(answer: httpx.Response) -> tuple[str | None, str | None]:
    """Message and parameter of OpenAI's error envelope."""
    try:
        error = answer.json()["error"]
        return str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, None
