"""`GET /metrics`: Prometheus text. Counted here, where every answer passes, and read from the backend when asked for."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from duet.wire import Usage
from engine.api.dependencies import BackendDep
from engine.types import CacheNote, KvReport, KvStatus

router = APIRouter()
REGISTRY = CollectorRegistry()
_PROMPT_TOKENS = Counter("duet_prompt_tokens", "Prompt tokens of answered requests", ["model"], registry=REGISTRY)
_CACHED_TOKENS = Counter(
    "duet_cached_tokens", "Prompt tokens that were restored, by tier (ram, ssd)", ["model", "tier"], registry=REGISTRY
)
_LOOKUPS = Counter(
    "duet_kv_lookups",
    "Prompts looked up in the KV cache, by why no more was found",
    ["model", "miss"],
    registry=REGISTRY,
)

_GAUGES = {
    "memory_bytes": "KV in memory", "memory_entries": "Blocks and checkpoints in memory", "disk_bytes": "KV on SSD",
    "disk_entries": "Blocks and checkpoints on SSD", "written_today": "Bytes of KV written to the SSD today",
}  # fmt: skip
_COUNTERS = {
    "read_bytes": "Bytes of KV read from the SSD", "written_bytes": "Bytes of KV written to the SSD",
    "prompts": "Prompts looked up: bytes read and written divide by it",
    "checkpoints": "Checkpoints of state layers taken", "refused": "KV files that a limit or the disk forbade",
    "corrupt": "KV files found damaged", "spilled_away": "Entries dropped because the disk was too slow",
}  # fmt: skip


def note_answer(model: str, note: CacheNote, usage: Usage) -> None:
    """Count one answered request."""
    _PROMPT_TOKENS.labels(model).inc(usage.prompt_tokens)
    _LOOKUPS.labels(model, note.reason.partition("(")[0] or "none").inc()
    if usage.cached_tokens:
        _CACHED_TOKENS.labels(model, note.tier or "ram").inc(usage.cached_tokens)


@router.get("/metrics")
async def metrics(backend: BackendDep) -> Response:
    """For Prometheus: counters since the start, and the KV cache of every loaded model as it is now."""
    registry = CollectorRegistry()
    registry.register(_Workers(await backend.kv(directories=False)))
    return Response(generate_latest(REGISTRY) + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Workers(Collector):
    def __init__(self, status: KvStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """One family a field of `KvReport`, one sample a loaded model."""
        for name, text in _GAUGES.items():
            yield self._filled(GaugeMetricFamily(f"duet_kv_{name}", text, labels=["model"]), name)
        for name, text in _COUNTERS.items():
            yield self._filled(CounterMetricFamily(f"duet_kv_{name}", text, labels=["model"]), name)

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, name: str) -> Metric:
        for model, report in self._status.workers.items():
            assert isinstance(report, KvReport)
            family.add_metric([model], getattr(report, name))
        return family
