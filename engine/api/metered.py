"""Every request is measured: Prometheus counts it, and the log has one line for it, without a word of its text.

`Metered` stands between the routes and the pool, so every dialect is measured alike. Names and labels are vLLM's where vLLM has
them (https://docs.vllm.ai/en/latest/usage/metrics.html).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final, assert_never

from prometheus_client import CollectorRegistry, Counter, Histogram

from duet.errors import DeadlineExceeded, DuetError, Internal
from duet.logs import request_id
from duet.wire import Usage
from engine.types import (
    Accepted,
    CacheNote,
    Event,
    Events,
    Failed,
    Finished,
    Models,
    Request,
    Result,
    TextDelta,
    ThoughtDelta,
    Work,
)

logger = logging.getLogger(__name__)

REGISTRY = CollectorRegistry()
CANCELLED: Final = "abort"
"""vLLM's word for a request whose client has left."""
UNKNOWN: Final = "unknown"
"""The label of all models that are not on this machine. Anybody can think up names, and a label stays as long as the process."""
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
_MODEL = ["model_name"]

_FIRST_TOKEN = Histogram(
    "vllm:time_to_first_token_seconds", "From the request to its first token, a load included", _MODEL,
    registry=REGISTRY, buckets=_SECONDS,
)  # fmt: skip
_BETWEEN_TOKENS = Histogram(
    "vllm:inter_token_latency_seconds",
    "Between two tokens of an answer",
    _MODEL,
    registry=REGISTRY,
    buckets=_TOKEN_SECONDS,
)
_WHOLE = Histogram(
    "vllm:e2e_request_latency_seconds", "From the request to its end", _MODEL, registry=REGISTRY, buckets=_SECONDS
)
_PROMPT_TOKENS = Counter("vllm:prompt_tokens", "Prompt tokens of answered requests", _MODEL, registry=REGISTRY)
_GENERATED = Counter("vllm:generation_tokens", "Generated tokens", _MODEL, registry=REGISTRY)
_SUCCESS = Counter(
    "vllm:request_success", "Answered generations, by how they ended", [*_MODEL, "finished_reason"], registry=REGISTRY
)
_REQUESTS = Counter(
    "duet_requests", "Requests, by outcome: ok, stop, length, abort or the error's code", ["model", "kind", "outcome"],
    registry=REGISTRY,
)  # fmt: skip
_CACHED_TOKENS = Counter(
    "duet_cached_tokens", "Prompt tokens that were restored, by tier (ram, ssd)", ["model", "tier"], registry=REGISTRY
)
_LOOKUPS = Counter(
    "duet_kv_lookups",
    "Prompts looked up in the KV cache, by why no more was found",
    ["model", "miss"],
    registry=REGISTRY,
)


class _Meter:
    """One request from its beginning to its end, whatever ends it."""

    def __init__(self, request: Request, label: Callable[[str], str]) -> None:
        """`label` names a model for Prometheus. It is called late, because a model may be fetched for this request."""
        self._request, self._kind, self._label = request, str(request.__struct_config__.tag), label
        self._began = self._last = time.perf_counter()
        self._between: Histogram | None = None
        self._first_seconds: float | None = None
        self._tokens = 0
        self._usage = Usage()
        self._cache = CacheNote()
        self._outcome = CANCELLED
        """The outcome unless an event says otherwise."""

    def note(self, event: Event) -> None:
        now = time.perf_counter()
        match event:
            case TextDelta():
                if not event.tokens:
                    return  # the echoed prompt
                self._tokens += event.tokens
                if self._between is None:
                    label = self._label(self._request.model)
                    self._first_seconds, self._between = now - self._began, _BETWEEN_TOKENS.labels(label)
                    _FIRST_TOKEN.labels(label).observe(self._first_seconds)
                else:
                    self._between.observe(now - self._last)
                self._last = now
            case ThoughtDelta():
                pass  # no client sees it, so it is not the first token; `Finished.usage` counts its tokens
            case Accepted():
                self._cache = event.cache
                self._usage = Usage(event.prompt_tokens, 0, 0)
            case Finished():
                self._usage, self._outcome = event.usage, event.reason
            case Failed():
                self._outcome = event.code
            case Result():
                self._outcome = "ok"
            case _:
                assert_never(event)

    def end(self) -> None:
        """Count the request, and log it."""
        seconds, label = time.perf_counter() - self._began, self._label(self._request.model)
        _WHOLE.labels(label).observe(seconds)
        _REQUESTS.labels(label, self._kind, self._outcome).inc()
        extra: dict[str, object] = {
            "action": "answered",
            "request_id": request_id.get(),
            "id": self._request.id,
            "kind": self._kind,
            "model": self._request.model,
            "outcome": self._outcome,
            "milliseconds": round(1000 * seconds),
        }
        if self._kind == "generate":
            extra |= self._generation(label)
        logger.info("request", extra=extra)

    def _generation(self, label: str) -> dict[str, object]:
        usage, completed = self._usage, self._outcome in ("stop", "length")
        generated = usage.completion_tokens if completed else self._tokens
        _GENERATED.labels(label).inc(generated)
        if completed or self._outcome == CANCELLED:
            _SUCCESS.labels(label, self._outcome).inc()
        if completed:
            _PROMPT_TOKENS.labels(label).inc(usage.prompt_tokens)
            _LOOKUPS.labels(label, self._cache.reason.partition("(")[0] or "none").inc()
            if usage.cached_tokens:
                _CACHED_TOKENS.labels(label, self._cache.tier or "ram").inc(usage.cached_tokens)
        first = None if self._first_seconds is None else round(1000 * self._first_seconds)
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": generated,
            "cached_tokens": usage.cached_tokens,
            "first_token_milliseconds": first,
        }


class Metered:
    """Runs requests by another `Work`, measures them, and ends them at their deadlines. A failure is `Failed`, never raised."""

    def __init__(self, work: Work, models: Models) -> None:
        self._work, self._models = work, models

    async def run(self, request: Request) -> Events:
        meter = _Meter(request, self._label)
        try:
            async with contextlib.aclosing(self._work.run(request)) as events:
                if request.deadline is None:
                    async for event in events:
                        meter.note(event)
                        yield event
                else:
                    while (early := await _before(request.deadline, events)) is not None:
                        meter.note(early)
                        yield early
        except DuetError as error:
            failed = Failed.of(request.id, error)
            meter.note(failed)
            yield failed
        except Exception:
            logger.exception("a request failed", extra={"action": "request_failed"})
            failed = Failed.of(request.id, Internal("an unexpected error ended the answer; the engine's log says more"))
            meter.note(failed)
            yield failed
        finally:
            meter.end()

    def _label(self, model: str) -> str:
        try:
            return model if self._models.is_here(model) else UNKNOWN
        except Exception:  # a measurement must not end an answer
            logger.exception("a model's label could not be read", extra={"action": "label_failed"})
            return UNKNOWN


async def _before(deadline: float, events: Events) -> Event | None:
    """The next event, None after the last. Raises `DeadlineExceeded` at the deadline. Only waiting is bounded: nothing is
    cancelled while the caller deals with an event."""
    limit = asyncio.timeout(deadline - time.monotonic())
    try:
        async with limit:
            return await anext(events, None)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceeded("the answer was not complete by its deadline") from error
