"""Which models may take memory: entries, a limit and a wish → `Admit | Evict | Refuse`. Pure: no clock, no process, no I/O.

An entry is charged its estimate until its worker reports. From then on it is charged what it holds plus what it was promised and
may still take (its KV tier in memory). No model is admitted if the sum of charges would exceed the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from duet.sizes import gigabytes

WEIGHTS_FACTOR: Final = 1.05
"""Memory for weights and the arrays of one step, as a multiple of the weights on disk."""
WORKER_BYTES: Final = 400 << 20
"""A worker process without a model: Python, MLX, the libraries' code."""
LEAST_KV_BYTES: Final = 128 << 20
"""The smallest KV tier in memory that a model is loaded with, unless the settings name a smaller one."""
BUSY_RETRY_SECONDS: Final = 5
MOVING_RETRY_SECONDS: Final = 2
SURPLUS_SECONDS: Final = 30.0
"""How long charges may exceed the limit before a model's minimum residency no longer protects it."""
SHORT_RETRY_SECONDS: Final = 30
"""When to come back for memory that pinned models or other programs hold. How long they will hold it is unknown."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model that takes memory or is about to. Times are seconds of one clock.

    `users` are requests that have it or wait for it. `moving`: its process comes or goes, so its memory cannot be freed
    now. `leaving`: its process goes, so its memory will be free soon. `yields`: although pinned, it leaves for a large
    model that needs its memory. `gives_way`: it leaves for a large model in any case. `ttl_seconds` None: it stays."""

    model: str
    bytes: int
    users: int = 0
    pinned: bool = False
    moving: bool = False
    leaving: bool = False
    large: bool = False
    yields: bool = False
    gives_way: bool = False
    loaded_at: float = 0.0
    last_used: float = 0.0
    ttl_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be loaded."""

    model: str
    bytes: int
    large: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """`bytes` is what models may hold together now, `ceiling_bytes` the most they may ever hold; `ceiling_name` says what
    sets it."""

    ceiling_bytes: int
    ceiling_name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Rules:
    """A model that was just loaded stays for `minimum_residency_seconds`. `one_large`: a large model leaves before another
    loads."""

    minimum_residency_seconds: float
    one_large: bool = False


@dataclass(frozen=True, slots=True)
class Admit:
    """It fits: reserve its memory."""


@dataclass(frozen=True, slots=True)
class Evict:
    """It will fit once these models have gone."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shrink:
    """Models have grown beyond the limit: before any is unloaded, ask workers to give up what can be had again."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """It does not fit; `sentence` says why. `never`: it would not fit even alone, so there is no use in coming back."""

    sentence: str
    retry_after_seconds: int
    never: bool = False


Decision = Admit | Evict | Refuse


def estimate(weight_bytes: int, kv_memory_bytes: int) -> int:
    """Bytes that a model will take, known before it is loaded: weights on disk, KV tier in memory, process. `slot.wanted` asks
    only if the weights are here. KV of running requests is in no estimate: `launcher.active_kv_bytes` bounds it."""
    return round(weight_bytes * WEIGHTS_FACTOR) + kv_memory_bytes + WORKER_BYTES


def kv_that_fits(weight_bytes: int, kv_memory_bytes: int, ceiling_bytes: int) -> int:
    """Bytes of a model's KV tier in memory. A model that fills the machine gets a smaller tier instead of being refused."""
    left = ceiling_bytes - estimate(weight_bytes, 0)
    return min(kv_memory_bytes, max(LEAST_KV_BYTES, left))


def charge(estimate_bytes: int, resident_bytes: int | None, kv_promised_bytes: int, kv_resident_bytes: int) -> int:
    """Bytes that a model is charged: the estimate until it reports, then what it holds and what it may still fill with KV."""
    if resident_bytes is None:
        return estimate_bytes
    return resident_bytes + max(0, kv_promised_bytes - kv_resident_bytes)


def limit(
    ceilings: Iterable[tuple[int, str]], resident_bytes: int, available_bytes: int | None, reserve_bytes: int
) -> Limit:
    """The smallest of the `ceilings` (bytes, name; at least one), or less when the machine has less: what models hold now,
    plus what is available beside them (None: unknown), minus the reserve for other programs."""
    ceiling, name = min(ceilings)
    if available_bytes is None:
        return Limit(ceiling, name, ceiling)
    return Limit(ceiling, name, max(0, min(ceiling, resident_bytes + available_bytes - reserve_bytes)))


def decide(entries: Sequence[Entry], wanted: Wanted, limit: Limit, rules: Rules, now: float) -> Decision:
    """Whether `wanted` may load now, as exactly one of the three. A model in use or moving is never evicted, nor a pinned
    one that does not yield. While models leave whose memory will be enough, no other is evicted."""
    if wanted.bytes > limit.ceiling_bytes:
        return Refuse(_too_large(wanted, limit), 0, never=True)
    obliged = [entry for entry in entries if _must_leave(entry, wanted, rules)]
    stuck = [entry for entry in obliged if _obstacle(entry, wanted, rules, now)]
    if stuck:
        return Refuse(_sentence(wanted, limit, stuck, rules, now), _retry_after(stuck, rules, now))
    staying = [entry for entry in entries if entry not in obliged]
    missing = sum(entry.bytes for entry in staying) + wanted.bytes - limit.bytes
    if missing <= 0:
        return Evict(_names(obliged)) if obliged else Admit()
    free_to_go = [entry for entry in staying if not _obstacle(entry, wanted, rules, now)]
    chosen = victims(free_to_go, missing - sum(entry.bytes for entry in staying if entry.leaving), now)
    if chosen is None or not (obliged or chosen):
        return Refuse(_sentence(wanted, limit, entries, rules, now), _retry_after(entries, rules, now))
    return Evict(_names([*obliged, *chosen]))


def decide_behind(
    entries: Sequence[Entry], first: Wanted, wanted: Wanted, limit: Limit, rules: Rules, now: float
) -> Admit | Refuse:
    """For a load behind the `first` one in line. It is admitted if it fits as things are and still leaves enough for
    `first`, which waits for models in use or moving. A `first` that could not load even without those models holds nobody
    up."""
    next_one = Entry(first.model, first.bytes, moving=True, large=first.large)
    later = [replace(entry, users=0, moving=False, loaded_at=-math.inf) for entry in entries if not entry.leaving]
    plan = decide(later, first, limit, rules, now)
    leaving = plan.models if isinstance(plan, Evict) else ()
    then = [] if isinstance(plan, Refuse) else [*(entry for entry in later if entry.model not in leaving), next_one]
    if all(isinstance(decide(book, wanted, limit, rules, now), Admit) for book in (entries, then)):
        return Admit()
    return Refuse(_sentence(wanted, limit, [*entries, next_one], rules, now), MOVING_RETRY_SECONDS)


def victims(candidates: Sequence[Entry], missing_bytes: int, now: float) -> list[Entry] | None:
    """The candidates to evict so that `missing_bytes` are freed: the longest unused and largest first (idle time × bytes), pinned
    ones last, and no more than needed. None: all of them together are not enough."""
    chosen: list[Entry] = []
    freed = 0
    for entry in sorted(candidates, key=lambda entry: (not entry.pinned, *_worth(entry, now)), reverse=True):
        if freed >= missing_bytes:
            break
        chosen.append(entry)
        freed += entry.bytes
    if freed < missing_bytes:
        return None
    for entry in reversed([*chosen]):
        if freed - entry.bytes >= missing_bytes:
            chosen.remove(entry)
            freed -= entry.bytes
    return chosen


def expired(entries: Sequence[Entry], now: float) -> list[str]:
    """Models that were not used for as long as their TTL."""
    return [
        entry.model
        for entry in entries
        if entry.ttl_seconds is not None and _is_idle(entry) and now - entry.last_used >= entry.ttl_seconds
    ]


def relief(entries: Sequence[Entry], rules: Rules, now: float, *, critical: bool) -> list[str]:
    """Idle models to unload because the machine is short of memory: the one that costs least to lose, if its minimum residency is
    over; when it is `critical`, all of them."""
    idle = sorted((entry for entry in entries if _is_idle(entry)), key=lambda entry: _worth(entry, now), reverse=True)
    if critical:
        return [entry.model for entry in idle]
    return [entry.model for entry in idle if _residency_left(entry, rules, now) <= 0][:1]


def surplus(
    entries: Sequence[Entry], limit: Limit, rules: Rules, now: float, *, since: float | None
) -> Shrink | Evict | None:
    """What to do when charges exceed the ceiling, because models grew after they were admitted. None: they do not, or will
    not once the leaving models have gone. `since` is when the surplus was first seen; None: now.

    The ceiling counts, not what the machine has left just now: other programs that grow are no fault of the models, and the
    machine's pressure tells when that matters. Models in use, moving or pinned stay. If all idle models together are not enough,
    all of them go. A model that was just loaded stays for its minimum residency, unless the surplus lasts for `SURPLUS_SECONDS`.
    """
    missing = sum(entry.bytes for entry in entries if not entry.leaving) - limit.ceiling_bytes
    if missing <= 0:
        return None
    if since is None:
        return Shrink()
    idle = [entry for entry in entries if _is_idle(entry)]
    settled = [entry for entry in idle if _residency_left(entry, rules, now) <= 0]
    chosen = victims(settled, missing, now)
    if chosen is None and now - since >= SURPLUS_SECONDS:
        settled, chosen = idle, victims(idle, missing, now)
    return Evict(_names(settled if chosen is None else chosen))


def holders(entries: Iterable[Entry]) -> str:
    """The models that hold memory, in words: the largest first."""
    most_first = sorted(entries, key=lambda entry: -entry.bytes)
    return ", ".join(f"{entry.model} ({gigabytes(entry.bytes)})" for entry in most_first) or "no model is loaded"


def _is_idle(entry: Entry) -> bool:
    return not (entry.users or entry.moving or entry.pinned)


def _worth(entry: Entry, now: float) -> tuple[float, str]:
    return max(now - entry.last_used, 0.001) * entry.bytes, entry.model


def _must_leave(entry: Entry, wanted: Wanted, rules: Rules) -> bool:
    return wanted.large and (entry.gives_way or (rules.one_large and entry.large and not entry.pinned))


def _residency_left(entry: Entry, rules: Rules, now: float) -> float:
    return 0.0 if entry.pinned or entry.gives_way else entry.loaded_at + rules.minimum_residency_seconds - now


def _obstacle(entry: Entry, wanted: Wanted, rules: Rules, now: float) -> str:
    """Why a model cannot be unloaded for `wanted`, in words; "" when it can."""
    if entry.moving:
        return "is being loaded or unloaded"
    if entry.users:
        return f"has {entry.users} request{'s' if entry.users > 1 else ''}"
    if entry.pinned and not (wanted.large and (entry.yields or entry.gives_way)):
        return "is pinned"
    if (left := _residency_left(entry, rules, now)) > 0:
        return f"was loaded just now and stays {left:.0f} s more"
    return ""


def _retry_after(entries: Sequence[Entry], rules: Rules, now: float) -> int:
    waits = [SHORT_RETRY_SECONDS]
    for entry in entries:
        if entry.moving:
            waits.append(MOVING_RETRY_SECONDS)
        elif entry.users:
            waits.append(BUSY_RETRY_SECONDS)
        elif not entry.pinned and (left := _residency_left(entry, rules, now)) > 0:
            waits.append(int(left) + 1)
    return min(waits)


def _names(entries: Iterable[Entry]) -> tuple[str, ...]:
    return tuple(entry.model for entry in entries)


def _too_large(wanted: Wanted, limit: Limit) -> str:
    return (
        f"{wanted.model} needs about {gigabytes(wanted.bytes)}, and models may hold {gigabytes(limit.ceiling_bytes)} on this"
        f" machine ({limit.ceiling_name}): take a smaller or more strongly quantised one, or a smaller engine.kv_ram_bytes"
    )


def _sentence(wanted: Wanted, limit: Limit, entries: Sequence[Entry], rules: Rules, now: float) -> str:
    holders = ", ".join(
        f"{entry.model} ({gigabytes(entry.bytes)}) {_obstacle(entry, wanted, rules, now) or 'could go, which is not enough'}"
        for entry in sorted(entries, key=lambda entry: -entry.bytes)
    )
    others = "; other programs use the rest" if limit.bytes < limit.ceiling_bytes else ""
    return (
        f"{wanted.model} needs about {gigabytes(wanted.bytes)} of the {gigabytes(limit.bytes)} that models may hold now{others}:"
        f" {holders or 'no model is loaded'}"
    )
