"""One stage after the other. What a stage needs from those before it are artifact keys, nothing else."""

from __future__ import annotations

import time
from typing import Final

from duet.settings import Settings
from pipelines.meeting.decode import decode
from pipelines.meeting.diarize import diarize
from pipelines.meeting.export import export
from pipelines.meeting.job import MAX_DEATHS, STAGES, Artifacts, GaveUp, JobFolder, StageTimes
from pipelines.meeting.review import review
from pipelines.meeting.segment import segment
from pipelines.meeting.stages import Context, Stage
from pipelines.meeting.summarize import summarize
from pipelines.meeting.transcribe import transcribe

TABLE: Final[dict[str, Stage]] = {
    "decode": decode,
    "segment": segment,
    "diarize": diarize,
    "transcribe": transcribe,
    "review": review,
    "summarize": summarize,
    "export": export,
}
assert tuple(TABLE) == STAGES


async def run_stage(
    settings: Settings, folder: JobFolder, name: str, done: dict[str, str], *, worker_died: bool = False
) -> str:
    """Run one stage of a job and return its artifact key; progress is on disk before and after.

    `worker_died`: the worker that began this stage before died in it. Raises `GaveUp` when that happens each time.
    """
    progress = folder.progress()
    known = progress.stages.get(name)
    deaths = (known.deaths if known else 0) + worker_died
    if deaths >= MAX_DEATHS:
        raise GaveUp(f"the worker died {deaths} times in this stage: killed, out of memory, or by this recording")
    progress.stages[name] = StageTimes(time.time(), runs=known.runs + 1 if known else 1, deaths=deaths)
    progress.stage, progress.done, progress.error = name, 0.0, None
    folder.write_progress(progress)
    context = Context(settings, folder, folder.request(), Artifacts(folder.path / "artifacts"))
    try:
        key = await TABLE[name](context, done)
    finally:
        context.end()
    progress = folder.progress()
    progress.stages[name].finished_at = time.time()
    progress.done = 1.0
    folder.write_progress(progress)
    return key
