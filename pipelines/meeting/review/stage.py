"""Stage 5: a language model proposes edits, and code decides on them. Then code corrects glossary terms that are still misheard,
by their sound. Without a review model only the second part runs, and a warning says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from duet.errors import DuetError
from duet.wire import Segment
from pipelines.clients import Engine, EngineUnavailable, Reviewer
from pipelines.glossary import Term, parse
from pipelines.meeting.context import Context
from pipelines.meeting.review.draft import Span
from pipelines.meeting.review.edits import Decision, Proposal
from pipelines.meeting.review.windows import Window, corrected, propose, windows

logger = logging.getLogger(__name__)

VERSION = 4
WINDOWS_AT_ONCE = 4


class ReviewedSegment(msgspec.Struct, frozen=True):
    """`edits` are all proposals, each with the decision on it. `changed` are the places of `text` that differ from what was
    heard."""

    id: str
    segment: Segment
    text: str
    edits: tuple[Decision, ...] = ()
    changed: tuple[Span, ...] = ()


class Review(msgspec.Struct, frozen=True):
    """`reviewer` is None when no model reviewed it."""

    reviewer: Reviewer | None
    segments: tuple[ReviewedSegment, ...]


async def review(context: Context, done: dict[str, str]) -> str:
    """The artifact is a `Review`."""
    segments = context.artifacts.read(done["transcribe"], list[Segment])
    terms = parse(context.request.options.glossary)
    model, settings = context.settings.meetings.review_model, context.settings.meetings
    async with Engine(context.settings, timeout_seconds=settings.review_timeout_seconds) as engine:
        reviewer, problem = None, ""
        try:
            reviewer = await engine.reviewer(model) if segments else None
        except (EngineUnavailable, DuetError) as error:
            problem = error.message
        asked = msgspec.structs.asdict(reviewer) if reviewer else None
        base: list[object] = [done["transcribe"], context.request.options.glossary, asked, VERSION]
        key = context.artifacts.key("review", "segments", *base)
        if context.artifacts.read(key, Review) is not None:
            return key
        named = [(f"s{i:04d}", segment) for i, segment in enumerate(segments, 1)]
        if reviewer is None:
            if problem:
                context.warn(f"the transcript was not reviewed by a model: {problem}")
            reviewed = await asyncio.to_thread(
                lambda: [_decided(name, segment, [], terms, "") for name, segment in named]
            )
        else:
            reviewed = await _windows(context, engine, reviewer, named, terms, base)
    found = Review(reviewer, tuple(reviewed))
    context.artifacts.write(key, found)
    return key


async def _windows(
    context: Context,
    engine: Engine,
    reviewer: Reviewer,
    named: Sequence[tuple[str, Segment]],
    terms: Sequence[Term],
    base: Sequence[object],
) -> list[ReviewedSegment]:
    """All windows, a few at once, each kept as an artifact when done."""
    segments, limit = dict(named), asyncio.Semaphore(WINDOWS_AT_ONCE)
    asked = windows([(name, segment.text) for name, segment in named], reviewer)
    finished = 0

    async def one(window: Window) -> list[ReviewedSegment]:
        nonlocal finished
        key = context.artifacts.key("review", "window", *base, [list(line) for line in window.lines])
        async with limit:
            known = context.artifacts.read(key, list[ReviewedSegment])
            if known is None:
                proposals = await _proposals(context, engine, reviewer, window, terms)
                known = await asyncio.to_thread(_all_decided, window, segments, proposals, terms)
                context.artifacts.write(key, known)
            finished += 1
            context.report(finished / len(asked))
            return list(known)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(window)) for window in asked]
    return [item for task in tasks for item in task.result()]


async def _proposals(
    context: Context, engine: Engine, reviewer: Reviewer, window: Window, terms: Sequence[Term]
) -> dict[str, list[Proposal]]:
    """The model's proposals for one window; none, with a warning, when it fails or its answer cannot be read."""
    first, last = window.lines[0][0], window.lines[-1][0]
    where = f"segments {first} to {last}" if first != last else f"segment {first}"
    try:
        return await propose(engine, reviewer, window, terms)
    except DuetError as error:
        context.warn(f"{where} were not reviewed: {error.message}")
    except (ValueError, msgspec.ValidationError) as error:
        logger.warning("unreadable review of %s: %s", where, error, extra={"action": "review_unreadable"})
        context.warn(f"the reviewer's answer for {where} could not be read; the text stays as it was heard")
    return {}


def _all_decided(
    window: Window, segments: dict[str, Segment], proposals: dict[str, list[Proposal]], terms: Sequence[Term]
) -> list[ReviewedSegment]:
    return [_decided(name, segments[name], proposals.get(name, []), terms, window.text) for name, _ in window.lines]


def _decided(
    name: str, segment: Segment, proposals: list[Proposal], terms: Sequence[Term], around: str
) -> ReviewedSegment:
    found = corrected(segment.text, proposals, terms, language=segment.language, around=around)
    return ReviewedSegment(name, segment, found.text, found.decisions, found.changed)
