"""The real meeting worker, except that one stage stops when its work is done and before that is recorded.

`python -m tests.fakes.paused_worker STAGE MARK`: it writes the file MARK there and waits to be killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pipelines.__main__ import main
from pipelines.meeting import workflow
from pipelines.meeting.stages import Context


def pause(stage: str, mark: Path) -> None:
    real = workflow.TABLE[stage]

    async def paused(context: Context, done: dict[str, str]) -> str:
        key = await real(context, done)
        mark.touch()
        await asyncio.sleep(600)
        return key

    workflow.TABLE[stage] = paused  # type: ignore[index]


if __name__ == "__main__":
    pause(sys.argv[1], Path(sys.argv[2]))
    sys.exit(main())
