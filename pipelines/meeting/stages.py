"""The table of stages in their order, and how one of them is run. A stage needs the artifact keys of the stages before it, and
nothing else of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from duet.settings import Settings
from pipelines.meeting.artifacts import Artifacts
from pipelines.meeting.context import Context
from pipelines.meeting.decode import decode
from pipelines.meeting.diarize import diarize
from pipelines.meeting.export import export
from pipelines.meeting.job import MAX_DEATHS, GaveUp, JobFolder, StageTimes
from pipelines.meeting.review.stage import review
from pipelines.meeting.segment import segment
from pipelines.meeting.summarize import summarize
from pipelines.meeting.transcribe import transcribe


@dataclass(frozen=True)
class Stage:
    """`share` is its part of a job's time. `run` gets the artifact keys of the stages before it by name, and returns its own.

    `name` is durable: running jobs record it, and artifact keys begin with it.
    """

    name: str
    share: float
    run: Callable[[Context, dict[str, str]], Awaitable[str]]


# The shares are measured on the embedded models, and good enough as a guess elsewhere. They sum to 1.
STAGES = (
    Stage("decode", 0.03, decode),
    Stage("segment", 0.05, segment),
    Stage("diarize", 0.15, diarize),
    Stage("transcribe", 0.25, transcribe),
    Stage("review", 0.40, review),
    Stage("summarize", 0.08, summarize),
    Stage("export", 0.04, export),
)


async def run_stage(
    stage: Stage, settings: Settings, folder: JobFolder, done: dict[str, str], *, worker_died: bool = False
) -> str:
    """Run one stage of a job and return its artifact key; progress is on disk before and after.

    `worker_died`: the worker that began this stage before died in it. Raises `GaveUp` after `MAX_DEATHS` deaths.
    """
    progress = folder.progress()
    known = progress.stages.get(stage.name)
    deaths = (known.deaths if known else 0) + worker_died
    if deaths >= MAX_DEATHS:
        raise GaveUp(f"the worker died {deaths} times in this stage: killed, out of memory, or by this recording")
    progress.stages[stage.name] = StageTimes(time.time(), runs=known.runs + 1 if known else 1, deaths=deaths)
    for each in STAGES:  # all of them: an older version, which recorded no shares, may have run the stages before
        if each.name in progress.stages:
            progress.stages[each.name].share = each.share
    progress.stage, progress.done, progress.error = stage.name, 0.0, None
    folder.write_progress(progress)
    context = Context(settings, folder, folder.request(), Artifacts(folder.path / "artifacts"))
    try:
        key = await stage.run(context, done)
    finally:
        context.end()
    progress = folder.progress()
    progress.stages[stage.name].finished_at = time.time()
    progress.done = 1.0
    folder.write_progress(progress)
    return key
