"""The engine as the pipeline sees it, over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

import msgspec
from httpx import Response

from duet.client import Client, Refused, Unreachable
from duet.errors import DuetError, Unavailable
from duet.keys import api_key
from duet.settings import Settings
from duet.wire import ReviewLimits, Segment
from speech.languages import heard
from speech.recognisers.engine import transcription
from speech.recognisers.port import Options, Pcm

logger = logging.getLogger(__name__)


_BOUNDS = {"stop_on_repetition": True}
"""An answer of a given form that repeats one piece stays within the form, and would take all of its tokens."""


class Reviewer(ReviewLimits, frozen=True):
    """The review model, and how much it can take at once as its card says."""

    id: str


class EngineUnavailable(Unavailable):
    """The engine is down, lacks the model, or failed. Review and summary go on without it."""


class _BadRequest(DuetError):
    """The engine answered 400 or 422. `param` is the parameter at fault, if the engine names it."""


class Engine:
    """Owned by one run of a stage; use with `async with`. Another OpenAI-compatible engine may answer; one that refuses
    schemas is no longer sent any."""

    def __init__(self, settings: Settings, *, timeout_seconds: float) -> None:
        key = api_key(settings.home)
        self._client = Client(settings.engine_url, key, timeout_seconds=timeout_seconds, priority="batch")
        self._follows_schemas = True

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def reviewer(self, model: str) -> Reviewer:
        """Raises `EngineUnavailable` when the model is not on the engine's machine."""
        shown = await self._get(f"/v1/models/{model}")
        extra = shown.get("duet", {})
        if extra.get("state") == "absent":
            raise EngineUnavailable(f"the review model {shown['id']} is not downloaded")
        limits = {
            name: value for name, value in (extra.get("review") or {}).items() if name in ReviewLimits.__struct_fields__
        }
        return msgspec.convert({"id": shown["id"], **limits}, Reviewer)

    async def has_asr(self, model: str) -> bool:
        try:
            shown = await self._get(f"/v1/models/{model}")
        except EngineUnavailable:
            return False
        return bool(shown.get("duet", {}).get("state") != "absent")

    async def chat(
        self, model: str, messages: list[dict[str, str]], *, max_tokens: int, schema: dict[str, Any] | None = None
    ) -> str:
        """The text of the greedy answer. It follows `schema` only if the engine can do that, so the caller must check.

        Raises `EngineUnavailable`, `DuetError` for a refused request.
        """
        # What was said in a meeting stays in its folder: the engine keeps nothing of it for later prompts.
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens, "store": False}
        if schema is None or not self._follows_schemas:
            return await self._answer(body)
        # Not strict: OpenAI's strict schemas cannot have optional properties.
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        try:
            return await self._answer({**body, **_BOUNDS, "response_format": form})
        except _BadRequest as error:
            if error.param is not None and not error.param.startswith(("response_format", *_BOUNDS)):
                raise
        answer = await self._answer(body)
        # Only now: a refusal that names no parameter may have had another cause.
        self._follows_schemas = False
        logger.info("the engine follows no schemas", extra={"action": "schemas_off"})
        return answer

    async def _answer(self, body: dict[str, Any]) -> str:
        answer = await self._answered(self._client.request("POST", "/v1/chat/completions", json=body))
        return str(answer["choices"][0]["message"]["content"])

    async def transcribe(self, model: str, clip: Pcm, *, language: str | None, keywords: list[str]) -> Segment:
        """One clip of 16-bit audio, times from its start."""
        options = Options(language, keywords=tuple(keywords))
        answer = await self._answered(transcription(self._client, model, clip, options))
        doubts = [part["low_confidence"] for part in answer.get("segments", []) if part.get("low_confidence")]
        return Segment(
            0.0,
            len(clip) / 16_000,
            answer["text"],
            heard(answer.get("language")),
            low_confidence="; ".join(doubts) or None,
        )

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._answered(self._client.request("GET", path))

    async def _answered(self, request: Awaitable[Response]) -> dict[str, Any]:
        try:
            answer = await request
        except Unreachable as error:
            raise EngineUnavailable(f"the engine is out of reach ({error.cause})") from error
        except Refused as error:
            status, said = error.answered, error.said or "no further word"
            if status in (404, 429) or status >= 500:
                raise EngineUnavailable(f"the engine answered {status}: {said}") from error
            kind = _BadRequest if status in (400, 422) else DuetError
            raise kind(f"the engine refused the request ({status}): {said}", param=error.param) from error
        found: dict[str, Any] = answer.json()
        return found
