"""`GET /metrics`: Prometheus text. `metered` counts requests as they come; the pool and the KV cache are read for each call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, get_args

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.api.metered import REGISTRY
from engine.api.shared.ports import OperatorsDep
from engine.types import KvReport, KvStatus, ModelState, Placement, PoolStatus

router = APIRouter()

_KV_GAUGES: Final = {
    "memory_bytes": "KV in memory", "memory_entries": "Blocks and checkpoints in memory", "disk_bytes": "KV on SSD",
    "disk_entries": "Blocks and checkpoints on SSD",
}  # fmt: skip
_KV_COUNTERS: Final = {
    "read_bytes": "Bytes of KV read from the SSD", "written_bytes": "Bytes of KV written to the SSD",
    "prompts": "Prompts looked up: bytes read and written divide by it",
    "checkpoints": "Checkpoints of state layers taken", "refused": "KV files that a limit or the disk forbade",
    "corrupt": "KV files found damaged", "spilled_away": "Entries dropped because the disk was too slow",
}  # fmt: skip
_PRESSURES: Final = {"normal": 0, "warning": 1, "critical": 2}


@router.get("/metrics")
async def metrics(operators: OperatorsDep) -> Response:
    """For Prometheus: counters since the start, and the pool and the KV cache of every loaded model as they are now."""
    registry = CollectorRegistry()
    registry.register(_Kv(await operators.kv()))
    registry.register(_Pool(operators.pool()))
    return Response(generate_latest(REGISTRY) + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Kv(Collector):
    def __init__(self, status: KvStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """One family for each field of `KvReport`, with one sample for each loaded model."""
        for name, text in _KV_GAUGES.items():
            yield self._filled(GaugeMetricFamily(f"duet_kv_{name}", text, labels=["model"]), name)
        for name, text in _KV_COUNTERS.items():
            yield self._filled(CounterMetricFamily(f"duet_kv_{name}", text, labels=["model"]), name)
        yield self._written_today()

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, name: str) -> Metric:
        for model, report in self._status.workers.items():
            assert isinstance(report, KvReport)
            family.add_metric([model], getattr(report, name))
        return family

    def _written_today(self) -> Metric:
        """Directories outlive workers, so they also count what unloaded models wrote today. A worker without a directory in the
        list is counted by its own report."""
        family = GaugeMetricFamily("duet_kv_written_today", "Bytes of KV written to the SSD today", labels=["model"])
        found: Counter[str] = Counter()
        for directory in self._status.directories:
            found[directory.model] += directory.written_today
        for model, report in self._status.workers.items():
            found[model] = max(found[model], report.written_today)
        for model, size in found.items():
            family.add_metric([model], size)
        return family


class _Pool(Collector):
    def __init__(self, status: PoolStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The pool as a whole, then its models."""
        status = self._status
        yield _gauge("duet_memory_limit_bytes", "What models may hold now", status.limit_bytes)
        yield _gauge("duet_memory_charged_bytes", "What models are charged by the ledger", status.charged_bytes)
        yield _gauge("duet_memory_held_bytes", "What workers report that they hold", status.resident_bytes)
        if status.available_bytes is not None:
            yield _gauge("duet_memory_available_bytes", "What the machine has left", status.available_bytes)
        yield _gauge("duet_swap_used_bytes", "Swap in use on the machine", status.swap_used_bytes)
        yield _gauge("duet_memory_pressure", "0 normal, 1 warning, 2 critical", _PRESSURES[status.pressure])
        yield _gauge("duet_loads_waiting", "Loads that wait for memory", status.waiting_for_memory)
        refused = CounterMetricFamily("duet_memory_refused", "Loads for which there was no memory")
        refused.add_metric([], status.refused)
        yield refused
        yield from _by_model(status.models)


def _by_model(models: tuple[Placement, ...]) -> Iterator[Metric]:
    running = GaugeMetricFamily("vllm:num_requests_running", "Requests that have a row", labels=["model_name"])
    waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait for a row", labels=["model_name"])
    memory = GaugeMetricFamily(
        "duet_model_memory_bytes",
        "A model's memory: estimate, charged, held, and MLX's own count",
        labels=["model", "kind"],
    )
    state = GaugeMetricFamily("duet_model_state", "1 for the state that a model is in", labels=["model", "state"])
    rows = GaugeMetricFamily("duet_batch_rows", "Rows that decode together", labels=["model"])
    queued = GaugeMetricFamily("duet_batch_waiting", "Requests in a worker that have no row yet", labels=["model"])
    usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "KV of running requests, of its bound", labels=["model_name"])
    preemptions = CounterMetricFamily("vllm:num_preemptions", "Rows that were swapped out", labels=["model_name"])
    loads = CounterMetricFamily("duet_model_loads", "Times that a model was loaded", labels=["model"])
    unloads = CounterMetricFamily("duet_model_unloads", "Times that it was unloaded", labels=["model", "reason"])
    crashes = CounterMetricFamily("duet_worker_crashes", "Workers that ended by themselves", labels=["model"])
    for model in models:
        having_a_row = rows_of(model)
        running.add_metric([model.id], having_a_row)
        waiting.add_metric([model.id], model.running + model.waiting - having_a_row)
        if (batch := model.batch) is not None:
            rows.add_metric([model.id], batch.rows)
            queued.add_metric([model.id], batch.waiting)
            usage.add_metric([model.id], batch.kv_tokens / batch.kv_tokens_bound if batch.kv_tokens_bound else 0.0)
            preemptions.add_metric([model.id], batch.preemptions)
        for kind, size in _memory(model).items():
            memory.add_metric([model.id, kind], size)
        for name in get_args(ModelState):
            state.add_metric([model.id, name], model.state == name)
        loads.add_metric([model.id], model.loads)
        crashes.add_metric([model.id], model.crashes)
        for reason, count in model.unloads.items():
            unloads.add_metric([model.id, reason], count)
    yield from (running, waiting, rows, queued, usage, preemptions, memory, state, loads, unloads, crashes)


def rows_of(model: Placement) -> int:
    """Requests that have a row, which is what vLLM calls running; all others wait.

    It is always known how many requests a worker has. How many of them have a row is known from its last report, up to a second
    ago. A request that came later counts as having a row, because nothing is known that would keep it from one. A model that
    reports no batch (embeddings, transcription) works on all its requests.
    """
    if model.batch is None:
        return model.running
    return max(min(model.batch.rows, model.running), model.running - model.batch.waiting)


def _memory(model: Placement) -> Mapping[str, int]:
    found = {"estimate": model.estimate_bytes, "charged": model.charged_bytes}
    if model.memory is not None:
        report = model.memory
        found |= {"held": report.resident_bytes, "mlx_active": report.active_bytes, "mlx_cache": report.cache_bytes}
        found["mlx_peak"] = report.peak_bytes
    return found


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family
