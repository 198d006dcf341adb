"""The real meeting worker, except that one stage stops after its work is done and before the result is recorded.

`python -m tests.fakes.paused_worker STAGE MARK`: at that point it writes the file MARK and waits to be killed.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from pipelines.__main__ import main
from pipelines.meeting import stages
from pipelines.meeting.context import Context


def paused(stage: stages.Stage, mark: Path) -> stages.Stage:
    async def pause(context: Context, done: dict[str, str]) -> str:
        key = await stage.run(context, done)
        mark.touch()
        await asyncio.sleep(600)
        return key

    return replace(stage, run=pause)


if __name__ == "__main__":
    name, mark = sys.argv[1], Path(sys.argv[2])
    stages.STAGES = tuple(paused(stage, mark) if stage.name == name else stage for stage in stages.STAGES)
    sys.exit(main())
