"""Which recogniser takes a clip: a pure decision, so that it can be printed, tested and explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asr_router.backends.port import Options
from speech.sensevoice import LANGUAGES

BackendName = Literal["sensevoice", "qwen3_asr"]
Quality = Literal["auto", "fast", "high"]
SHORT_SECONDS = 30.0


@dataclass(frozen=True)
class Clip:
    seconds: float


@dataclass(frozen=True)
class Wish:
    """What the request asks for. `model` pins a backend, None lets us choose."""

    model: BackendName | None = None
    language: str | None = None
    quality: Quality = "auto"
    keywords: bool = False
    prompt: bool = False


@dataclass(frozen=True)
class Health:
    """Which backends can be used now."""

    sensevoice: bool
    qwen3_asr: bool


@dataclass(frozen=True)
class Route:
    """`reason` is shown to the caller. `degraded`: not what the request would have had on a complete installation."""

    backend: BackendName
    reason: str
    degraded: bool = False


SHORT_CLIP = Route("sensevoice", "short clip")


def choose(clip: Clip, wish: Wish, health: Health) -> Route | None:
    """The route, or None when no recogniser can be used at all."""
    wanted = _wanted(clip, wish)
    available = {"sensevoice": health.sensevoice, "qwen3_asr": health.qwen3_asr}
    if available[wanted.backend]:
        return wanted
    if wanted.backend == "qwen3_asr" and health.sensevoice:
        return Route("sensevoice", f"{wanted.reason}, but the engine has no speech model ready", degraded=True)
    if wanted.backend == "sensevoice" and health.qwen3_asr:
        return Route("qwen3_asr", f"{wanted.reason}, but no SenseVoice model is installed", degraded=True)
    return None


def _wanted(clip: Clip, wish: Wish) -> Route:
    if wish.model is not None:
        return Route(wish.model, "the model was asked for")
    if wish.quality == "fast":
        return Route("sensevoice", "quality=fast")
    if wish.quality == "high":
        return Route("qwen3_asr", "quality=high")
    if wish.keywords:
        return Route("qwen3_asr", "keywords")
    if wish.prompt:
        return Route("qwen3_asr", "prompt")
    if wish.language is not None and wish.language not in LANGUAGES:
        return Route("qwen3_asr", f"language {wish.language}")
    if clip.seconds > SHORT_SECONDS:
        return Route("qwen3_asr", f"longer than {SHORT_SECONDS:.0f} s")
    return SHORT_CLIP


def unused(backend: BackendName, options: Options, *, words: bool, heard: str | None) -> list[str]:
    """Fields that were given and had no effect, since this backend has no such ability. `heard` is the detected language."""
    if backend == "qwen3_asr":
        return ["timestamp_granularities"] if words else []
    given = {
        "keywords": bool(options.keywords),
        "language": options.language is not None and heard is not None and options.language != heard,
        "prompt": bool(options.prompt),
        "temperature": options.temperature > 0,
    }
    return [name for name, present in given.items() if present]
