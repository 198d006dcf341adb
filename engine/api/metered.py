"""Every request measured: what Prometheus counts, and one log line without a word of its text.

`Metered` stands before the backend, so every dialect is measured alike. Names and labels are vLLM's where vLLM has them
(https://docs.vllm.ai/en/latest/usage/metrics.html).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from duet.errors import DuetError, Internal, ModelNotFound
from duet.logs import request_id
from duet.wire import Usage
from engine.api.deadlines import punctual, within
from engine.types import (
    Accepted,
    Backend,
    CacheNote,
    Embedded,
    EmbeddingRequest,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    KvStatus,
    ModelInfo,
    Placement,
    PoolStatus,
    Request,
    TextDelta,
    Transcribed,
    TranscriptionRequest,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

REGISTRY = CollectorRegistry()
CANCELLED: Final = "abort"
"""vLLM's word for a request whose client has left."""
UNKNOWN: Final = "unknown"
"""All models that are not on this machine, as a label: anybody can think up names, and a label stays as long as we live."""
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
    """One request from its beginning to its end, whichever it is."""

    def __init__(self, request: Request, kind: str, label: Callable[[str], str]) -> None:
        """`label` names a model for Prometheus. It is asked late: a model may be fetched for this request."""
        self._request, self._kind, self._label = request, kind, label
        self._began = self._last = time.perf_counter()
        self._between: Histogram | None = None
        self._first_seconds: float | None = None
        self._tokens = 0
        self._usage = Usage()
        self._cache = CacheNote()
        self.outcome = "ok"

    def note(self, event: Event) -> None:
        now = time.perf_counter()
        match event:
            case TextDelta():
                self._tokens += 1
                if self._between is None:
                    label = self._label(self._request.model)
                    self._first_seconds, self._between = now - self._began, _BETWEEN_TOKENS.labels(label)
                    _FIRST_TOKEN.labels(label).observe(self._first_seconds)
                else:
                    self._between.observe(now - self._last)
                self._last = now
            case Accepted():
                self._cache = event.cache
                self._usage = Usage(event.prompt_tokens, 0, 0)
            case Finished():
                self._usage, self.outcome = event.usage, event.reason
            case Failed():
                self.outcome = event.code

    def end(self) -> None:
        """Count it, and say it in one line."""
        seconds, label = time.perf_counter() - self._began, self._label(self._request.model)
        _WHOLE.labels(label).observe(seconds)
        _REQUESTS.labels(label, self._kind, self.outcome).inc()
        extra: dict[str, object] = {
            "action": "answered",
            "request_id": request_id.get(),
            "id": self._request.id,
            "kind": self._kind,
            "model": self._request.model,
            "outcome": self.outcome,
            "milliseconds": round(1000 * seconds),
        }
        if self._kind == "generate":
            extra |= self._generation(label)
        logger.info("request", extra=extra)

    def _generation(self, label: str) -> dict[str, object]:
        usage, completed = self._usage, self.outcome in ("stop", "length")
        generated = usage.completion_tokens if completed else self._tokens
        _GENERATED.labels(label).inc(generated)
        if completed or self.outcome == CANCELLED:
            _SUCCESS.labels(label, self.outcome).inc()
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
    """A `Backend` that measures another one's requests, ends them at their deadlines, and passes everything else on."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        meter = _Meter(request, "generate", self._label)
        meter.outcome = CANCELLED  # unless something else ends it
        events = self._backend.generate(request)
        if request.deadline is not None:
            events = punctual(events, request.deadline)
        try:
            async for event in events:
                meter.note(event)
                yield event
        except DuetError as error:
            meter.outcome = error.code
            raise
        except Exception:
            meter.outcome = Internal.code
            raise
        finally:
            meter.end()
            await events.aclose()  # type: ignore[attr-defined]

    async def embed(self, request: EmbeddingRequest) -> Embedded:
        return await _measured(_Meter(request, "embed", self._label), self._backend.embed(request), request.deadline)

    async def transcribe(self, request: TranscriptionRequest) -> Transcribed:
        return await _measured(
            _Meter(request, "transcribe", self._label), self._backend.transcribe(request), request.deadline
        )

    def _label(self, model: str) -> str:
        try:
            found = self._backend.resolve(model)
            return found.id if found.bytes_on_disk else UNKNOWN
        except ModelNotFound:
            return UNKNOWN

    def models(self) -> list[ModelInfo]:
        return self._backend.models()

    def resolve(self, name: str) -> ModelInfo:
        return self._backend.resolve(name)

    def progress(self, model: str) -> str:
        return self._backend.progress(model)

    async def kv(self) -> KvStatus:
        return await self._backend.kv()

    async def clear_kv(self, model: str | None) -> int:
        return await self._backend.clear_kv(model)

    def pool(self) -> PoolStatus:
        return self._backend.pool()

    def placement(self, name: str) -> Placement:
        return self._backend.placement(name)

    async def load(self, name: str) -> Placement:
        return await self._backend.load(name)

    async def unload(self, name: str, *, force: bool = False) -> Placement:
        return await self._backend.unload(name, force=force)

    def pin(self, name: str, pinned: bool) -> Placement:
        return self._backend.pin(name, pinned)


async def _measured(meter: _Meter, work: Awaitable[T], deadline: float | None) -> T:
    try:
        async with within(deadline):
            return await work
    except DuetError as error:
        meter.outcome = error.code
        raise
    except asyncio.CancelledError:
        meter.outcome = CANCELLED
        raise
    except Exception:
        meter.outcome = Internal.code
        raise
    finally:
        meter.end()
