"""What a worker reports about itself, and what the gateway sums up about KV on disk."""

from __future__ import annotations

import msgspec


class KvReport(msgspec.Struct, omit_defaults=True, tag="kv"):
    """One worker's KV cache. Bytes and entries are those of now; the other counts begin when the worker starts, except
    `written_today`. `off` says why nothing goes to SSD, "" when it does. A worker sends copies of its report."""

    memory_bytes: int = 0
    memory_entries: int = 0
    disk_bytes: int = 0
    disk_entries: int = 0
    written_today: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    prompts: int = 0
    restored_tokens: int = 0
    checkpoints: int = 0
    refused: int = 0
    corrupt: int = 0
    spilled_away: int = 0
    off: str = ""


class BatchReport(msgspec.Struct, frozen=True, omit_defaults=True, tag="batch"):
    """One worker's batch: rows that decode, requests that have no row yet, the tokens of KV that both hold, the bound of these
    tokens (None until the bytes of a token are known), and how often a row was swapped out since the worker started."""

    rows: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    kv_tokens_bound: int | None = None
    preemptions: int = 0


class MemoryReport(msgspec.Struct, frozen=True, omit_defaults=True, tag="memory"):
    """What one worker process holds: MLX's arrays, the buffers it keeps for reuse, its peak, and what the system charges the
    process for. `working_set_bytes` is what Metal recommends for all processes together, 0 without Metal."""

    active_bytes: int = 0
    cache_bytes: int = 0
    peak_bytes: int = 0
    footprint_bytes: int = 0
    working_set_bytes: int = 0

    @property
    def resident_bytes(self) -> int:
        """Memory that ends with the process. Where the footprint leaves the GPU's buffers out, MLX's own count is larger."""
        return max(self.footprint_bytes, self.active_bytes + self.cache_bytes)


class KvDirectory(msgspec.Struct, frozen=True):
    """KV of one model on disk. `owned`: a worker uses it now."""

    name: str
    model: str
    owned: bool
    bytes: int
    entries: int
    written_today: int


class KvStatus(msgspec.Struct, frozen=True):
    """All KV of this machine: the caps, the directories, and what each loaded model reports."""

    disk_bytes_cap: int
    write_bytes_a_day_cap: int
    directories: tuple[KvDirectory, ...]
    workers: dict[str, KvReport]
