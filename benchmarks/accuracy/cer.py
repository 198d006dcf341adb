"""`duet bench cer`: recognition, and review by rule and by language model, on a manifest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.accuracy.figures import Figures, Scored, figures
from benchmarks.accuracy.manifest import Manifest, Utterance
from duet.errors import DuetError
from duet.settings import Settings
from pipelines.clients import Engine, EngineUnavailable, Reviewer
from pipelines.glossary import Term
from pipelines.meeting.edits import Proposal, apply
from pipelines.meeting.prompts import ask_review, read_review, review_tokens
from pipelines.meeting.rule import by_sound

ARMS = ("none", "rule", "lm", "lm+rule")
REQUESTS_AT_ONCE = 4

Arm = Callable[[str, Sequence[Term]], Any]


@dataclass(frozen=True)
class Run:
    """What an arm made of all utterances with one glossary ("true": the manifest's; "absent": terms said nowhere)."""

    arm: str
    glossary: str
    groups: dict[str, Figures]
    texts: tuple[str, ...]


class Review:
    """The arms. `lm` is None when the engine or its review model is out of reach; `problem` then says why."""

    def __init__(self, settings: Settings, model: str | None) -> None:
        self._settings = settings
        self._model = model or settings.meetings.review_model
        self._engine: Engine | None = None
        self.reviewer: Reviewer | None = None
        self.problem = ""
        self.unreadable = 0
        self._limit = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def open(self) -> None:
        self._engine = Engine(self._settings, timeout_seconds=self._settings.meetings.review_timeout_seconds)
        try:
            self.reviewer = await self._engine.reviewer(self._model)
        except (EngineUnavailable, DuetError) as error:
            self.problem = error.message

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.__aexit__(None, None, None)

    async def text(self, arm: str, heard: str, terms: Sequence[Term]) -> str:
        """`heard` after the arm's edits, each checked by the pipeline's guard."""
        known = {term.text for term in terms}
        if arm.startswith("lm"):
            heard, _ = apply(heard, await self._proposals(heard, terms), known)
        if arm.endswith("rule"):
            heard, _ = apply(heard, by_sound(heard, terms), known)
        return heard

    async def _proposals(self, heard: str, terms: Sequence[Term]) -> list[Proposal]:
        assert self._engine is not None and self.reviewer is not None
        lines = [("s0001", heard)]
        messages = ask_review([], lines, [], terms, glossary_terms=self.reviewer.glossary_terms)
        async with self._limit:
            answer = await self._engine.chat(self.reviewer.id, messages, max_tokens=review_tokens(lines))
        try:
            return read_review(answer, lines).get("s0001", [])
        except (ValueError, msgspec.ValidationError):
            self.unreadable += 1
            return []


async def run(
    review: Review,
    manifest: Manifest,
    heard: Sequence[str],
    arms: Sequence[str],
    on_progress: Callable[[str, int], None],
) -> list[Run]:
    """Every arm with the true glossary, and those that edit with the absent one too, if there is one."""
    found = []
    for arm in arms:
        for kind in ("true", "absent"):
            if kind == "absent" and (arm == "none" or not manifest.absent):
                continue
            if arm.startswith("lm") and review.reviewer is None:
                continue
            texts = await _texts(review, arm, kind, manifest, heard, on_progress)
            found.append(Run(arm, kind, grouped(manifest, heard, texts), texts))
    return found


async def _texts(
    review: Review,
    arm: str,
    kind: str,
    manifest: Manifest,
    heard: Sequence[str],
    on_progress: Callable[[str, int], None],
) -> tuple[str, ...]:
    if arm == "none":
        return tuple(heard)
    done = 0

    async def one(utterance: Utterance, text: str) -> str:
        nonlocal done
        words = utterance.glossary if kind == "true" else manifest.absent
        result = await review.text(arm, text, [Term(word) for word in words])
        done += 1
        on_progress(f"{arm}, {kind} glossary", done)
        return result

    pairs = zip(manifest.utterances, heard, strict=True)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(utterance, text)) for utterance, text in pairs]
    except* DuetError as failures:
        raise failures.exceptions[0] from None
    return tuple(task.result() for task in tasks)


def grouped(manifest: Manifest, heard: Sequence[str], texts: Sequence[str]) -> dict[str, Figures]:
    """Figures of all utterances, of each language, and of those with and without glossary terms."""
    rows = [
        Scored(utterance.text, before, after, utterance.terms)
        for utterance, before, after in zip(manifest.utterances, heard, texts, strict=True)
    ]
    groups: dict[str, list[Scored]] = {"all": rows}
    for utterance, row in zip(manifest.utterances, rows, strict=True):
        groups.setdefault(utterance.language, []).append(row)
        if any(other.terms for other in manifest.utterances):
            groups.setdefault("with terms" if utterance.terms else "without terms", []).append(row)
    terms = sorted({term for utterance in manifest.utterances for term in utterance.glossary})
    return {name: figures(members, terms) for name, members in groups.items()}
