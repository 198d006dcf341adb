"""The routing decision, exhaustively, and what each recogniser leaves without effect."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asr_router.routing import Candidate, Clip, Quality, Route, Wish, choose, unused
from speech.recognisers import sensevoice
from speech.recognisers.engine import QWEN3_ASR, EngineRecogniser
from speech.recognisers.port import Abilities, Options
from speech.recognisers.sensevoice import SenseVoiceRecogniser

SHORT = sensevoice.ABILITIES
QUALITIES: tuple[Quality, ...] = ("auto", "fast", "high")
WISHES = [
    Wish(recogniser, language, quality, keywords=keywords, prompt=prompt)
    for recogniser, language, quality, keywords, prompt in itertools.product(
        (None, "sensevoice", "qwen3_asr"), (None, "zh", "de"), QUALITIES, (False, True), (False, True)
    )
]
LENGTHS = (0.0, 5.0, 30.0, 30.01, 3600.0)


def house(*, sensevoice: bool = True, qwen3_asr: bool = True) -> list[Candidate]:
    """The recognisers of the house, and which of them are ready."""
    return [
        Candidate("sensevoice", SHORT, sensevoice, SenseVoiceRecogniser.unready),
        Candidate("qwen3_asr", QWEN3_ASR, qwen3_asr, EngineRecogniser.unready),
    ]


@dataclass(frozen=True)
class Row:
    """One line of the table: a request, and its route for each set of recognisers that are ready."""

    wish: Wish
    seconds: float
    routes: dict[str, str]


def rows() -> list[Row]:
    def given(cell: str) -> Any:
        return None if cell == "-" else cell

    with Path(__file__).with_name("routing_table.tsv").open(encoding="utf-8", newline="") as file:
        return [
            Row(
                Wish(given(line["model"]), given(line["language"]), line["quality"],  # type: ignore[arg-type]
                     keywords=line["keywords"] == "yes", prompt=line["prompt"] == "yes"),
                float(line["seconds"]),
                {ready: line[ready] for ready in READY},
            )
            for line in csv.DictReader(file, delimiter="\t")
        ]  # fmt: skip


READY = {
    "both ready": house(),
    "only sensevoice ready": house(qwen3_asr=False),
    "only qwen3_asr ready": house(sensevoice=False),
}


def test_every_decision_is_that_of_the_table() -> None:
    table = rows()
    assert {row.wish for row in table} == set(WISHES)
    for row in table:
        for ready, candidates in READY.items():
            route = choose(Clip(row.seconds), row.wish, candidates)
            assert route is not None
            shown = f"{route.recogniser}{' (degraded)' if route.degraded else ''}: {route.reason}"
            assert shown == row.routes[ready], (row.wish, row.seconds, ready)
        assert choose(Clip(row.seconds), row.wish, house(sensevoice=False, qwen3_asr=False)) is None


@pytest.mark.parametrize(
    ("seconds", "wish", "recogniser", "reason"),
    [
        (0.0, Wish(), "sensevoice", "short clip"),
        (30.0, Wish(), "sensevoice", "short clip"),
        (30.01, Wish(), "qwen3_asr", "longer than 30 s"),
        *[(5.0, Wish(language=language), "sensevoice", "short clip") for language in sorted(SHORT.languages or ())],
        (5.0, Wish(language="de"), "qwen3_asr", "language de"),
        (5.0, Wish(quality="high"), "qwen3_asr", "quality=high"),
        (3600.0, Wish(quality="fast"), "sensevoice", "quality=fast"),
        (5.0, Wish(language="de", quality="fast", keywords=True, prompt=True), "sensevoice", "quality=fast"),
        (5.0, Wish(keywords=True), "qwen3_asr", "keywords"),
        (5.0, Wish(prompt=True), "qwen3_asr", "prompt"),
        (3600.0, Wish("sensevoice", quality="high"), "sensevoice", "the model was asked for"),
        (5.0, Wish("qwen3_asr", quality="fast"), "qwen3_asr", "the model was asked for"),
    ],
)
def test_the_route_on_a_complete_installation(seconds: float, wish: Wish, recogniser: str, reason: str) -> None:
    assert choose(Clip(seconds), wish, house()) == Route(recogniser, reason)


@pytest.mark.parametrize("seconds", LENGTHS)
@pytest.mark.parametrize("wish", WISHES)
def test_a_missing_recogniser_is_replaced_openly_and_never_silently(seconds: float, wish: Wish) -> None:
    complete = choose(Clip(seconds), wish, house())
    assert complete is not None
    assert not complete.degraded
    for sensevoice_ready in (True, False):
        candidates = house(sensevoice=sensevoice_ready, qwen3_asr=not sensevoice_ready)
        route = choose(Clip(seconds), wish, candidates)
        assert route is not None
        assert route.recogniser == ("sensevoice" if sensevoice_ready else "qwen3_asr")
        if route.recogniser == complete.recogniser:
            assert route == complete
        else:
            assert route.degraded
            assert route.reason.startswith(f"{complete.reason}, but ")
    assert choose(Clip(seconds), wish, house(sensevoice=False, qwen3_asr=False)) is None


@pytest.mark.parametrize("wish", [wish for wish in WISHES if wish.recogniser is None and wish.quality == "auto"])
def test_what_sensevoice_cannot_do_goes_to_the_engine(wish: Wish) -> None:
    route = choose(Clip(5.0), wish, house())
    assert route is not None
    assert (route.recogniser == "sensevoice") == (not wish.keywords and not wish.prompt and wish.language != "de")


def test_a_reason_can_be_a_header() -> None:
    for wish, seconds in itertools.product(WISHES, LENGTHS):
        for first, second in itertools.product((False, True), repeat=2):
            route = choose(Clip(seconds), wish, house(sensevoice=first, qwen3_asr=second))
            assert route is None or (route.reason.isascii() and route.reason.isprintable())


GERMAN = Abilities(frozenset({"de"}), frozenset({"keywords"}), max_seconds=60.0)


@pytest.mark.parametrize(
    ("wish", "ready", "expected"),
    [
        (Wish(language="de"), (True, True, True), Route("german", "language de")),
        (Wish(language="de", prompt=True), (True, True, True), Route("qwen3_asr", "prompt")),
        (Wish(language="fr"), (True, True, True), Route("qwen3_asr", "language fr")),
        (Wish(quality="high"), (True, True, True), Route("qwen3_asr", "quality=high")),
        (Wish("german"), (True, True, True), Route("german", "the model was asked for")),
        # One that can do all of it goes before one that is merely ready.
        (Wish(language="de"), (True, False, True), Route("qwen3_asr", "language de, but it is away", degraded=True)),
        (Wish(quality="high"), (True, True, False),
         Route("german", "quality=high, but the engine has no speech model ready", degraded=True)),
        (Wish(language="fr"), (True, True, False),
         Route("sensevoice", "language fr, but the engine has no speech model ready", degraded=True)),
    ],
)  # fmt: skip
def test_a_third_recogniser_is_chosen_by_what_it_can_do(
    wish: Wish, ready: tuple[bool, bool, bool], expected: Route
) -> None:
    first, last = house(sensevoice=ready[0], qwen3_asr=ready[2])
    assert choose(Clip(5.0), wish, [first, Candidate("german", GERMAN, ready[1], "it is away"), last]) == expected


def test_where_nobody_is_able_the_last_is_taken() -> None:
    candidates = [house()[0], Candidate("german", GERMAN, ready=True, unready="it is away")]
    assert choose(Clip(5.0), Wish(language="fr"), candidates) == Route("german", "language fr")


@pytest.mark.parametrize(
    ("abilities", "options", "words", "heard", "expected"),
    [
        (SHORT, Options(), True, "en", []),
        (SHORT, Options("en", "p", ("k",), 0.5), False, "en", ["keywords", "prompt", "temperature"]),
        (SHORT, Options("en"), False, "zh", ["language"]),
        (SHORT, Options("en"), False, None, []),
        (QWEN3_ASR, Options("en", "p", ("k",), 0.5), False, "zh", []),
        (QWEN3_ASR, Options(), True, "zh", ["timestamp_granularities"]),
        (GERMAN, Options("en", "p", ("k",)), True, "de", ["language", "prompt", "timestamp_granularities"]),
    ],
)
def test_fields_without_effect_are_named(
    abilities: Abilities, options: Options, words: bool, heard: str | None, expected: list[str]
) -> None:
    assert unused(abilities, options, words=words, heard=heard) == expected
