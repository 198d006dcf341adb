"""`duet bench cer`: recognition, and review by rule and by language model, on a manifest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import msgspec

from benchmarks.accuracy.figures import Figures, Scored, figures
from benchmarks.accuracy.manifest import Manifest
from duet.errors import DuetError
from duet.settings import Settings
from pipelines.clients import Engine, Reviewer
from pipelines.glossary import Term
from pipelines.meeting.review.edits import Proposal
from pipelines.meeting.review.windows import Window, corrected, propose, windows

ARMS = ("none", "rule", "lm", "lm+rule")
REQUESTS_AT_ONCE = 4

Proposals = tuple[list[Proposal], ...]
"""The model's edits, utterance by utterance."""


@dataclass(frozen=True)
class Run:
    """What an arm made of all utterances with one glossary ("true": the manifest's; "absent": terms said nowhere)."""

    arm: str
    glossary: str
    groups: dict[str, Figures]
    texts: tuple[str, ...]


class Review:
    """The review model. `reviewer` is None when the engine or the model is unavailable; `problem` then says why.

    `unreadable` counts windows whose answer could not be read: they get no edits, as in a meeting.
    """

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
        except DuetError as error:
            self.problem = error.message

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.__aexit__(None, None, None)

    async def proposals(
        self, manifest: Manifest, heard: Sequence[str], kind: str, on_progress: Callable[[int], None]
    ) -> Proposals:
        """Reviews the utterances of one recording like the segments of a meeting, in windows with their context. An utterance
        that is a whole recording is reviewed alone. Raises `DuetError` when the engine fails."""
        if self._engine is None or self.reviewer is None:
            raise ValueError("there is no reviewer")
        engine, reviewer = self._engine, self.reviewer
        found: list[list[Proposal]] = [[] for _ in heard]
        done = 0

        async def one(window: Window, first: int, terms: Sequence[Term]) -> None:
            nonlocal done
            try:
                async with self._limit:
                    answer = await propose(engine, reviewer, window, terms)
            except (ValueError, msgspec.ValidationError):
                self.unreadable += 1
                answer = {}
            for name, _ in window.lines:
                found[first + int(name[1:]) - 1] = answer.get(name, [])
            done += len(window.lines)
            on_progress(done)

        try:
            async with asyncio.TaskGroup() as group:
                for first, texts in _recordings(manifest, heard):
                    lines = [(f"s{i:04d}", text) for i, text in enumerate(texts, 1)]
                    terms = _terms(manifest, first, kind)
                    for window in windows(lines, reviewer):
                        group.create_task(one(window, first, terms))
        except* DuetError as failures:
            raise failures.exceptions[0] from None
        return tuple(found)


def _recordings(manifest: Manifest, heard: Sequence[str]) -> list[tuple[int, list[str]]]:
    """(index of the first utterance, texts) for each run of utterances from the same recording."""
    result = []
    paired = zip(manifest.utterances, heard, strict=True)
    first = 0
    for _, members in groupby(paired, lambda pair: (pair[0].audio, pair[0].glossary)):
        texts = [text for _, text in members]
        result.append((first, texts))
        first += len(texts)
    return result


def _terms(manifest: Manifest, index: int, kind: str) -> list[Term]:
    words = manifest.utterances[index].glossary if kind == "true" else manifest.absent
    return [Term(word) for word in words]


async def run(
    review: Review,
    manifest: Manifest,
    heard: Sequence[str],
    arms: Sequence[str],
    on_progress: Callable[[str, int], None],
) -> list[Run]:
    """Every arm with the true glossary; arms that edit also with the absent one, if there is one.

    Arms with a language model share its answers, and are left out when there is no model. Raises `DuetError`.
    """
    arms = [arm for arm in arms if review.reviewer is not None or not arm.startswith("lm")]
    asked: dict[str, Proposals] = {}
    found = []
    for arm in arms:
        for kind in ("true", "absent"):
            if kind == "absent" and (arm == "none" or not manifest.absent):
                continue
            if arm.startswith("lm") and kind not in asked:
                told = partial(on_progress, f"review, {kind} glossary")
                asked[kind] = await review.proposals(manifest, heard, kind, told)
            texts = _texts(manifest, heard, arm, kind, asked.get(kind))
            found.append(Run(arm, kind, grouped(manifest, heard, texts, kind), texts))
    return found


def _texts(
    manifest: Manifest, heard: Sequence[str], arm: str, kind: str, proposals: Proposals | None
) -> tuple[str, ...]:
    if arm == "none":
        return tuple(heard)
    rule = arm.endswith("rule")
    return tuple(
        corrected(
            text, proposals[i] if arm.startswith("lm") and proposals else [], _terms(manifest, i, kind), rule=rule
        ).text
        for i, text in enumerate(heard)
    )


def grouped(manifest: Manifest, heard: Sequence[str], texts: Sequence[str], kind: str = "true") -> dict[str, Figures]:
    """Figures of all utterances, of each language, and of those with and without glossary terms.

    With the absent glossary its terms count too: nobody says them, so each one in a text lowers the precision.
    """
    rows = [
        Scored(utterance.text, before, after)
        for utterance, before, after in zip(manifest.utterances, heard, texts, strict=True)
    ]
    groups: dict[str, list[Scored]] = {"all": rows}
    any_terms = any(utterance.terms for utterance in manifest.utterances)
    for utterance, row in zip(manifest.utterances, rows, strict=True):
        groups.setdefault(utterance.language, []).append(row)
        if any_terms:
            groups.setdefault("with terms" if utterance.terms else "without terms", []).append(row)
    terms = {term for utterance in manifest.utterances for term in utterance.glossary}
    counted = sorted(terms | set(manifest.absent) if kind == "absent" else terms)
    return {name: figures(members, counted) for name, members in groups.items()}
