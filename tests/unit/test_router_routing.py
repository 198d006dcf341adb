"""The routing decision, exhaustively, and what each recogniser leaves without effect."""

from __future__ import annotations

import itertools

import pytest

from asr_router.backends.port import Options
from asr_router.routing import BackendName, Clip, Health, Quality, Wish, choose, unused
from speech.sensevoice import LANGUAGES

BOTH = Health(sensevoice=True, qwen3_asr=True)
MODELS: tuple[BackendName | None, ...] = (None, "sensevoice", "qwen3_asr")
QUALITIES: tuple[Quality, ...] = ("auto", "fast", "high")
WISHES = [
    Wish(model, language, quality, keywords=keywords, prompt=prompt)
    for model, language, quality, keywords, prompt in itertools.product(
        MODELS, (None, "zh", "de"), QUALITIES, (False, True), (False, True)
    )
]
LENGTHS = (0.0, 5.0, 30.0, 30.01, 3600.0)


@pytest.mark.parametrize(
    ("seconds", "wish", "backend", "reason"),
    [
        (0.0, Wish(), "sensevoice", "short clip"),
        (30.0, Wish(), "sensevoice", "short clip"),
        (30.01, Wish(), "qwen3_asr", "longer than 30 s"),
        *[(5.0, Wish(language=language), "sensevoice", "short clip") for language in sorted(LANGUAGES)],
        (5.0, Wish(language="de"), "qwen3_asr", "language de"),
        (5.0, Wish(quality="high"), "qwen3_asr", "quality=high"),
        (3600.0, Wish(quality="fast"), "sensevoice", "quality=fast"),
        (5.0, Wish(language="de", quality="fast", keywords=True, prompt=True), "sensevoice", "quality=fast"),
        (5.0, Wish(keywords=True), "qwen3_asr", "keywords"),
        (5.0, Wish(prompt=True), "qwen3_asr", "prompt"),
        (3600.0, Wish(model="sensevoice", quality="high"), "sensevoice", "the model was asked for"),
        (5.0, Wish(model="qwen3_asr", quality="fast"), "qwen3_asr", "the model was asked for"),
    ],
)
def test_the_route_on_a_complete_installation(seconds: float, wish: Wish, backend: BackendName, reason: str) -> None:
    route = choose(Clip(seconds), wish, BOTH)
    assert route is not None
    assert (route.backend, route.reason, route.degraded) == (backend, reason, False)


@pytest.mark.parametrize("seconds", LENGTHS)
@pytest.mark.parametrize("wish", WISHES)
def test_a_missing_recogniser_is_replaced_openly_and_never_silently(seconds: float, wish: Wish) -> None:
    complete = choose(Clip(seconds), wish, BOTH)
    assert complete is not None
    assert not complete.degraded
    for sensevoice, qwen3_asr in ((True, False), (False, True)):
        route = choose(Clip(seconds), wish, Health(sensevoice, qwen3_asr))
        assert route is not None
        assert route.backend == ("sensevoice" if sensevoice else "qwen3_asr")
        if route.backend == complete.backend:
            assert route == complete
        else:
            assert route.degraded
            assert route.reason.startswith(f"{complete.reason}, but ")
    assert choose(Clip(seconds), wish, Health(sensevoice=False, qwen3_asr=False)) is None


@pytest.mark.parametrize("wish", [wish for wish in WISHES if wish.model is None and wish.quality == "auto"])
def test_what_sensevoice_cannot_do_goes_to_the_engine(wish: Wish) -> None:
    route = choose(Clip(5.0), wish, BOTH)
    assert route is not None
    assert (route.backend == "sensevoice") == (not wish.keywords and not wish.prompt and wish.language != "de")


def test_a_reason_can_be_a_header() -> None:
    for wish, seconds in itertools.product(WISHES, LENGTHS):
        for sensevoice, qwen3_asr in itertools.product((False, True), repeat=2):
            route = choose(Clip(seconds), wish, Health(sensevoice, qwen3_asr))
            assert route is None or (route.reason.isascii() and route.reason.isprintable())


@pytest.mark.parametrize(
    ("backend", "options", "words", "heard", "expected"),
    [
        ("sensevoice", Options(), True, "en", []),
        ("sensevoice", Options("en", "p", ("k",), 0.5), False, "en", ["keywords", "prompt", "temperature"]),
        ("sensevoice", Options("en"), False, "zh", ["language"]),
        ("sensevoice", Options("en"), False, None, []),
        ("qwen3_asr", Options("en", "p", ("k",), 0.5), False, "zh", []),
        ("qwen3_asr", Options(), True, "zh", ["timestamp_granularities"]),
    ],
)
def test_fields_without_effect_are_named(
    backend: BackendName, options: Options, words: bool, heard: str | None, expected: list[str]
) -> None:
    assert unused(backend, options, words=words, heard=heard) == expected
