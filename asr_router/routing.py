"""Which recogniser takes a clip: a pure decision, so that it can be printed, tested and explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from speech.recognisers.port import Abilities, Field, Options

Quality = Literal["auto", "fast", "high"]


@dataclass(frozen=True)
class Clip:
    seconds: float


@dataclass(frozen=True)
class Wish:
    """What the request asks for. `recogniser` pins one by name; None lets us choose."""

    recogniser: str | None = None
    language: str | None = None
    quality: Quality = "auto"
    keywords: bool = False
    prompt: bool = False


@dataclass(frozen=True)
class Candidate:
    """A recogniser as the decision sees it. `unready`: why it cannot be used while it is not `ready`, as a clause."""

    name: str
    abilities: Abilities
    ready: bool
    unready: str


@dataclass(frozen=True)
class Route:
    """`reason` is shown to the caller. `degraded`: not what the request would have had on a complete installation."""

    recogniser: str
    reason: str
    degraded: bool = False


SHORT_CLIP = "short clip"
"""The reason when the first candidate lacks nothing."""


def choose(clip: Clip, wish: Wish, candidates: Sequence[Candidate]) -> Route | None:
    """The route, or None when no candidate is ready. `candidates` stand in order of preference, which is also from the
    fastest to the most accurate."""
    order = tuple(reversed(candidates)) if wish.quality == "high" else tuple(candidates)
    wanted, reason = _wanted(clip, wish, order)
    if wanted.ready:
        return Route(wanted.name, reason)
    ready = [candidate for candidate in order if candidate.ready]
    able = [candidate for candidate in ready if lack(candidate.abilities, clip, wish) is None]
    for candidate in able or ready:
        return Route(candidate.name, f"{reason}, but {wanted.unready}", degraded=True)
    return None


def _wanted(clip: Clip, wish: Wish, order: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The candidate if all were ready, and why. Where none is able, the last is taken."""
    if wish.recogniser is not None:
        return next(candidate for candidate in order if candidate.name == wish.recogniser), "the model was asked for"
    if wish.quality != "auto":
        return order[0], f"quality={wish.quality}"
    able = (candidate for candidate in order if lack(candidate.abilities, clip, wish) is None)
    return next(able, order[-1]), lack(order[0].abilities, clip, wish) or SHORT_CLIP


def lack(abilities: Abilities, clip: Clip, wish: Wish) -> str | None:
    """The first part of the request that a recogniser cannot do, as a reason; None when it can do all of it."""
    if wish.keywords and "keywords" not in abilities.honours:
        return "keywords"
    if wish.prompt and "prompt" not in abilities.honours:
        return "prompt"
    if wish.language is not None and not abilities.hears(wish.language):
        return f"language {wish.language}"
    if abilities.max_seconds is not None and clip.seconds > abilities.max_seconds:
        return f"longer than {abilities.max_seconds:.0f} s"
    return None


def unused(abilities: Abilities, options: Options, *, words: bool, heard: str | None) -> list[str]:
    """Fields that were given and had no effect, by name. `words`: times of words were asked for. `heard`: the detected
    language; a recogniser that detects it has used the given one if both are the same."""
    given: dict[Field, bool] = {
        "keywords": bool(options.keywords),
        "language": options.language is not None and heard is not None and options.language != heard,
        "prompt": bool(options.prompt),
        "temperature": options.temperature > 0,
        "timestamp_granularities": words,
    }
    return sorted({name for name, present in given.items() if present} - abilities.honours)
